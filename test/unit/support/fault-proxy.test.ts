/** The faults are what their names say, seen with a plain socket: a fault that does nothing would make every test of it pass. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { createServer } from "node:http";
import { connect } from "node:net";
import { type FaultProxy, startFaultProxy } from "../../support/fault-proxy.ts";
import { dropAnswerAfter, dropRequestAfter, FAULTS, faultNamed } from "../../support/faults.ts";
import { waitFor } from "../../support/wait-for.ts";

/** Bodies that the server has got, whole or not. */
let got: { readonly body: string; readonly isWhole: boolean }[] = [];
const server = createServer((request, response) => {
  const chunks: Buffer[] = [];
  request.on("data", (chunk: Buffer) => chunks.push(chunk));
  request.on("error", () => {});
  request.on("close", () => {
    const body = Buffer.concat(chunks).toString();
    got.push({ body, isWhole: body.length === Number(request.headers["content-length"] ?? 0) });
  });
  request.on("end", () => void response.writeHead(200, { etag: '"of the server"' }).end(ANSWER));
});
const ANSWER = "0123456789";
const BODY = "abcdefgh";
const WHOLE = `PUT / HTTP/1.1\r\nhost: test\r\ncontent-length: ${BODY.length}\r\n\r\n${BODY}`;

let proxy: FaultProxy;
beforeEach(async () => {
  got = [];
  await new Promise<void>((resolve) => void server.listen(0, "127.0.0.1", resolve));
  proxy = await startFaultProxy(`http://127.0.0.1:${(server.address() as { readonly port: number }).port}`);
});
afterEach(async () => {
  await proxy[Symbol.asyncDispose]();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
});

interface Seen {
  readonly text: string;
  /** "open" when the connection did not end. */
  readonly end: string;
}

/** What a client sees until it has a whole answer, or its connection ends, or it has seen enough. */
async function send(text = WHOLE, isEnough = isWholeAnswer, timeoutMs = 20_000): Promise<Seen> {
  const { hostname, port } = new URL(proxy.url);
  const socket = connect(Number(port), hostname);
  let seen = "";
  let end = "open";
  socket.on("data", (chunk: Buffer) => {
    seen += chunk.toString();
  });
  socket.on("error", (error: NodeJS.ErrnoException) => {
    end = error.code ?? "error";
  });
  socket.on("end", () => {
    end = "closed";
  });
  socket.write(text);
  await waitFor(() => end !== "open" || isEnough(seen), { timeoutMs, intervalMs: 2 }).catch(() => undefined);
  socket.destroy();
  return { text: seen, end };
}

const SILENT_MS = 250;
const isWholeAnswer = (text: string) => text.includes("\r\n\r\n") && bodyOf(text).length >= lengthOf(text);
const bodyOf = (text: string) => text.slice(text.indexOf("\r\n\r\n") + 4);
const lengthOf = (text: string) => Number(/^content-length: (\d+)/im.exec(text)?.[1]);

test("without a fault, requests and answers pass as they are", async () => {
  const { text } = await send();
  expect(text).toStartWith("HTTP/1.1 200 ");
  expect(text).toContain('etag: "of the server"');
  expect(bodyOf(text)).toBe(ANSWER);
  expect(got).toEqual([{ body: BODY, isWhole: true }]);
  expect(proxy.requests).toEqual(["PUT /"]);
});

test("requests of one connection follow each other", async () => {
  const { text } = await send(WHOLE + WHOLE, (seen) => seen.split(ANSWER).length === 3);
  expect(text.split(ANSWER)).toHaveLength(3);
  expect(got).toHaveLength(2);
});

test("exactly those requests meet the fault that are told to", async () => {
  await proxy.arm(faultNamed("500 InternalError"), { from: 2, times: 2 });
  const codes: string[] = [];
  for (let n = 0; n < 5; n++) codes.push((await send()).text.slice(9, 12));
  expect(codes).toEqual(["200", "500", "500", "200", "200"]);
  expect(proxy.answered).toBe(2);
  expect(proxy.requests).toHaveLength(5);
  await proxy.arm(faultNamed("500 InternalError"), { only: (request) => request === "GET /a" });
  expect((await send()).text).toStartWith("HTTP/1.1 200 ");
  expect((await send("GET /a?x=y HTTP/1.1\r\n\r\n")).text).toStartWith("HTTP/1.1 500 ");
  await proxy.arm();
  expect((await send("GET /a HTTP/1.1\r\n\r\n")).text).toStartWith("HTTP/1.1 200 ");
  expect(proxy.answered).toBe(0);
});

