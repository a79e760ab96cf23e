/** A way to an HTTP server that writes down what it is asked for. Bytes pass through as they are, so signatures stay right. */
import { createServer, connect as dial, type Socket } from "node:net";
import { relay } from "./relay.ts";

export interface RecordingProxy extends AsyncDisposable {
  readonly url: string;
  /** "PUT /bucket/key" and so on, without the query's values, in the order of arrival; then starts afresh. */
  takeRequests(): readonly string[];
}

/** @param target  a URL such as http://127.0.0.1:9000 */
export async function startRecordingProxy(target: string): Promise<RecordingProxy> {
  const { hostname, port } = new URL(target);
  const sockets = new Set<Socket>();
  let requests: string[] = [];

  const server = createServer((from) => {
    const to = dial(Number(port), hostname);
    const reader = new RequestReader((request) => requests.push(request));
    from.on("data", (bytes: Buffer) => reader.read(bytes));
    relay(from, to, sockets);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  const address = server.address() as { readonly port: number };

  return {
    url: `http://127.0.0.1:${address.port}`,
    takeRequests() {
      const taken = requests;
      requests = [];
      return taken;
    },
    [Symbol.asyncDispose]: async () => {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** Finds where requests begin in one connection's bytes. Bodies must state their length, as the S3 client's do. */
class RequestReader {
  readonly #found: (request: string) => void;
  #head = Buffer.alloc(0);
  #bodyLeft = 0;

  constructor(found: (request: string) => void) {
    this.#found = found;
  }

  read(bytes: Buffer): void {
    for (let rest = bytes; rest.byteLength > 0; ) {
      const ofBody = Math.min(this.#bodyLeft, rest.byteLength);
      this.#bodyLeft -= ofBody;
      rest = rest.subarray(ofBody);
      if (rest.byteLength === 0) return;

      this.#head = Buffer.concat([this.#head, rest]);
      const end = this.#head.indexOf("\r\n\r\n");
      if (end === -1) return;
      const head = this.#head.subarray(0, end).toString("latin1");
      rest = this.#head.subarray(end + 4);
      this.#head = Buffer.alloc(0);
      this.#bodyLeft = Number(/^content-length: *(\d+)/im.exec(head)?.[1] ?? 0);
      const [, method = "", path = "", query = ""] = /^(\S+) ([^ ?]*)(\?\S*)?/.exec(head) ?? [];
      this.#found(`${method} ${decodeURIComponent(path)}${query.includes("list-type") ? "?list" : ""}`);
    }
  }
}
