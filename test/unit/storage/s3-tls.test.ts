/** An S3 service behind a certificate authority of one's own. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:https";
import { connect, createServer as createTcpServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Failure, StorageError, UsageError } from "../../../src/errors.ts";
import { openS3Store } from "../../../src/storage/s3.ts";
import { createLog } from "../../../src/system/log.ts";
import { runProgram } from "../../support/run-program.ts";

/** Long enough that it is seen whether something was tried until it was over. */
const DEADLINE_MS = 20_000;

let directory: string;
let server: Server;
let port: number;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "walb-tls-"));
  const openssl = async (...args: string[]) => {
    const { exitCode, stderr } = await runProgram(["openssl", ...args], { cwd: directory });
    if (exitCode !== 0) throw new Error(stderr);
  };
  const newKey = ["-newkey", "rsa:2048", "-nodes"];
  await openssl(
    "req",
    "-x509",
    ...newKey,
    "-keyout",
    "ca.key",
    "-out",
    "ca.crt",
    "-days",
    "2",
    "-subj",
    "/CN=test authority",
  );
  await openssl("req", ...newKey, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=test");
  await writeFile(join(directory, "ext"), "subjectAltName=IP:127.0.0.1\n");
  const signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "ext"];
  await openssl("x509", "-req", "-in", "own.csr", ...signed, "-out", "own.crt");
  const [key, cert] = await Promise.all(["own.key", "own.crt"].map((name) => readFile(join(directory, name), "utf8")));
  server = createServer({ key: key as string, cert: cert as string }, (request, response) => {
    request.resume().on("end", () => response.setHeader("etag", '"e"').end("hello"));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  port = (server.address() as { port: number }).port;
});

afterAll(async () => {
  server.close();
  await rm(directory, { recursive: true, force: true });
});

function open(caCertFile?: string, at = port) {
  return openS3Store({
    bucket: "bucket",
    prefix: "",
    endpoint: `https://127.0.0.1:${at}`,
    region: "us-east-1",
    accessKeyId: "key",
    secretAccessKey: "secret",
    retryDeadlineMs: DEADLINE_MS,
    caCertFile,
    signal: new AbortController().signal,
    log: createLog(() => {}, { format: "text", level: "error", now: () => new Date(0) }),
  });
}

test("is trusted when its authority is named", async () => {
  await using store = await open(join(directory, "ca.crt"));
  expect(new TextDecoder().decode((await store.get("a", 10)).body)).toBe("hello");
  expect(await store.putIfAbsent("a", new Uint8Array(1_000_000))).toBe("created");
});

test("is refused at once otherwise, and the hint names the setting", async () => {
  await using store = await open();
  const before = performance.now();
  const error = (await store.get("a", 10).catch((thrown: unknown) => thrown)) as Failure;
  expect(error).toBeInstanceOf(StorageError);
  expect(error.hint).toContain("WALB_S3_CA_CERT_FILE");
  expect(performance.now() - before).toBeLessThan(900);
});

test.each(["missing.crt", "own.key"])("a certificate file that is none is a usage error: %s", async (name) => {
  await expect(open(join(directory, name))).rejects.toThrow(UsageError);
});

/** Something before the server that deals with the first connections itself. */
async function meddler(connections: number, meddle: (socket: Socket) => void) {
  let seen = 0;
  const before = createTcpServer((socket) => {
    socket.on("error", () => {});
    if (++seen <= connections) return meddle(socket);
    const behind = connect(port, "127.0.0.1").on("error", () => {});
    socket.pipe(behind).pipe(socket);
  });
  await new Promise<void>((resolve) => before.listen(0, "127.0.0.1", resolve));
  return {
    port: (before.address() as { port: number }).port,
    seen: () => seen,
    [Symbol.dispose]: () => void before.close(),
  };
}

/** Changes the last byte of what the server sends at once. */
function damaging(socket: Socket): void {
  const behind = connect(port, "127.0.0.1").on("error", () => {});
  socket.pipe(behind);
  let bytes = 0;
  behind.on("data", (chunk: Buffer) => {
    bytes += chunk.byteLength;
    const last = chunk.byteLength - 1;
    // Behind the ServerHello: encrypted, and so noticed by TLS.
    if (bytes > 500) chunk[last] = (chunk[last] ?? 0) ^ 1;
    socket.write(chunk);
  });
}
/** TLS's record of a fatal alert: 80 is internal_error. */
const INTERNAL_ERROR = Buffer.from([0x15, 3, 3, 0, 2, 2, 80]);

test.each([
  ["a record is damaged on the way", damaging],
  ["a load balancer sends an alert", (socket: Socket) => socket.once("data", () => socket.end(INTERNAL_ERROR))],
  [
    "a load balancer answers without TLS",
    (socket: Socket) => socket.once("data", () => socket.end("HTTP/1.0 503 x\r\n\r\n")),
  ],
])("is asked again after %s", async (_, meddle) => {
  using before = await meddler(1, meddle);
  await using store = await open(join(directory, "ca.crt"), before.port);
  expect(new TextDecoder().decode((await store.get("a", 10)).body)).toBe("hello");
  expect(before.seen()).toBe(2);
});

test("that speaks no TLS is given up soon, and the hint is about the endpoint", async () => {
  using before = await meddler(100, (socket) => socket.once("data", () => socket.end("HTTP/1.1 400 x\r\n\r\n")));
  await using store = await open(join(directory, "ca.crt"), before.port);
  const error = (await store.get("a", 10).catch((thrown: unknown) => thrown)) as Failure;
  expect(error).toBeInstanceOf(StorageError);
  expect(error.hint).toContain("answers without TLS");
  expect(error.hint).not.toContain("WALB_S3_CA_CERT_FILE");
  expect(before.seen()).toBe(5);
});
