/** What the S3 store makes of answers that go wrong: retried or not, and which failure the user reads. */
import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  AccessError,
  type Failure,
  IntegrityError,
  NotFoundError,
  StorageError,
  UsageError,
} from "../../../src/errors.ts";
import { type ObjectStore, UploadLostError } from "../../../src/storage/object-store.ts";
import { openS3Store, type S3StoreOptions } from "../../../src/storage/s3.ts";
import { createLog } from "../../../src/system/log.ts";
import { readChunks } from "../../support/read-chunks.ts";
import { answer, EMPTY_LIST, type Script, s3Error, startScriptedS3 } from "../../support/scripted-s3.ts";
import { waitFor } from "../../support/wait-for.ts";

const MiB = 1024 * 1024;
const SECRET = "a-secret-that-nobody-may-see";

/** For tests of silence; where none is meant, a busy machine's must not be taken for one. */
const SOON_SILENT = { idleTimeoutMs: 300 };

/** A store whose waits take no time, in front of a server that follows the script. */
async function setUp(script: Script, options: Partial<S3StoreOptions> = {}) {
  const server = await startScriptedS3(script);
  let clock = 0;
  const waits: number[] = [];
  const store = await openS3Store({
    bucket: "bucket",
    prefix: "",
    endpoint: server.endpoint,
    region: "us-east-1",
    accessKeyId: "key",
    secretAccessKey: SECRET,
    retryDeadlineMs: 5000,
    connectTimeoutMs: 20_000,
    idleTimeoutMs: 20_000,
    partSizeBytes: 5 * MiB,
    signal: new AbortController().signal,
    log: createLog(() => {}, { format: "text", level: "debug", now: () => new Date(0) }),
    now: () => clock,
    random: () => 0.5,
    delay: async (ms) => {
      waits.push(ms);
      clock += ms;
    },
    ...options,
  });
  return {
    store,
    server,
    waits,
    [Symbol.asyncDispose]: async () => {
      await store[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

async function failure(work: () => Promise<unknown>): Promise<Failure> {
  try {
    await work();
  } catch (error) {
    return error as Failure;
  }
  throw new Error("it did not fail");
}

const md5Of = (bytes: Uint8Array) => createHash("md5").update(bytes).digest("base64");

const OBJECT = answer(200, "hello", { etag: '"e1"' });

describe("get() asks again", () => {
  test.each([
    // why, the first answer
    ["500 InternalError", () => s3Error(500, "InternalError")],
    ["503 SlowDown", () => s3Error(503, "SlowDown")],
    ["502 without S3's words", () => answer(502, "<html>Bad Gateway</html>")],
    ["429", () => answer(429, "")],
    ["408", () => answer(408, "")],
    ["400 RequestTimeout", () => s3Error(400, "RequestTimeout")],
    ["409 OperationAborted", () => s3Error(409, "OperationAborted")],
    ["404 without S3's words", () => answer(404, "<html>not here</html>")],
    ["206, which is for a part of an object", () => answer(206, "hel")],
    ["204, which is for none", () => answer(204)],
  ])("after %s", async (_, first) => {
    await using it = await setUp(({ number }) => (number === 1 ? first() : OBJECT));
    expect((await it.store.get("a", 10)).body).toHaveLength(5);
    expect(it.server.requests).toHaveLength(2);
  });

  test.each([
    // what happens to the connection
    ["is reset", "reset"],
    ["is closed without an answer", "end"],
    ["stays silent", "silent"],
    ["breaks within the head", "head"],
    ["breaks within the body of an error", "error"],
  ])("when the connection %s", async (_, how) => {
    await using it = await setUp(({ number }, socket) => {
      if (number > 1) return OBJECT;
      if (how === "reset") socket.resetAndDestroy();
      if (how === "end") socket.end();
      if (how === "error") socket.end("HTTP/1.1 404 Not Found\r\ncontent-length: 100\r\n\r\n<Error><Code>NoSuch");
      if (how === "head") socket.end("HTTP/1.1 200 OK\r\nContent-Le");
      return undefined;
    }, SOON_SILENT);
    expect((await it.store.get("a", 10)).body).toHaveLength(5);
  });

  test("after Retry-After seconds", async () => {
    await using it = await setUp(({ number }) =>
      number === 1 ? s3Error(503, "SlowDown", { "retry-after": "3" }) : OBJECT,
    );
    await it.store.get("a", 10);
    expect(it.waits).toEqual([3050]);
  });

  test("with the server's clock after RequestTimeTooSkewed", async () => {
    const tomorrow = new Date(Date.now() + 86_400_000);
    const script: Script = ({ number }) =>
      number === 1 ? s3Error(403, "RequestTimeTooSkewed", { date: tomorrow.toUTCString() }) : OBJECT;
    await using it = await setUp(script);
    await it.store.get("a", 10);
    const signedAt = it.server.requests[1]?.headers["x-amz-date"] ?? "";
    expect(signedAt.slice(0, 8)).toBe(tomorrow.toISOString().slice(0, 10).replaceAll("-", ""));
  });
});

test("trouble that lasts is told with its reason, and then once a minute, until it is given up", async () => {
  const told: string[] = [];
  const log = createLog((record) => told.push(record), { format: "text", level: "warning", now: () => new Date(0) });
  await using it = await setUp(() => s3Error(503, "SlowDown"), { retryDeadlineMs: 150_000, log });
  expect(await failure(() => it.store.get("a", 10))).toBeInstanceOf(StorageError);
  const times = told.map((record) => / for (\d+ \w+)\n.* more/s.exec(record)?.[1]);
  expect(times).toEqual(["13 s", "73 s", "2 min"]);
  expect(told[0]).toBe(
    "wal-b: WARNING: no success with s3://bucket for 13 s\n  DETAIL: S3 answered 503 SlowDown: scripted SlowDown.\n  HINT: It is tried again, for up to 2 min more.",
  );
});

test("trouble that passes within seconds is not told", async () => {
  const told: string[] = [];
  const log = createLog((record) => told.push(record), { format: "text", level: "warning", now: () => new Date(0) });
  await using it = await setUp(({ number }) => (number < 7 ? s3Error(503, "SlowDown") : OBJECT), { log });
  expect((await it.store.get("a", 10)).body).toHaveLength(5);
  expect(told).toEqual([]);
});

describe("get() fails at once, with the failure that says what is known", () => {
  test.each([
    // status, code, headers, failure, what its hint says
    [404, "NoSuchKey", {}, NotFoundError, ""],
    [409, "NoSuchKey", {}, StorageError, ""],
    [404, "NoSuchBucket", {}, UsageError, '"bucket" does not exist'],
    [403, "AccessDenied", {}, AccessError, "s3:GetObject"],
    [403, "SignatureDoesNotMatch", {}, AccessError, "AWS_SECRET_ACCESS_KEY"],
    [403, "InvalidObjectState", {}, StorageError, "in an archive storage class"],
    [403, "InvalidAccessKeyId", {}, AccessError, "AWS_ACCESS_KEY_ID"],
    [400, "ExpiredToken", {}, AccessError, "no longer valid"],
    [301, "PermanentRedirect", { "x-amz-bucket-region": "eu-west-3" }, UsageError, "AWS_REGION=eu-west-3"],
    [307, "TemporaryRedirect", {}, UsageError, "AWS_REGION"],
    [400, "AuthorizationHeaderMalformed", { "x-amz-bucket-region": "eu-west-3" }, UsageError, "AWS_REGION=eu-west-3"],
    [405, "MethodNotAllowed", {}, StorageError, ""],
  ])("%i %s", async (status, code, headers, Kind, hint) => {
    await using it = await setUp(() => s3Error(status, code, headers as Record<string, string>));
    const error = await failure(() => it.store.get("a", 10));
    expect(error).toBeInstanceOf(Kind);
    expect(error.message).toBe('could not read "s3://bucket/a"');
    expect(String(error.detail)).toContain(`${status} ${code}`);
    expect(error.hint ?? "").toContain(hint);
    expect(it.server.requests).toHaveLength(1);
  });

  test("names the region that the body of a malformed header's refusal tells", async () => {
    await using it = await setUp(() => s3Error(400, "AuthorizationHeaderMalformed", {}, "<Region>eu-west-3</Region>"));
    expect((await failure(() => it.store.get("a", 10))).hint).toContain("AWS_REGION=eu-west-3");
  });
});

describe("what is not proved is not NotFoundError", () => {
  test.each([
    ["a proxy's page", () => answer(404, "<html>404 Not Found</html>")],
    ["an empty 404", () => answer(404, "")],
  ])("get() and head() of %s", async (_, page) => {
    await using it = await setUp(({ method }) => (method === "HEAD" ? answer(404) : page()));
    for (const request of [() => it.store.get("a", 1), () => it.store.head("a")]) {
      const error = await failure(request);
      expect(error).toBeInstanceOf(StorageError);
      expect(String(error.hint)).toContain("proves nothing");
    }
  });

  test("head() of a missing bucket, whose 404 has no body", async () => {
    await using it = await setUp(({ method }) => (method === "HEAD" ? answer(404) : s3Error(404, "NoSuchBucket")));
    expect(await failure(() => it.store.head("a"))).toBeInstanceOf(UsageError);
  });

  test("head() that cannot be confirmed", async () => {
    await using it = await setUp(({ method }) => (method === "HEAD" ? answer(404) : s3Error(503, "SlowDown")));
    expect(await failure(() => it.store.head("a"))).toBeInstanceOf(StorageError);
  });
});

test("an endpoint that never answers is given up after the deadline, and the message says so", async () => {
  await using it = await setUp(() => s3Error(503, "SlowDown"));
  const error = await failure(() => it.store.get("a", 10));
  expect(error).toBeInstanceOf(StorageError);
  expect(error.detail).toMatch(/^S3 answered 503 SlowDown: scripted SlowDown \(\d+ attempts in \d s\)\.$/);
  expect(it.waits.reduce((sum, ms) => sum + ms, 0)).toBeLessThanOrEqual(5000);
});

test("an endpoint at which nobody listens is a StorageError that names it", async () => {
  const unused = await startScriptedS3(() => undefined);
  await unused[Symbol.asyncDispose]();
  await using it = await setUp(() => OBJECT, { endpoint: unused.endpoint });
  const error = await failure(() => it.store.get("a", 10));
  expect(error).toBeInstanceOf(StorageError);
  expect(error.detail).toContain("ECONNREFUSED");
  expect(error.hint).toContain(unused.endpoint);
});

test("an object or an entry without a size is no answer, and no crash", async () => {
  const chunked = 'HTTP/1.1 200 OK\r\netag: "e"\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n';
  await using object = await setUp(() => chunked);
  expect(await failure(() => object.store.get("a", 10))).toBeInstanceOf(StorageError);
  const entry = "<Contents><Key>a</Key><Size>99999999999999999999</Size></Contents><IsTruncated>false</IsTruncated>";
  await using list = await setUp(() => answer(200, `<ListBucketResult>${entry}</ListBucketResult>`));
  const all = () => Array.fromAsync(list.store.list(""));
  expect(await failure(all)).toBeInstanceOf(StorageError);
});

test("a secret that a server echoes is not shown", async () => {
  // First the secret, or what hides the signature would hide it as well.
  const echo = `${SECRET} in Authorization: AWS4-HMAC-SHA256 Credential=key/20260101, Signature=abcdef`;
  await using it = await setUp(() => answer(403, `<Error><Code>AccessDenied</Code><Message>${echo}</Message></Error>`));
  const error = await failure(() => it.store.get("a", 10));
  expect(`${error.message} ${error.detail} ${error.hint}`).not.toMatch(/a-secret|abcdef|Credential=key/);
});

describe("stream()", () => {
  const content = Buffer.from("0123456789".repeat(1000));

  /** Sends so many bytes of each answer, then closes. */
  function cutting(bytesEach: number, etag = () => '"e1"'): Script {
    return ({ headers }, socket) => {
      const from = Number(/bytes=(\d+)-/.exec(headers["range"] ?? "")?.[1] ?? 0);
      const status = headers["range"] ? "206 Partial Content" : "200 OK";
      const range = headers["range"] ? `content-range: bytes ${from}-${content.length - 1}/${content.length}\r\n` : "";
      socket.write(`HTTP/1.1 ${status}\r\netag: ${etag()}\r\n${range}content-length: ${content.length - from}\r\n\r\n`);
      socket.end(content.subarray(from, from + bytesEach));
      return undefined;
    };
  }

  test("resumes at the byte where the connection broke, on the same version", async () => {
    await using it = await setUp(cutting(3000));
    expect(Buffer.concat(await readChunks(it.store, "a"))).toEqual(content);
    expect(it.server.requests.map(({ headers }) => headers["range"])).toEqual([
      undefined,
      "bytes=3000-",
      "bytes=6000-",
      "bytes=9000-",
    ]);
    expect(it.server.requests.slice(1).every(({ headers }) => headers["if-match"] === '"e1"')).toBe(true);
  });

  test("resumes when the body falls silent", async () => {
    await using it = await setUp((request, socket) => {
      if (request.number > 1) return cutting(content.length)(request, socket);
      socket.write(`HTTP/1.1 200 OK\r\netag: "e1"\r\ncontent-length: ${content.length}\r\n\r\n`);
      socket.write(content.subarray(0, 100));
      return undefined;
    }, SOON_SILENT);
    expect(Buffer.concat(await readChunks(it.store, "a"))).toEqual(content);
  });

  test("does not mix two versions: a changed object is an IntegrityError", async () => {
    await using it = await setUp((request, socket) =>
      request.number === 1 ? cutting(3000)(request, socket) : s3Error(412, "PreconditionFailed"),
    );
    expect(await failure(() => readChunks(it.store, "a"))).toBeInstanceOf(IntegrityError);
  });

  test("does not take the whole object for the rest of it", async () => {
    await using it = await setUp((request, socket) => {
      if (request.number === 1) return cutting(3000)(request, socket);
      return answer(200, content.toString(), { etag: '"e1"' });
    });
    const error = await failure(() => readChunks(it.store, "a"));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.detail).toContain("asked for the bytes from 3000 on");
  });

  test("of an object that is deleted while it is read is no NotFoundError: it was there", async () => {
    await using it = await setUp((request, socket) =>
      request.number === 1 ? cutting(3000)(request, socket) : s3Error(404, "NoSuchKey"),
    );
    const error = await failure(() => readChunks(it.store, "a"));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.detail).toContain("deleted while it was being read");
  });

  test("a reader that takes its time is not a silent server", async () => {
    await using it = await setUp(cutting(content.length), SOON_SILENT);
    let size = 0;
    for await (const chunk of (await it.store.open("a")).chunks) {
      await Bun.sleep(400);
      size += chunk.byteLength;
    }
    expect(size).toBe(content.length);
    expect(it.server.requests).toHaveLength(1);
  });
});

describe("a page that a proxy answers 200 with is no answer of the store", () => {
  /** Without an ETag, and no list. */
  const page = "HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n<h1>Welcome</h1>";
  test.each([
    ["putIfAbsent()", (store: ObjectStore) => store.putIfAbsent("a", new Uint8Array(1))],
    ["replace()", (store: ObjectStore) => store.replace("a", new Uint8Array(1))],
    ["get()", (store: ObjectStore) => store.get("a", 10)],
    ["head()", (store: ObjectStore) => store.head("a")],
    ["list()", (store: ObjectStore) => Array.fromAsync(store.list(""))],
    ["listLevel()", (store: ObjectStore) => store.listLevel("")],
  ])("%s", async (_, ask) => {
    await using it = await setUp(({ method }) => (method === "HEAD" ? page.replace("<h1>Welcome</h1>", "") : page));
    expect(await failure(() => ask(it.store))).toBeInstanceOf(StorageError);
    expect(it.waits.length).toBeGreaterThan(1);
  });
});

describe("putIfAbsent()", () => {
  test("sends the condition and no checksum that older services refuse", async () => {
    await using it = await setUp(() => answer(200));
    await it.store.putIfAbsent("a", new Uint8Array(5));
    const { headers } = it.server.requests[0] ?? { headers: {} as Record<string, string> };
    expect(headers["if-none-match"]).toBe("*");
    expect(headers["x-amz-content-sha256"]).toMatch(/^[0-9a-f]{64}$/);
    expect(Object.keys(headers).filter((name) => /checksum|trailer|content-encoding|expect/.test(name))).toEqual([]);
  });

  test.each([[412, "PreconditionFailed"]])("answers exists on %i %s", async (status, code) => {
    await using it = await setUp(() => s3Error(status, code));
    expect(await it.store.putIfAbsent("a", new Uint8Array(5))).toBe("exists");
    expect(it.server.requests).toHaveLength(1);
  });

  test("a stop ends it while it waits, with its reason", async () => {
    const stop = new AbortController();
    await using it = await setUp(() => undefined, { signal: stop.signal, idleTimeoutMs: 60_000 });
    const putting = it.store.putIfAbsent("a", new Uint8Array(1));
    putting.catch(() => {});
    await waitFor(() => it.server.requests.length > 0, { intervalMs: 1 });
    stop.abort(new Error("stopped"));
    await expect(putting).rejects.toThrow("stopped");
  });

  test("asks again after 409 ConditionalRequestConflict", async () => {
    await using it = await setUp(({ number }) =>
      number === 1 ? s3Error(409, "ConditionalRequestConflict") : answer(200),
    );
    expect(await it.store.putIfAbsent("a", new Uint8Array(5))).toBe("created");
  });

  test("names the setting when the store has no conditional writes", async () => {
    await using it = await setUp(() => s3Error(501, "NotImplemented"));
    const error = await failure(() => it.store.putIfAbsent("a", new Uint8Array(5)));
    expect(error).toBeInstanceOf(UsageError);
    expect(error.hint).toContain("WALB_S3_CONDITIONAL_WRITES=emulate");
  });

  test.each([
    // whose object is found after the answer got lost
    ["ours", "created"],
    ["another's", "exists"],
  ] as const)("whose first answer got lost finds %s object and answers %s", async (whose, expected) => {
    let writeId = "";
    await using it = await setUp(({ method, headers, number }, socket) => {
      if (method === "HEAD") {
        return answer(200, "", { "x-amz-meta-wal-b-write-id": whose === "ours" ? writeId : "somebody" });
      }
      if (number > 1) return s3Error(412, "PreconditionFailed");
      writeId = headers["x-amz-meta-wal-b-write-id"] ?? "";
      socket.resetAndDestroy();
      return undefined;
    });
    expect(await it.store.putIfAbsent("a", new Uint8Array(5))).toBe(expected);
  });

  test.each([
    // who made the object while the store was in trouble
    ["somebody", "exists"],
    ["ourselves", "created"],
  ] as const)(
    "on a store that heeds no condition, looks again before it sends again: made by %s",
    async (who, expected) => {
      let made: string | undefined;
      await using it = await setUp(
        ({ method, headers }) => {
          if (method === "PUT") {
            made = who === "somebody" ? who : headers["x-amz-meta-wal-b-write-id"];
            return s3Error(503, "SlowDown");
          }
          if (made === undefined) return method === "HEAD" ? answer(404) : s3Error(404, "NoSuchKey");
          return answer(200, "", { "x-amz-meta-wal-b-write-id": made });
        },
        { conditionalWrites: "emulate" },
      );
      expect(await it.store.putIfAbsent("a", new Uint8Array(5))).toBe(expected);
      expect(it.server.requests.filter(({ method }) => method === "PUT")).toHaveLength(1);
    },
  );

  test("whose answer comes before all of it was sent leaves no connection behind", async () => {
    const { createServer } = await import("node:net");
    let [opened, closed] = [0, 0];
    const hasty = createServer((socket) => {
      opened++;
      socket.on("error", () => {});
      socket.on("close", () => closed++);
      socket.once("data", () => {
        socket.pause();
        socket.write(s3Error(403, "AccessDenied"));
        // What comes late is read, so that only the other side can end it.
        setTimeout(() => socket.resume(), 200);
      });
    });
    await new Promise<void>((resolve) => hasty.listen(0, "127.0.0.1", resolve));
    const { port } = hasty.address() as { port: number };
    try {
      await using it = await setUp(() => OBJECT, { endpoint: `http://127.0.0.1:${port}` });
      await failure(() => it.store.putIfAbsent("a", new Uint8Array(16 * MiB)));
      expect(opened).toBe(1);
      await waitFor(() => closed === 1, { what: "the connection to be closed", timeoutMs: 5_000 });
    } finally {
      hasty.close();
    }
  });

  test("whose upload stalls is tried again", async () => {
    let connections = 0;
    const { createServer } = await import("node:net");
    const silent = createServer((socket) => {
      connections++;
      socket.on("error", () => {});
      socket.pause();
    });
    await new Promise<void>((resolve) => silent.listen(0, "127.0.0.1", resolve));
    const address = silent.address() as { port: number };
    const options = { ...SOON_SILENT, endpoint: `http://127.0.0.1:${address.port}`, retryDeadlineMs: 100 };
    await using it = await setUp(() => undefined, options);
    const error = await failure(() => it.store.putIfAbsent("a", new Uint8Array(32 * MiB)));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.detail).toContain("no byte came or went for 300 ms");
    expect(connections).toBeGreaterThan(1);
    silent.close();
  });
});

describe("upload()", () => {
  const begun = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";
  const completed = '<CompleteMultipartUploadResult><ETag>"x-2"</ETag></CompleteMultipartUploadResult>';

  /** @param complete  answers the n-th request to complete; writeId is the one the upload began with */
  function uploading(
    complete: (number: number, writeId: string) => string | undefined,
    head?: (writeId: string) => string,
  ): Script {
    let writeId = "";
    let completes = 0;
    return ({ method, target, headers }, socket) => {
      if (method === "POST" && target.includes("uploads")) {
        writeId = headers["x-amz-meta-wal-b-write-id"] ?? "";
        return answer(200, begun);
      }
      if (method === "PUT") return answer(200, "", { etag: '"p"' });
      if (method === "DELETE") return answer(204);
      if (method === "HEAD") return completes > 0 && head ? head(writeId) : answer(404);
      if (method === "GET") return s3Error(404, "NoSuchKey");
      const text = complete(++completes, writeId);
      if (text === undefined) socket.resetAndDestroy();
      return text;
    };
  }

  async function upload(store: ObjectStore): Promise<"created" | "exists"> {
    await using begunUpload = store.upload("a");
    await begunUpload.write(new Uint8Array(6 * MiB));
    return await begunUpload.complete();
  }

  test("is completed with the condition", async () => {
    await using it = await setUp(uploading(() => answer(200, completed)));
    expect(await upload(it.store)).toBe("created");
    expect(it.server.requests.at(-1)?.headers["if-none-match"]).toBe("*");
  });

  test("whose beginning got lost begins again, and tells that the first one may be left", async () => {
    const lines: string[] = [];
    const log = createLog((line) => lines.push(line), { format: "text", level: "info", now: () => new Date(0) });
    const ok = uploading(() => answer(200, completed));
    let begins = 0;
    const script: Script = (request, socket) => {
      if (request.method !== "POST" || !request.target.includes("uploads") || ++begins > 1) return ok(request, socket);
      socket.resetAndDestroy();
      return undefined;
    };
    await using it = await setUp(script, { log });
    expect(await upload(it.store)).toBe("created");
    expect(lines.join("\n")).toContain('WARNING: an upload of "s3://bucket/a" may have been begun and lost');
    expect(lines.join("\n")).toContain("wal-b delete garbage --confirm");
  });

  test("a 200 whose body is an error is no success", async () => {
    await using it = await setUp(
      uploading((number) => (number === 1 ? s3Error(200, "InternalError") : answer(200, completed))),
    );
    expect(await upload(it.store)).toBe("created");
    const completes = it.server.requests.filter(
      ({ method, target }) => method === "POST" && target.includes("uploadId"),
    );
    expect(completes).toHaveLength(2);
  });

  test("a 200 whose body is an error for good is given up, and the parts are taken back", async () => {
    await using it = await setUp(uploading(() => s3Error(200, "InternalError")));
    expect(await failure(() => upload(it.store))).toBeInstanceOf(StorageError);
    expect(it.server.requests.at(-1)?.method).toBe("DELETE");
  });

  test.each([
    // the second answer after a lost one
    ["404 NoSuchUpload", () => s3Error(404, "NoSuchUpload")],
    ["412 PreconditionFailed", () => s3Error(412, "PreconditionFailed")],
  ])("whose completion got lost finds its own object after %s", async (_, second) => {
    const script = uploading(
      (number) => (number === 1 ? undefined : second()),
      (writeId) => answer(200, "", { "x-amz-meta-wal-b-write-id": writeId }),
    );
    await using it = await setUp(script);
    expect(await upload(it.store)).toBe("created");
  });

  test("that somebody else aborted is lost, which is a StorageError, and not a success", async () => {
    await using it = await setUp(uploading(() => s3Error(404, "NoSuchUpload")));
    const lost = await failure(() => upload(it.store));
    expect(lost).toBeInstanceOf(UploadLostError);
    expect(lost).toBeInstanceOf(StorageError);
  });

  test("whose part is refused ends with that failure and takes the parts back", async () => {
    const ok = uploading(() => answer(200, completed));
    await using it = await setUp((request, socket) =>
      request.method === "PUT" && request.target.includes("partNumber=2")
        ? s3Error(403, "AccessDenied")
        : ok(request, socket),
    );
    expect(await failure(() => upload(it.store))).toBeInstanceOf(AccessError);
    // The other part is given up on the way, and may be seen after it.
    expect(it.server.requests.map(({ method }) => method)).toContain("DELETE");
  });
});

describe("a bucket with a default retention, which takes no body without Content-MD5", () => {
  const WORDS =
    "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
  const refusal = answer(400, `<Error><Code>InvalidRequest</Code><Message>${WORDS}</Message></Error>`);

  /** Answers what another script does, once a body came with its MD5. */
  function locked(then: Script): Script {
    return (request, socket) => {
      const { method, headers, body } = request;
      if (method !== "PUT") return then(request, socket);
      const md5 = headers["content-md5"];
      if (md5 === undefined) return refusal;
      return md5 === md5Of(body) ? then(request, socket) : s3Error(400, "BadDigest");
    };
  }
  const body = Buffer.from("of a segment");

  test.each([
    ["putIfAbsent()", (store: ObjectStore) => store.putIfAbsent("a", body)],
    ["replace()", (store: ObjectStore) => store.replace("a", body)],
  ])("%s sends it from the first refusal on", async (_, put) => {
    await using it = await setUp(
      locked(() => answer(200)),
      { retryDeadlineMs: 0 },
    );
    await put(it.store);
    await put(it.store);
    const md5s = it.server.requests.map(({ headers }) => headers["content-md5"]);
    expect(md5s).toEqual([undefined, md5Of(body), md5Of(body)]);
  });

  test("the condition and the customer's key stay", async () => {
    await using it = await setUp(
      locked(() => s3Error(412, "PreconditionFailed")),
      { customerKey: new Uint8Array(32) },
    );
    expect(await it.store.putIfAbsent("a", body)).toBe("exists");
    expect(it.server.requests).toHaveLength(2);
    for (const { headers } of it.server.requests) {
      expect(headers["if-none-match"]).toBe("*");
      expect(headers["x-amz-server-side-encryption-customer-algorithm"]).toBe("AES256");
    }
  });

  test("where the condition is emulated, it is looked again before it is sent again", async () => {
    let isTaken = false;
    await using it = await setUp(
      ({ method }) => {
        if (method === "HEAD")
          return isTaken ? answer(200, "", { "x-amz-meta-wal-b-write-id": "another" }) : answer(404);
        if (method === "GET") return s3Error(404, "NoSuchKey");
        isTaken = true;
        return refusal;
      },
      { conditionalWrites: "emulate" },
    );
    expect(await it.store.putIfAbsent("a", body)).toBe("exists");
    expect(it.server.requests.filter(({ method }) => method === "PUT")).toHaveLength(1);
  });

  test("parts that are sent side by side are all sent again", async () => {
    const script = locked(({ method, target }) => {
      if (method === "PUT") return answer(200, "", { etag: '"p"' });
      if (method === "HEAD") return answer(404);
      if (method === "GET") return s3Error(404, "NoSuchKey");
      if (target.includes("uploadId"))
        return answer(200, '<CompleteMultipartUploadResult><ETag>"x-3"</ETag></CompleteMultipartUploadResult>');
      return answer(200, "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>");
    });
    await using it = await setUp(script);
    await using upload = it.store.upload("a");
    await upload.write(new Uint8Array(11 * MiB));
    expect(await upload.complete()).toBe("created");
    const sent = it.server.requests.filter(({ method, headers }) => method === "PUT" && headers["content-md5"]);
    expect(sent.map(({ target }) => /partNumber=\d/.exec(target)?.[0]).sort()).toEqual([
      "partNumber=1",
      "partNumber=2",
      "partNumber=3",
    ]);
  });

  test("that refuses it all the same is asked once more, and not again", async () => {
    await using it = await setUp(() => refusal);
    const error = await failure(() => it.store.putIfAbsent("a", body));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.detail).toContain(WORDS);
    expect(it.server.requests).toHaveLength(2);
  });
});

