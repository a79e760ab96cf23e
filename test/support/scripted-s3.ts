/** An S3 server that answers what a test's script says, byte by byte if need be: for faults no real server shows on demand. */
import { createServer, type Socket } from "node:net";

export interface ScriptedRequest {
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
  /** Which one it is, counted from 1. */
  readonly number: number;
  /** Which connection it came by, counted from 1. */
  readonly connection: number;
}

/** Returns a whole answer, or undefined when it has dealt with the socket itself. */
export type Script = (request: ScriptedRequest, socket: Socket) => string | undefined;

export interface ScriptedS3 extends AsyncDisposable {
  readonly endpoint: string;
  readonly requests: readonly ScriptedRequest[];
}

/** In place of a repository in a directory. */
export const scriptedS3Environment = (endpoint: string) => ({
  WALB_FILE_PREFIX: undefined,
  WALB_S3_PREFIX: "s3://bucket/path",
  AWS_ENDPOINT_URL: endpoint,
  AWS_REGION: "us-east-1",
  AWS_ACCESS_KEY_ID: "key",
  AWS_SECRET_ACCESS_KEY: "secret",
});

/** @param script  answers every request in turn; a request's body is read first */
export async function startScriptedS3(script: Script): Promise<ScriptedS3> {
  const requests: ScriptedRequest[] = [];
  const sockets = new Set<Socket>();
  let connections = 0;
  const server = createServer((socket) => {
    const connection = ++connections;
    let pending = Buffer.alloc(0);
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
    socket.on("data", (chunk: Buffer) => {
      pending = Buffer.concat([pending, chunk]);
      for (;;) {
        const end = pending.indexOf("\r\n\r\n");
        if (end < 0) return;
        const [first = "", ...lines] = pending.subarray(0, end).toString("latin1").split("\r\n");
        const headers = Object.fromEntries(
          lines.map((line) => [
            line.slice(0, line.indexOf(":")).toLowerCase(),
            line.slice(line.indexOf(":") + 1).trim(),
          ]),
        );
        const length = Number(headers["content-length"] ?? 0);
        if (pending.byteLength < end + 4 + length) return;
        const body = pending.subarray(end + 4, end + 4 + length);
        pending = pending.subarray(end + 4 + length);
        const [method = "", target = ""] = first.split(" ");
        const request = { method, target, headers, body, number: requests.length + 1, connection };
        requests.push(request);
        const answer = script(request, socket);
        if (answer !== undefined) socket.write(answer, "latin1");
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) throw new Error("no address");
  return {
    endpoint: `http://127.0.0.1:${address.port}`,
    requests,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A whole HTTP answer. A good one has an ETag, as S3's have. */
export function answer(status: number, body = "", headers: Readonly<Record<string, string>> = {}): string {
  const etag = status < 300 && { etag: '"scripted"' };
  const lines = Object.entries({ "content-length": String(Buffer.byteLength(body)), ...etag, ...headers });
  return `HTTP/1.1 ${status} Scripted\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join("")}\r\n${body}`;
}

/** S3's XML for an error. */
export function s3Error(
  status: number,
  code: string,
  headers: Readonly<Record<string, string>> = {},
  more = "",
): string {
  const xml = `<?xml version="1.0"?><Error><Code>${code}</Code><Message>scripted ${code}</Message>${more}</Error>`;
  return answer(status, xml, { "content-type": "application/xml", ...headers });
}

export const EMPTY_LIST = answer(200, "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>");
