/** S3 keeps the promises, on every real server this machine can run; and what only S3 has. */
import { afterAll, describe, expect, test } from "bun:test";
import { ListMultipartUploadsCommand, ListObjectVersionsCommand } from "@aws-sdk/client-s3";
import { AccessError, NotFoundError, UsageError } from "../../src/errors.ts";
import type { ObjectStore } from "../../src/storage/object-store.ts";
import { openS3Store, type S3StoreOptions } from "../../src/storage/s3.ts";
import { createLog, type Log } from "../../src/system/log.ts";
import { readChunks } from "../support/read-chunks.ts";
import { everyS3Server, type S3Credentials, type S3Server, s3ClientOf } from "../support/s3-server.ts";
import { objectStoreContract } from "./object-store.contract.ts";

const MiB = 1024 * 1024;
const { servers, stop } = await everyS3Server();
afterAll(stop);

for (const server of servers) {
  const bucket = await server.createBucket();
  let opened = 0;

  const open = (bucketName: string, options: Partial<S3StoreOptions> = {}, credentials: S3Credentials = server) =>
    openS3Store({
      bucket: bucketName,
      prefix: `prefix ${opened++}/of a test`,
      endpoint: server.endpoint,
      region: server.region,
      ...credentialsOf(credentials),
      partSizeBytes: 5 * MiB,
      partsInFlight: 3,
      retryDeadlineMs: 10_000,
      signal: new AbortController().signal,
      log: recordingLog([]),
      ...options,
    });

  objectStoreContract({
    name: `S3 (${server.name})`,
    metadata: "kept",
    showsUploadAfterBytes: 5 * MiB,
    open: () => open(bucket),
  });
  describe(`S3 only: ${server.name}`, () => {
    test("a missing bucket is a usage error for every request, and never NotFoundError", async () => {
      await using store = await open("wal-b-no-such-bucket");
      await eachRequest(store, async (request) => {
        const error = await failure(request);
        expect(error).toBeInstanceOf(UsageError);
        expect(String(error.detail)).toContain("NoSuchBucket");
        expect(String(error.hint)).toContain('"wal-b-no-such-bucket" does not exist');
      });
    });

    test("a wrong secret is an access error for every request, and never shown", async () => {
      const secretAccessKey = "this-is-not-the-secret-of-anybody";
      await using store = await open(bucket, {}, { ...server, secretAccessKey });
      await eachRequest(store, async (request) => {
        const error = await failure(request);
        expect(error).toBeInstanceOf(AccessError);
        expect(`${error.message} ${error.detail} ${error.hint}`).not.toContain(secretAccessKey);
      });
    });

    test("credentials without the right to delete write, read and list, and are refused to delete", async () => {
      const ownBucket = await server.createBucket();
      await using store = await open(ownBucket, { prefix: "" }, await server.createRestrictedUser(ownBucket));
      expect(await store.putIfAbsent("a", new Uint8Array([1]))).toBe("created");
      expect(await store.putIfAbsent("a", new Uint8Array([2]))).toBe("exists");
      expect([...(await store.get("a", 1)).body]).toEqual([1]);
      await expect(store.get("missing", 1)).rejects.toThrow(NotFoundError);
      await expect(store.head("missing")).rejects.toThrow(NotFoundError);

      await using upload = store.upload("large");
      await upload.write(new Uint8Array(6 * MiB));
      expect(await upload.complete()).toBe("created");

      const refused = await failure(() => store.delete(["a", "large"]));
      expect(refused).toBeInstanceOf(AccessError);
      expect(String(refused.detail)).toContain(store.urlOf("a"));
      expect((await Array.fromAsync(store.list(""))).map(({ key }) => key)).toEqual(["a", "large"]);
    });

    test("an abort that is refused becomes a warning that names the key and the remedy", async () => {
      const ownBucket = await server.createBucket();
      const lines: string[] = [];
      await using store = await open(
        ownBucket,
        { prefix: "", log: recordingLog(lines) },
        await server.createRestrictedUser(ownBucket),
      );
      {
        await using upload = store.upload("large");
        await upload.write(new Uint8Array(6 * MiB));
      }
      expect(await unfinished(server, ownBucket)).toEqual(["large"]);
      expect(lines).toHaveLength(1);
      expect(lines[0]).toContain(`could not abort the upload of "s3://${ownBucket}/large"`);
      expect(lines[0]).toContain("delete garbage");
    });

    test("a second writer makes no version in a versioned bucket", async () => {
      const ownBucket = await server.createBucket({ versioned: true });
      // RGW 16.2 ignores If-None-Match in versioned buckets (measured): there it has to be emulated.
      const conditionalWrites = server.name === "ceph-rgw" ? "emulate" : "require";
      await using store = await open(ownBucket, { prefix: "", conditionalWrites });
      expect(await store.putIfAbsent("a", new Uint8Array([1]))).toBe("created");
      expect(await store.putIfAbsent("a", new Uint8Array([2]))).toBe("exists");
      await using upload = store.upload("a");
      await upload.write(new Uint8Array(6 * MiB));
      expect(await upload.complete()).toBe("exists");

      const client = s3ClientOf(server);
      const { Versions = [] } = await client.send(new ListObjectVersionsCommand({ Bucket: ownBucket }));
      expect(Versions.map(({ Key }) => Key)).toEqual(["a"]);
      client.destroy();
    });

    test("emulated conditional writes answer created once and exists afterwards, small and large", async () => {
      await using store = await open(bucket, { conditionalWrites: "emulate" });
      for (const size of [1, 6 * MiB]) {
        const write = async () => {
          await using upload = store.upload(`size-${size}`);
          await upload.write(new Uint8Array(size));
          return await upload.complete();
        };
        expect(await write()).toBe("created");
        expect(await write()).toBe("exists");
        expect(await store.putIfAbsent(`size-${size}`, new Uint8Array([2]))).toBe("exists");
      }
    });

    test("a stop by signal ends an upload with its reason and takes its parts back", async () => {
      const ownBucket = await server.createBucket();
      const stopping = new AbortController();
      const reason = new Error("stopped by a test");
      await using store = await open(ownBucket, { prefix: "", signal: stopping.signal });
      const attempt = async () => {
        await using upload = store.upload("large");
        await upload.write(new Uint8Array(6 * MiB));
        stopping.abort(reason);
        await upload.write(new Uint8Array(6 * MiB));
        await upload.complete();
      };
      expect(await attempt().catch((error) => error)).toBe(reason);
      expect(await store.get("large", 1).catch((error) => error)).toBe(reason);
      expect(await unfinished(server, ownBucket)).toEqual([]);
    });
  });
}

