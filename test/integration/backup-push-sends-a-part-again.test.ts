/** What happens to one part's upload costs that part, and not the backup. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { AbortMultipartUploadCommand, ListMultipartUploadsCommand } from "@aws-sdk/client-s3";
import { contentOf, fetchBackup, recover, startArchiving } from "../support/backups.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { answersWith, faultNamed, s3Error } from "../support/faults.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import { anyS3Server, s3ClientOf } from "../support/s3-server.ts";
import { runWalb } from "../support/walb.ts";

let s3: Awaited<ReturnType<typeof anyS3Server>>;
let proxy: FaultProxy;
let repository: TestRepository;
let throughProxy: Readonly<Record<string, string>>;
let server: PostgresServer;
beforeAll(async () => {
  s3 = await anyS3Server();
  proxy = await startFaultProxy(s3.server.endpoint);
  repository = await s3Repository(s3.server);
  // WAL goes straight to the store.
  server = await startArchiving(repository.env, { major: 17 });
  throughProxy = {
    ...repository.env,
    AWS_ENDPOINT_URL_S3: proxy.url,
    WALB_S3_MAX_PART_SIZE: "5MB",
    WALB_UPLOAD_CONCURRENCY: "1",
  };
  await server.query(`
    CREATE TABLE noise (id int, bytes bytea); ALTER TABLE noise ALTER bytes SET STORAGE EXTERNAL;
    INSERT INTO noise SELECT n, sha256(n::text::bytea) || sha256((-n)::text::bytea) FROM generate_series(1, 170000) n`);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await proxy?.[Symbol.asyncDispose]();
  await s3?.stop();
});

const PART = /^PUT \S+\/part_001\.tar\.zst$/;
const isPart = (request: string) => PART.test(request);

async function push(args: readonly string[] = []) {
  const { exitCode, stdout, stderr } = await runWalb(["backup-push", server.dataDirectory, "--json", ...args], {
    as: server,
    env: throughProxy,
    timeoutMs: 100_000,
  });
  const pushed = (stdout === "" ? undefined : JSON.parse(stdout)) as
    | { name: string; compressedBytes: number }
    | undefined;
  return { exitCode, stderr, pushed, partsSent: proxy.requests.filter(isPart).length };
}

/** Of the data directory, as many as are sent when nothing happens. */
let partsNeeded = 0;

test("without a fault each part of the upload is sent once", async () => {
  await proxy.arm();
  const { exitCode, partsSent, pushed } = await push();
  expect(exitCode).toBe(0);
  partsNeeded = partsSent;
  expect(partsNeeded).toBeLessThanOrEqual(Math.ceil((pushed?.compressedBytes ?? 0) / (5 * 2 ** 20)));
  expect(partsNeeded).toBeGreaterThan(1);
});

test("a connection that is cut in the middle of one costs that one", async () => {
  await proxy.arm(faultNamed("half a request"), { only: isPart, from: 2, times: 1 });
  const { exitCode, stderr, partsSent } = await push();
  expect({ exitCode, answered: proxy.answered, partsSent }).toEqual({
    exitCode: 0,
    answered: 1,
    partsSent: partsNeeded + 1,
  });
  expect(stderr).not.toContain("is lost");
});

test("an upload that somebody aborts is packed and made again, and every row is restored", async () => {
  const client = s3ClientOf(s3.server);
  const [, Bucket = ""] = /^s3:\/\/([^/]+)/.exec(repository.env["WALE_S3_PREFIX"] ?? "") ?? [];
  // While its second part is on the way.
  const abort = async () => {
    const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket }));
    for (const { Key, UploadId } of Uploads)
      await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }));
  };
  await proxy.arm(
    async (exchange) => {
      await abort();
      await exchange.send(await exchange.pass());
    },
    { only: isPart, from: 2, times: 1 },
  );
  const { exitCode, stderr, pushed, partsSent } = await push();
  client.destroy();
  expect(stderr).toContain(
    'WARNING: the upload of "part_001.tar.zst" is lost, and is made again\n  DETAIL: S3 answered 404 NoSuchUpload',
  );
  expect({ exitCode, answered: proxy.answered }).toEqual({ exitCode: 0, answered: 1 });
  expect(partsSent).toBeGreaterThan(partsNeeded);
  expect(stderr).toMatch(/finished at .*: \d+ files/);

  const directory = `${server.directory}/restored`;
  await fetchBackup(server, repository.env, { directory, name: pushed?.name ?? "" });
  await using recovered = await recover(directory, repository.env);
  expect(await contentOf(recovered)).toEqual(await contentOf(server));
});

test("one that is lost again and again ends the backup after three times, and nothing is listed", async () => {
  await proxy.arm(answersWith(s3Error(404, "NoSuchUpload")), { only: isPart });
  const { exitCode, stderr } = await push();
  expect(exitCode).toBe(69);
  expect(stderr.match(/WARNING: the upload of "part_001.tar.zst" is lost/g)).toHaveLength(2);
  expect(stderr).toContain("HINT: A lifecycle rule that aborts uploads, or another program, has ended it.");
});

test("with a network rate limit no more than that is sent a second", async () => {
  await proxy.arm();
  const begun = performance.now();
  const { exitCode, pushed } = await push(["--network-rate-limit", "2MB"]);
  const seconds = (performance.now() - begun) / 1000;
  expect(exitCode).toBe(0);
  // What is sent last need not be paid for any more: at most one frame, of 2 MiB.
  expect(seconds).toBeGreaterThan(((pushed?.compressedBytes ?? 0) - 2 * 2 ** 20) / (2 * 2 ** 20));
  expect(seconds).toBeGreaterThan(5);
});
