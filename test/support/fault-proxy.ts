/**
 * A way to a real S3 server on which chosen requests meet a fault. All others pass through with their headers as they are, so
 * signatures stay right. The faults themselves are in faults.ts.
 */
import { createServer, type Server, type Socket } from "node:net";
import { type Answer, answerText, forward, HttpReader, nameOfRequest, type RequestHead } from "./http-messages.ts";
import { ownAddress } from "./loopback.ts";
import { waitFor } from "./wait-for.ts";

/** What happens to a request instead of passing through. */
export type Fault = (exchange: Exchange) => Promise<void>;

export interface Where {
  /** The first request that meets the fault, counted from 1 among those that are asked for with `only`. Default: 1. */
  readonly from?: number;
  /** How many requests meet it. Default: all from there on. */
  readonly times?: number;
  /** Requests as in `requests`. Default: all. */
  readonly only?: (request: string) => boolean;
}

export interface FaultProxy extends AsyncDisposable {
  /** The same as long as it lives. */
  readonly url: string;
  /** Begins to count requests, which meet the fault from now on; without one they pass. */
  arm(fault?: Fault, where?: Where): Promise<void>;
  /** Requests since arm(), in the order of arrival: "PUT /bucket/key", "GET /bucket?list" and so on. */
  readonly requests: readonly string[];
  /** How many requests since arm() have met the fault. */
  readonly answered: number;
  /** How many requests since arm() are left in silence, after all that the fault does. */
  readonly silent: number;
  /** Waits until the real server has carried out all that it was given, also for a client that is gone by now. */
  settled(): Promise<void>;
}

/** One request that meets a fault. Its body is still to be read. */
export class Exchange {
  readonly head: RequestHead;
  readonly #reader: HttpReader;
  readonly #line: Line;

  constructor(head: RequestHead, reader: HttpReader, line: Line) {
    this.head = head;
    this.#reader = reader;
    this.#line = line;
  }

  /** Reads so much of the body, at most all of it. */
  async read(bytes = this.head.bodyBytes): Promise<Buffer> {
    return await this.#reader.take(Math.min(bytes, this.head.bodyBytes));
  }

  /** Has the real server carry the request out. */
  async pass(): Promise<Answer> {
    return await forward(this.#line.target, this.head, await this.read());
  }

  /** Sends the real server so much of the body, and then closes the connection to it. */
  async passPart(bytes: number): Promise<void> {
    await forward(this.#line.target, this.head, await this.read(bytes)).catch(() => undefined);
  }

  /** @param bytes  the end, of the head and the body together */
  async send(answer: Answer, bytes = Number.POSITIVE_INFINITY): Promise<void> {
    await written(this.#line.socket, answerText(answer, this.head.method).subarray(0, bytes));
  }

  async sendBytes(bytes: Uint8Array): Promise<void> {
    await written(this.#line.socket, bytes);
  }

  /** Nothing more, until the connection is closed by the other side, or the proxy by the test. */
  async silence(): Promise<never> {
    this.#line.onSilence();
    return await new Promise<never>(() => {});
  }

  /** Without any answer (FIN). */
  cut(): void {
    this.#line.socket.destroy();
  }

  /** As a host does that knows nothing of the connection (RST). */
  reset(): void {
    this.#line.socket.resetAndDestroy();
  }

  /** Nobody listens for a while, and all connections are cut. */
  refuse(): void {
    this.#line.onRefusal();
  }
}

interface Line {
  readonly socket: Socket;
  readonly target: URL;
  readonly onRefusal: () => void;
  readonly onSilence: () => void;
}

interface Armed extends Required<Where> {
  readonly fault: Fault;
}

const REFUSED_MS = 200;

/** @param target  a URL such as http://127.0.0.1:9000 */
export async function startFaultProxy(target: string): Promise<FaultProxy> {
  const address = ownAddress();
  const sockets = new Set<Socket>();
  let requests: string[] = [];
  let [counted, answered, silent, underWay, port] = [0, 0, 0, 0, 0];
  let armed: Armed | undefined;
  let server: Server | undefined;
  let reopening: ReturnType<typeof setTimeout> | undefined;

  const meets = (request: string): Fault | undefined => {
    requests.push(request);
    if (armed === undefined || !armed.only(request)) return undefined;
    counted++;
    if (counted < armed.from || counted >= armed.from + armed.times) return undefined;
    answered++;
    return armed.fault;
  };
  const serve = async (socket: Socket) => {
    const reader = new HttpReader(socket);
    for (;;) {
      const head = await reader.head();
      if (head === undefined) return;
      const fault = meets(nameOfRequest(head));
      if (fault !== undefined) {
        await fault(new Exchange(head, reader, { socket, target: new URL(target), onRefusal, onSilence }));
      } else {
        const body = await reader.take(head.bodyBytes);
        underWay++;
        const answer = await forward(new URL(target), head, body).finally(() => underWay--);
        await written(socket, answerText(answer, head.method));
      }
    }
  };
  const close = () => {
    server?.close();
    server = undefined;
    for (const socket of sockets) socket.destroy();
  };
  const onSilence = () => {
    silent++;
  };
  const onRefusal = () => {
    close();
    clearTimeout(reopening);
    reopening = setTimeout(() => void open(), REFUSED_MS);
  };
  const open = async () => {
    clearTimeout(reopening);
    if (server !== undefined) return;
    const opened = createServer((socket) => {
      sockets.add(socket);
      socket.on("close", () => sockets.delete(socket));
      // A client that is gone, a server that has cut us off: either ends the connection, as without a proxy.
      socket.on("error", () => {});
      serve(socket).catch(() => socket.destroy());
    });
    await new Promise<void>((resolve, reject) => {
      opened.once("error", reject);
      opened.listen(port, address, resolve);
    });
    port = (opened.address() as { readonly port: number }).port;
    server = opened;
  };

  await open();
  return {
    url: `http://${address}:${port}`,
    get requests() {
      return requests;
    },
    get answered() {
      return answered;
    },
    get silent() {
      return silent;
    },
    async arm(fault, { from = 1, times = Number.POSITIVE_INFINITY, only = () => true } = {}) {
      armed = fault && { fault, from, times, only };
      [requests, counted, answered, silent] = [[], 0, 0, 0];
      await open();
    },
    async settled() {
      await waitFor(() => underWay === 0, { intervalMs: 5, what: "the server to have carried out all requests" });
    },
    async [Symbol.asyncDispose]() {
      clearTimeout(reopening);
      close();
    },
  };
}

/** @throws Error  the client is gone */
async function written(socket: Socket, bytes: Uint8Array): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onClose = () => reject(new Error("the connection was closed"));
  socket.once("close", onClose);
  socket.write(bytes, (error) => (error ? reject(error) : resolve()));
  await promise.finally(() => socket.off("close", onClose));
}