test.each(FAULTS.map((fault) => [fault.name, fault] as const))("%s", async (name, { fault, strikes }) => {
  await proxy.arm(fault);
  const isHalf = (seen: string) => bodyOf(seen) === "01234";
  const { text, end } = name.startsWith("silence")
    ? await send(WHOLE, isWholeAnswer, SILENT_MS)
    : await send(WHOLE, name === "half a body, then silence" ? isHalf : isWholeAnswer);
  expect(proxy.answered).toBe(1);
  await waitFor(() => (strikes === "request" && name !== "half a request") || got.length > 0);
  expect(got.filter(({ isWhole }) => isWhole)).toHaveLength(strikes === "request" ? 0 : 1);

  const status = /^\d{3}/.exec(name)?.[0];
  if (strikes === "request" && status) expect(text).toStartWith(`HTTP/1.1 ${status} `);
  if (strikes === "body") expect(text).toContain('etag: "of the server"');
  const seen: Readonly<Record<string, () => void>> = {
    "a connection that is refused": () => expect(text + end).toMatch(/^(closed|ECONNRESET)$/),
    "a connection that is reset": () => expect(text + end).toBe("ECONNRESET"),
    "a connection that is cut": () => expect(text + end).toBe("closed"),
    silence: () => expect(text + end).toBe("open"),
    "silence in the middle of the request": () => expect(text + end).toBe("open"),
    "half a request": () => expect([text + end, got[0]]).toEqual(["closed", { body: "abcd", isWhole: false }]),
    "no answer": () => expect(text + end).toBe("ECONNRESET"),
    "silence instead of the answer": () => expect(text + end).toBe("open"),
    "half the answer's head": () => expect([text.length, end]).toEqual([40, "closed"]),
    "half a body, then silence": () => expect([lengthOf(text), bodyOf(text), end]).toEqual([10, "01234", "open"]),
    "half a body, then the end": () => expect([lengthOf(text), bodyOf(text), end]).toEqual([10, "01234", "closed"]),
    "half a body, called whole": () => expect([lengthOf(text), bodyOf(text)]).toEqual([5, "01234"]),
    "a body with a byte changed": () => expect([lengthOf(text), bodyOf(text)]).toEqual([10, "01234\u00156789"]),
    "a slow drip": () => expect([lengthOf(text), bodyOf(text)]).toEqual([10, ANSWER]),
    "503 SlowDown with Retry-After": () => expect(text).toContain("\r\nretry-after: 1\r\n"),
  };
  if (strikes !== "request") expect(Object.keys(seen).concat("500 instead of the answer")).toContain(name);
  seen[name]?.();
});

test("a connection that is refused is refused to everybody, and not for ever", async () => {
  await proxy.arm(faultNamed("a connection that is refused"));
  await waitFor(async () => (await send()).end === "ECONNREFUSED");
  await proxy.arm();
  expect((await send()).text).toEndWith(ANSWER);
  await proxy.arm(faultNamed("a connection that is refused"), { times: 1 });
  await send();
  await waitFor(async () => (await send()).text.endsWith(ANSWER));
});

test("while it refuses, nobody else is given its address", async () => {
  await proxy.arm(faultNamed("a connection that is refused"));
  await send();
  const other = createServer();
  await new Promise<void>((resolve) => void other.listen(Number(new URL(proxy.url).port), "127.0.0.1", resolve));
  await proxy.arm();
  expect((await send()).text).toEndWith(ANSWER);
  await new Promise((resolve) => other.close(resolve));
});

test("a request is dropped after as many bytes as is said, and an answer", async () => {
  await proxy.arm(dropRequestAfter(0.25));
  await send();
  await waitFor(() => got.length === 1);
  expect(got).toEqual([{ body: "ab", isWhole: false }]);
  await proxy.arm(dropAnswerAfter(7));
  expect(await send()).toEqual({ text: "HTTP/1.", end: "closed" });
});