test("at least one real server was tested", () => {
  expect(servers.length).toBeGreaterThan(0);
});

function credentialsOf({ accessKeyId, secretAccessKey, sessionToken }: S3Credentials): S3Credentials {
  return { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) };
}

function recordingLog(lines: string[]): Log {
  return createLog((line) => lines.push(line), { format: "text", level: "warning", now: () => new Date(0) });
}

async function eachRequest(
  store: ObjectStore,
  check: (request: () => Promise<unknown>) => Promise<void>,
): Promise<void> {
  const key = "a";
  await check(() => store.get(key, 1));
  await check(() => store.head(key));
  await check(() => readChunks(store, key));
  await check(() => store.putIfAbsent(key, new Uint8Array(1)));
  await check(() => store.replace(key, new Uint8Array(1)));
  await check(() => Array.fromAsync(store.list("")));
  await check(() => store.listLevel(""));
  await check(() => Array.fromAsync(store.listUnfinishedUploads("")));
  await check(() => store.delete([key]));
  await check(async () => {
    await using upload = store.upload(key);
    await upload.write(new Uint8Array(6 * MiB));
    await upload.complete();
  });
}

async function failure(request: () => Promise<unknown>): Promise<Error & { detail?: string; hint?: string }> {
  try {
    await request();
  } catch (error) {
    return error as Error;
  }
  throw new Error("it did not fail");
}

async function unfinished({ ...server }: S3Server, Bucket: string): Promise<(string | undefined)[]> {
  const client = s3ClientOf(server);
  try {
    const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket }));
    return Uploads.map(({ Key }) => Key);
  } finally {
    client.destroy();
  }
}