describe("list()", () => {
  const page = (keys: readonly string[], next?: string) =>
    answer(
      200,
      `<ListBucketResult><IsTruncated>${next !== undefined}</IsTruncated>${next === undefined ? "" : `<NextContinuationToken>${next}</NextContinuationToken>`}${keys
        .map(
          (key) =>
            `<Contents><Key>${key}</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>`,
        )
        .join("")}</ListBucketResult>`,
    );

  test("goes from page to page", async () => {
    await using it = await setUp(({ number }) => (number === 1 ? page(["a"], "t1") : page(["b"])));
    expect((await Array.fromAsync(it.store.list(""))).map(({ key }) => key)).toEqual(["a", "b"]);
    expect(it.server.requests[1]?.target).toContain("continuation-token=t1");
  });

  test.each([
    ["repeats a page for ever", () => page(["a"], "t1")],
    ["lists out of order", () => page(["b", "a"])],
    ["lists what was not asked for", () => page(["elsewhere"])],
    ["goes on without saying where", () => page(["a"], "")],
  ])("refuses a store that %s", async (_, script) => {
    await using it = await setUp(script);
    const prefix = _.includes("asked") ? "wal/" : "";
    expect(await failure(() => Array.fromAsync(it.store.list(prefix)))).toBeInstanceOf(StorageError);
    expect(it.server.requests.length).toBeLessThan(4);
  });

  test("does not take no such key for absence: an endpoint with the bucket's name in it says so of everything", async () => {
    await using it = await setUp(() => s3Error(404, "NoSuchKey"));
    for (const work of [
      () => Array.fromAsync(it.store.list("")),
      () => it.store.listLevel(""),
      () => Array.fromAsync(it.store.listUnfinishedUploads("")),
    ]) {
      const error = await failure(work);
      expect(error).toBeInstanceOf(StorageError);
      expect(error.message).toStartWith("could not list ");
      expect(error.detail).toContain("S3 answered 404 NoSuchKey");
    }
    expect(it.server.requests).toHaveLength(3);
  });

  test("is empty when the store says so", async () => {
    await using it = await setUp(() => EMPTY_LIST);
    expect(await Array.fromAsync(it.store.list(""))).toEqual([]);
  });
});

