/** wal-push and wal-fetch against real S3 servers: two at once, and every way in which the store says no. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { HeadObjectCommand } from "@aws-sdk/client-s3";
import { baseEnvironment } from "../support/run-program.ts";
import { archivedInBucket, bucketListing, s3Environment } from "../support/s3-archive.ts";
import { everyS3Server, type S3Server, s3ClientOf } from "../support/s3-server.ts";
import { Site } from "../support/site.ts";
import { startTcpProxy } from "../support/tcp-proxy.ts";
import { MiB, walContent } from "../support/wal-content.ts";

const A = "000000010000000000000001";
const B = "000000010000000000000002";
const DESTINATION = "pg_wal/RECOVERYXLOG";

// The tests are made from the list of servers, so it must be there before them.
const { servers, stop } = await everyS3Server();
afterAll(stop);

const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;
const sha256 = (content: Uint8Array) => createHash("sha256").update(content).digest("hex");

describe.each(servers.map((server) => ({ name: server.name, server })))("on $name", ({ server }) => {
  let bucket: string;
  beforeAll(async () => {
    bucket = await server.createBucket();
  });

  test("a segment is one object with its SHA-256, archived once, and fetched again byte for byte", async () => {
    const own = await server.createBucket();
    const env = s3Environment(server, own);
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    const push = () => site.walb(["wal-push", `pg_wal/${A}`], { env });
    expect(await push()).toMatchObject({ exitCode: 0, stderr: `wal-b: INFO: archived "${A}"\n` });
    const first = await bucketListing(server, own);
    expect(Object.keys(first)).toEqual([`some/path/wal_005/${A}.zst`]);
    expect(same(await archivedInBucket(server, own, A), content)).toBe(true);
    const client = s3ClientOf(server);
    const { Metadata } = await client.send(new HeadObjectCommand({ Bucket: own, Key: `some/path/wal_005/${A}.zst` }));
    client.destroy();
    expect(Metadata).toMatchObject({ sha256: sha256(content), size: String(16 * MiB) });

    expect(await push()).toMatchObject({
      exitCode: 0,
      stderr: `wal-b: INFO: "${A}" was already archived with the same content\n`,
    });
    await site.segment(A, { sizeBytes: 16 * MiB, fill: 8 });
    expect(await push()).toMatchObject({ exitCode: 65 });
    expect(await bucketListing(server, own)).toEqual(first);

    expect(await site.walb(["wal-fetch", A, DESTINATION], { env })).toMatchObject({ exitCode: 0 });
    expect(same(await Bun.file(join(site.data, DESTINATION)).bytes(), content)).toBe(true);
    await site.write("recovery.signal");
    expect(await site.walb(["wal-fetch", B, DESTINATION], { env })).toMatchObject({ exitCode: 74 });
  });

  test.each([1, 2, 3])("two push the same content at once: both succeed (round %i)", async () => {
    const own = await server.createBucket();
    const env = s3Environment(server, own);
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    const push = () => site.walb(["wal-push", `pg_wal/${A}`], { env });
    const results = await Promise.all([push(), push()]);
    expect(results.map(({ exitCode, stderr }) => [exitCode, exitCode ? stderr : ""])).toEqual([
      [0, ""],
      [0, ""],
    ]);
    expect(same(await archivedInBucket(server, own, A), content)).toBe(true);
  });

  test.each([1, 2, 3])("two push different content at once: one wins and the other is refused (round %i)", async () => {
    const own = await server.createBucket();
    const env = s3Environment(server, own);
    await using site = await Site.create();
    const contents = [
      await site.segment(A, { sizeBytes: 16 * MiB }),
      walContent(A, { sizeBytes: 16 * MiB, fill: 9 }),
    ] as const;
    await mkdir(join(site.directory, "other"));
    const other = join(site.directory, "other", A);
    await writeFile(other, contents[1]);
    const results = await Promise.all([`pg_wal/${A}`, other].map((path) => site.walb(["wal-push", path], { env })));
    const codes = results.map(({ exitCode }) => exitCode);
    expect(codes.toSorted(), results.map(({ stderr }) => stderr).join("")).toEqual([0, 65]);
    expect(same(await archivedInBucket(server, own, A), contents[codes.indexOf(0)] as Uint8Array)).toBe(true);
  });

  test("killed at any moment, and run again: the segment is archived, whole", async () => {
    const own = await server.createBucket();
    const env = s3Environment(server, own);
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    for (const afterMs of [40, 70, 100, 130, 160]) {
      const given = Object.entries({ ...baseEnvironment(), ...site.env, ...env }).filter(
        ([, value]) => value !== undefined,
      );
      const child = spawn(site.program, ["wal-push", `pg_wal/${A}`], {
        cwd: site.data,
        env: Object.fromEntries(given) as Record<string, string>,
        stdio: "ignore",
      });
      const exited = new Promise((resolve) => child.once("exit", resolve));
      await Bun.sleep(afterMs);
      child.kill("SIGKILL");
      await exited;
    }
    expect(await site.walb(["wal-push", `pg_wal/${A}`], { env })).toMatchObject({ exitCode: 0 });
    expect(Object.keys(await bucketListing(server, own))).toEqual([`some/path/wal_005/${A}.zst`]);
    expect(same(await archivedInBucket(server, own, A), content)).toBe(true);
  });

  describe("says no", () => {
    interface Refusal {
      readonly what: string;
      readonly env: (server: S3Server) => Readonly<Record<string, string | undefined>>;
      readonly exitCode: number;
      /** Of what S3 says, only the code is the same everywhere. */
      readonly detail: RegExp;
      readonly hint: RegExp;
    }
    const refusals: readonly Refusal[] = [
      {
        what: "an access key that is unknown",
        env: () => ({ AWS_ACCESS_KEY_ID: "AKIANOBODY" }),
        exitCode: 77,
        detail: /^S3 answered 403 InvalidAccessKeyId/,
        hint: /^The store does not know this access key; check AWS_ACCESS_KEY_ID, and the endpoint\.$/,
      },
      {
        what: "a secret that is wrong, and is not shown",
        env: () => ({ AWS_SECRET_ACCESS_KEY: "hunter2hunter2hunter2" }),
        exitCode: 77,
        detail: /^S3 answered 403 SignatureDoesNotMatch/,
        hint: /^Check AWS_SECRET_ACCESS_KEY; a proxy that changes requests has the same effect\.$/,
      },
      {
        what: "a bucket that is not there, which is no absence",
        env: () => ({ WALB_S3_PREFIX: "s3://wal-b-no-such-bucket/some/path" }),
        exitCode: 64,
        detail: /^S3 answered 404 NoSuchBucket/,
        hint: /^Check the bucket's name in the prefix: "wal-b-no-such-bucket" does not exist at http/,
      },
    ];
    test.each(refusals)("$what", async ({ env, exitCode, detail, hint }) => {
      await using site = await Site.create();
      await site.waiting(A);
      await site.waiting(B);
      const before = [await site.listing(), await bucketListing(server, bucket)];
      const all = { ...s3Environment(server, bucket), ...env(server) };
      const refused = async (args: readonly string[], code: number) => {
        const result = await site.walb(args, { env: all });
        expect(result.exitCode, result.stderr).toBe(code);
        const errors = result.stderr.split(/^(?=wal-b: )/m).filter((record) => record.startsWith("wal-b: ERROR"));
        expect(errors).toHaveLength(1);
        const [message, first, second] = (errors[0] as string).trimEnd().split("\n");
        expect(message).toMatch(/^wal-b: ERROR: could not \w+ "s3:\/\//);
        expect(first?.replace("  DETAIL: ", "")).toMatch(detail);
        expect(second?.replace("  HINT: ", "")).toMatch(hint);
        expect(result.stderr).not.toContain("hunter2");
        expect(result.stderr).not.toContain(server.secretAccessKey);
      };
      await refused(["wal-push", "-p", "1", `pg_wal/${A}`], exitCode);
      await refused(["wal-fetch", A, DESTINATION], exitCode);
      await refused(["backup-list"], exitCode);
      await refused(["delete", "everything", "FORCE", "--confirm"], exitCode);
      expect([await site.listing(), await bucketListing(server, bucket)]).toEqual(before);
      await site.write("recovery.signal");
      await refused(["wal-fetch", A, DESTINATION], 200);
      expect(await readdir(join(site.data, "pg_wal"))).not.toContain("RECOVERYXLOG");
    });

    test("a connection that is cut, and refused, until the deadline; and then succeeds", async () => {
      await using site = await Site.create();
      await using proxy = await startTcpProxy(server.endpoint);
      const own = await server.createBucket();
      await site.segment(A);
      const env = { ...s3Environment(server, own), AWS_ENDPOINT_URL: proxy.url };
      await proxy.close();
      const start = performance.now();
      const refused = await site.walb(["wal-push", `pg_wal/${A}`], { env });
      expect(refused.exitCode).toBe(69);
      expect(refused.stderr).toContain(`HINT: Check that ${proxy.url} can be reached from this machine.\n`);
      expect(performance.now() - start).toBeLessThan(8000);
      await proxy.open();
      expect(await site.walb(["wal-push", `pg_wal/${A}`], { env })).toMatchObject({ exitCode: 0 });
      expect(Object.keys(await bucketListing(server, own))).toEqual([`some/path/wal_005/${A}.zst`]);
    });

    test("a store that comes back within the deadline is not noticed", async () => {
      await using site = await Site.create();
      await using proxy = await startTcpProxy(server.endpoint);
      const own = await server.createBucket();
      const content = await site.segment(A);
      const env = { ...s3Environment(server, own), AWS_ENDPOINT_URL: proxy.url, WALB_RETRY_DEADLINE: "20s" };
      await proxy.close();
      const pushing = site.walb(["wal-push", `pg_wal/${A}`], { env });
      await Bun.sleep(700);
      await proxy.open();
      expect(await pushing).toMatchObject({ exitCode: 0 });
      expect(same(await archivedInBucket(server, own, A), content)).toBe(true);
    });
  });
});
