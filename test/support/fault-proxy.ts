/**
 * A way to a real S3 server that answers in its place when it is told to. Requests pass through with their headers as they are,
 * so signatures stay right.
 */
import { request as ask, createServer, type IncomingMessage, type ServerResponse } from "node:http";

export interface Fault {
  readonly name: string;
  /** Takes the place of the server. Without one the request passes. */
  readonly answer: (response: ServerResponse, request: IncomingMessage) => void;
}

export interface FaultProxy extends AsyncDisposable {
  readonly url: string;
  /** From now on, requests whose path ends like this are answered by the fault; undefined ends that. */
  arm(fault: Fault | undefined, pathEnd?: string): void;
  /** How many requests the fault has answered. */
  readonly answered: number;
}

const xml =
  (status: number, code: string, headers: Readonly<Record<string, string>> = {}) =>
  (response: ServerResponse) => {
    response.writeHead(status, { "content-type": "application/xml", ...headers });
    response.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>made by a test</Message></Error>`);
  };

/** None of them proves that a file is not there. */
export const FAULTS: readonly Fault[] = [
  { name: "403 AccessDenied", answer: xml(403, "AccessDenied") },
  { name: "404 NoSuchBucket", answer: xml(404, "NoSuchBucket") },
  { name: "500 InternalError", answer: xml(500, "InternalError") },
  { name: "503 SlowDown with Retry-After", answer: xml(503, "SlowDown", { "retry-after": "1" }) },
  {
    name: "a 404 page of a proxy",
    answer: (response) => void response.writeHead(404, { "content-type": "text/html" }).end("<h1>Not found</h1>"),
  },
  { name: "200 with garbage", answer: (response) => void response.writeHead(200).end("garbage") },
  { name: "a connection that is cut", answer: (response) => void response.socket?.destroy() },
  {
    name: "half an answer",
    answer: (response) => {
      response.writeHead(200, { "content-length": "100000" });
      response.write("half");
      setTimeout(() => response.socket?.destroy(), 20);
    },
  },
  { name: "silence", answer: () => {} },
];

/** @param target  a URL such as http://127.0.0.1:9000 */
export async function startFaultProxy(target: string): Promise<FaultProxy> {
  const { hostname, port } = new URL(target);
  let armed: { readonly fault: Fault; readonly pathEnd: string } | undefined;
  let answered = 0;

  const server = createServer((request, response) => {
    const path = (request.url ?? "").split("?")[0] ?? "";
    if (armed && path.endsWith(armed.pathEnd)) {
      answered++;
      request.resume();
      armed.fault.answer(response, request);
      return;
    }
    const { method, url: asked, headers } = request;
    const passed = ask({ hostname, port, method, path: asked, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    passed.on("error", () => response.socket?.destroy());
    request.pipe(passed);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address() as { readonly port: number };

  return {
    url: `http://127.0.0.1:${address.port}`,
    get answered() {
      return answered;
    },
    arm(fault, pathEnd = "") {
      armed = fault && { fault, pathEnd };
      answered = 0;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}