describe("abortUpload()", () => {
  const upload = { key: "a", uploadId: "u1", initiated: new Date(0) };

  test("asks what a 200 that is no 204 has done", async () => {
    let isThere = true;
    const script: Script = ({ method, number }) => {
      if (method === "DELETE" && number > 1) isThere = false;
      if (method === "DELETE") return answer(200, "<h1>Welcome</h1>");
      return isThere ? answer(200, "<ListPartsResult></ListPartsResult>") : s3Error(404, "NoSuchUpload");
    };
    await using it = await setUp(script);
    await it.store.abortUpload(upload);
    expect(it.server.requests.map(({ method }) => method)).toEqual(["DELETE", "GET", "DELETE", "GET"]);
  });
});

test("where unfinished uploads may not be listed or aborted, the hint names the permissions for that", async () => {
  await using it = await setUp(() => s3Error(403, "AccessDenied"));
  const upload = { key: "a", uploadId: "u1", initiated: new Date(0) };
  for (const work of [
    () => Array.fromAsync(it.store.listUnfinishedUploads("")),
    () => it.store.abortUpload(upload),
    () => it.store.forCleanup().abortUpload(upload),
  ]) {
    const error = await failure(work);
    expect(error).toBeInstanceOf(AccessError);
    expect(error.hint).toContain("s3:ListBucketMultipartUploads");
    expect(error.hint).toContain("s3:AbortMultipartUpload");
    expect(error.hint).not.toContain("s3:GetObject");
  }
});

