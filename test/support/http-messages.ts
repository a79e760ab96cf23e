/** HTTP requests and answers for proxies that must have every byte in their own hands. */
import { request as ask, type IncomingMessage } from "node:http";
import type { Socket } from "node:net";

export interface RequestHead {
  readonly method: string;
  /** Path and query, as they were sent. */
  readonly target: string;
  /** By name in lower case. */
  readonly headers: Readonly<Record<string, string>>;
  readonly bodyBytes: number;
}

export interface Answer {
  readonly status: number;
  /** Without those that say how the body is framed: answerText() adds Content-Length. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

/** Reads one connection's requests. Bodies must state their length, as the S3 client's do. */
export class HttpReader {
  readonly #chunks: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  /** Nothing is read from it before somebody asks: a sender that nobody listens to has to wait. */
  constructor(socket: Socket) {
    this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  }

  /** @returns undefined at the end of the connection */
  async head(): Promise<RequestHead | undefined> {
    let end = this.#rest.indexOf("\r\n\r\n");
    for (; end === -1; end = this.#rest.indexOf("\r\n\r\n")) {
      const { value, done } = await this.#chunks.next();
      if (done) return undefined;
      this.#rest = Buffer.concat([this.#rest, value]);
    }
    const [first = "", ...lines] = this.#rest.subarray(0, end).toString("latin1").split("\r\n");
    this.#rest = this.#rest.subarray(end + 4);
    const [method = "", target = ""] = first.split(" ");
    const headers = Object.fromEntries(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
      }),
    );
    return { method, target, headers, bodyBytes: Number(headers["content-length"] ?? 0) };
  }

  /** @throws Error  the connection ends before so many have come */
  async take(bytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let missing = bytes; missing > 0; ) {
      if (this.#rest.byteLength === 0) {
        const { value, done } = await this.#chunks.next();
        if (done) throw new Error("the connection ended in the middle of a body");
        this.#rest = value;
      }
      const part = this.#rest.subarray(0, missing);
      this.#rest = this.#rest.subarray(part.byteLength);
      missing -= part.byteLength;
      parts.push(part);
    }
    return Buffer.concat(parts);
  }
}

/** "PUT /bucket/key", "GET /bucket?list": decoded, without the query's values. */
export function nameOfRequest({ method, target }: RequestHead): string {
  const [path = "", query = ""] = target.split("?");
  return `${method} ${decodeURIComponent(path)}${query.includes("list-type") ? "?list" : ""}`;
}

/**
 * Sends a request on, by a connection of its own, and collects the answer.
 *
 * @param body  when it is shorter than the head says, the connection is closed behind it, and that is an error
 */
export async function forward(to: URL, head: RequestHead, body: Buffer): Promise<Answer> {
  const { method, target: path, headers } = head;
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    const passed = ask({ hostname: to.hostname, port: to.port, method, path, headers, agent: false }, resolve);
    passed.on("error", reject);
    if (body.byteLength === head.bodyBytes) passed.end(body);
    else passed.write(body, () => passed.destroy(new Error("cut on purpose")));
  });
  const chunks: Buffer[] = [];
  for await (const chunk of answer) chunks.push(chunk as Buffer);
  const { "transfer-encoding": _, connection: __, ...rest } = answer.headers;
  const single = Object.entries(rest).map(([name, value]) => [name, String(value)] as const);
  return { status: answer.statusCode ?? 502, headers: Object.fromEntries(single), body: Buffer.concat(chunks) };
}

/** Head and body. A Content-Length among the headers wins over the body's own. */
export function answerText({ status, headers, body }: Answer, method: string): Buffer {
  const all = { "content-length": String(body.byteLength), ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  const head = `HTTP/1.1 ${status} made by a proxy\r\n${lines.join("")}\r\n`;
  return Buffer.concat([Buffer.from(head, "latin1"), method === "HEAD" ? Buffer.alloc(0) : body]);
}
