/** A download site on loopback that can be told to misbehave as real ones do. */
import { createServer, type Server } from "node:net";

export interface Reply {
  readonly status?: number;
  readonly body: string | Uint8Array;
  /** How much is sent before the connection is closed; the announced length stays that of the whole body. */
  readonly cutOffAfterBytes?: number;
  /** Nothing is sent and the connection stays open. */
  readonly hangs?: boolean;
}

export class ReleaseServer implements AsyncDisposable {
  readonly files = new Map<string, Reply>();
  /** Paths in the order in which they were asked for. */
  readonly requests: string[] = [];
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
  }

  static async start(): Promise<ReleaseServer> {
    // HTTP by hand: a web server's own library would not send a wrong length.
    const server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.once("data", (head: Buffer) => {
        const path = /^GET (\S+)/.exec(head.toString("latin1"))?.[1] ?? "/";
        self.requests.push(path);
        const { status = 200, body, cutOffAfterBytes, hangs } = self.files.get(path) ?? { status: 404, body: "no" };
        if (hangs) return;
        const bytes = Buffer.from(body);
        socket.write(`HTTP/1.1 ${status} Test\r\nContent-Length: ${bytes.length}\r\nConnection: close\r\n\r\n`);
        socket.end(bytes.subarray(0, cutOffAfterBytes ?? bytes.length));
      });
    });
    const self = new ReleaseServer(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return self;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === "string") throw new Error("the server does not listen");
    return `http://127.0.0.1:${address.port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
  }
}