test("a page of a proxy is no list of uploads", async () => {
  await using it = await setUp(() => answer(200, "<h1>Welcome</h1>"));
  const error = await failure(() => Array.fromAsync(it.store.listUnfinishedUploads("")));
  expect(error).toBeInstanceOf(StorageError);
  expect(error.detail).toContain("the answer is no list of uploads");
});

describe("delete()", () => {
  const DELETED_A = "<Deleted><Key>a</Key></Deleted>";
  const deleted = (request: Buffer) =>
    `<DeleteResult>${[...request.toString().matchAll(/<Key>.*?<\/Key>/g)].map(([key]) => `<Deleted>${key}</Deleted>`).join("")}</DeleteResult>`;

  test.each([
    ["a page of a proxy", "<h1>Welcome</h1>"],
    ["nothing", "<DeleteResult></DeleteResult>"],
    ["one of the two", `<DeleteResult>${DELETED_A}</DeleteResult>`],
  ])("asks again when a 200 names %s", async (_, text) => {
    await using it = await setUp(({ body, number }) => answer(200, number === 1 ? text : deleted(body)));
    await it.store.delete(["a", "b"]);
    expect(it.server.requests).toHaveLength(2);

    await using always = await setUp(() => answer(200, text));
    const error = await failure(() => always.store.delete(["a", "b"]));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.detail).toContain(`the answer does not say what became of "${text.includes(DELETED_A) ? "b" : "a"}"`);
  });

  test("key by key, asks what a 200 that is no 204 has done", async () => {
    let isThere = true;
    const script: Script = ({ method, number }) => {
      if (method === "POST") return s3Error(501, "NotImplemented");
      if (method === "DELETE" && number > 2) isThere = false;
      if (method === "DELETE") return answer(200, "<h1>Welcome</h1>");
      if (method === "HEAD") return isThere ? answer(200, "", { etag: '"e1"' }) : answer(404);
      return s3Error(404, "NoSuchKey");
    };
    await using it = await setUp(script);
    await it.store.delete(["a"]);
    const methods = it.server.requests.map(({ method }) => method);
    expect(methods).toEqual(["POST", "DELETE", "HEAD", "DELETE", "HEAD", "GET"]);
  });

  test("sends what every service understands, 1,000 keys at most", async () => {
    await using it = await setUp(({ body }) => answer(200, deleted(body)));
    await it.store.delete(Array.from({ length: 1001 }, (_, index) => `k${index}`));
    expect(it.server.requests).toHaveLength(2);
    for (const { headers, body } of it.server.requests) {
      expect(headers["content-md5"]).toBe(md5Of(body));
      // AWS and Scality answer 400 to this header without an x-amz-checksum-, Backblaze B2 to the header itself.
      expect(headers["x-amz-sdk-checksum-algorithm"]).toBeUndefined();
      expect(headers["authorization"]).not.toContain("checksum");
    }
  });

  test("takes a refused key in a 200 for a failure that names it", async () => {
    const refusal = "<Error><Key>b</Key><Code>AccessDenied</Code><Message>no</Message></Error>";
    await using it = await setUp(() => answer(200, `<DeleteResult>${DELETED_A}${refusal}</DeleteResult>`));
    const error = await failure(() => it.store.delete(["a", "b"]));
    expect(error).toBeInstanceOf(AccessError);
    expect(error.message).toBe("could not delete 1 of 2 objects");
    expect(error.detail).toContain('"s3://bucket/b" (AccessDenied: no)');
  });

  test.each([
    [501, "NotImplemented"],
    [405, "MethodNotAllowed"],
    [400, "InvalidRequest"],
    [400, "InvalidArgument"],
  ])("goes key by key where a batch is answered with %i %s", async (status, code) => {
    await using it = await setUp(({ method }) => (method === "POST" ? s3Error(status, code) : answer(204)));
    await it.store.delete(["a", "b"]);
    expect(it.server.requests.map(({ method, target }) => `${method} ${target.split("?")[0]}`)).toEqual([
      "POST /bucket/",
      "DELETE /bucket/a",
      "DELETE /bucket/b",
    ]);
  });

  test("key by key, a key that is refused as the batch was is a failure", async () => {
    await using it = await setUp(() => s3Error(400, "InvalidRequest"));
    const error = await failure(() => it.store.delete(["a"]));
    expect(error).toBeInstanceOf(StorageError);
    expect(error.message).toBe('could not delete "s3://bucket/a"');
    expect(it.server.requests.map(({ method }) => method)).toEqual(["POST", "DELETE"]);
  });

  test.each([
    [503, "SlowDown", StorageError],
    [403, "AccessDenied", AccessError],
    [400, "ExpiredToken", AccessError],
  ])("does not go key by key after %i %s", async (status, code, Kind) => {
    await using it = await setUp(() => s3Error(status, code));
    expect(await failure(() => it.store.delete(["a"]))).toBeInstanceOf(Kind);
    expect(it.server.requests.filter(({ method }) => method === "DELETE")).toEqual([]);
  });
});

test("one connection serves requests that follow each other", async () => {
  await using it = await setUp(() => OBJECT);
  for (let round = 0; round < 5; round++) await it.store.get("a", 10);
  expect(it.server.requests.map(({ connection }) => connection)).toEqual([1, 1, 1, 1, 1]);
});

test("a connection that the server closed while it was idle costs no failure", async () => {
  await using it = await setUp((_, socket) => {
    setTimeout(() => socket.destroy(), 10);
    return OBJECT;
  });
  for (let round = 0; round < 3; round++) {
    expect((await it.store.get("a", 10)).body).toHaveLength(5);
    await Bun.sleep(50);
  }
});

test("a stop ends a request that waits, with its reason", async () => {
  const stopping = new AbortController();
  await using it = await setUp(() => undefined, { signal: stopping.signal, idleTimeoutMs: 60_000 });
  const reason = new Error("stopped");
  setTimeout(() => stopping.abort(reason), 50);
  const before = performance.now();
  expect(await it.store.get("a", 10).catch((error) => error)).toBe(reason);
  expect(performance.now() - before).toBeLessThan(2000);
});
