/** Whenever backup-push is ended, nothing is listed, the server is out of backup mode, and what is left can be removed. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { CreateMultipartUploadCommand } from "@aws-sdk/client-s3";
import { TEMPORARY } from "../../src/storage/directory-write.ts";
import { baseName } from "../../src/storage/object-key.ts";
import {
  contentOf,
  fetchBackup,
  listedBackups,
  outOfBackupMode,
  pushBackup,
  type RunningWalb,
  recover,
  startArchiving,
  startWalb,
  stopArchivingDuring,
  temporaryRepository,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository, unfinishedUploads } from "../support/repositories.ts";
import { anyS3Server, type S3Server, s3ClientOf } from "../support/s3-server.ts";
import { runWalb } from "../support/walb.ts";

const SMALL_PARTS = { WALB_TAR_SIZE_THRESHOLD: "1MB", WALB_UPLOAD_CONCURRENCY: "2" };
const MOMENTS = 8;

/** More than one S3 part, so that an upload is in parts: random bytes do not get smaller. */
const LARGE_TABLE = `
  CREATE EXTENSION IF NOT EXISTS pgcrypto;
  CREATE TABLE large (id int, bytes bytea); ALTER TABLE large ALTER bytes SET STORAGE EXTERNAL;
  INSERT INTO large SELECT n, gen_random_bytes(1024) FROM generate_series(1, 24000) n`;

const backupKeysIn = async (repository: TestRepository) =>
  (await repository.keys()).filter((key) => /^basebackups_005\/.*[^/]$/.test(key) && key.includes("."));

describe("in a directory", () => {
  let repository: Awaited<ReturnType<typeof temporaryRepository>>;
  let server: PostgresServer;

  beforeAll(async () => {
    repository = await temporaryRepository();
    server = await startArchiving(repository.env, { major: 17 });
    await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n");
  });
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]();
    await repository?.[Symbol.asyncDispose]();
  });

  const start = async (args: readonly string[] = [], env = {}) =>
    await startWalb(server, ["backup-push", server.dataDirectory, ...args], {
      ...repository.env,
      ...SMALL_PARTS,
      ...env,
    });
  const garbage = async (args: readonly string[]) => {
    const result = await runWalb(["delete", "garbage", ...args], { as: server, env: repository.env });
    expect({ exitCode: result.exitCode, stderr: result.stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
    return result.stdout;
  };
  /** How long a whole backup takes: at first the first of all, then less, when one was whole before its signal came. */
  let wholeMs = 0;

  test("the first backup, for what comes next must spare it", async () => {
    const begun = performance.now();
    await pushBackup(server, { ...repository.env, ...SMALL_PARTS }, ["--permanent"]);
    wholeMs = performance.now() - begun;
    expect(await listedBackups(server, repository.env)).toHaveLength(1);
  });

  const MODES = [
    ["SIGTERM", { exitCode: 143, signal: null }],
    ["SIGINT", { exitCode: 130, signal: null }],
  ] as const;
  test.each(MODES)(`%s at ${MOMENTS} moments: %o, and everything is taken back`, async (signal, end) => {
    const before = await backupKeysIn(repository);
    let interrupted = 0;
    for (let moment = 0, tries = 1; moment < MOMENTS; moment++, tries++) {
      expect(tries).toBeLessThan(5 * MOMENTS);
      await using running = await start();
      await Bun.sleep((wholeMs * (moment + 0.5)) / MOMENTS);
      running.signal(signal);
      const ended = await running.ended();
      if (await wasWhole()) {
        moment--;
        continue;
      }
      // Before main.ts listens to signals, they end the process as they do any.
      if (ended.exitCode === null) expect({ moment, ended }).toEqual({ moment, ended: { exitCode: null, signal } });
      else expect({ moment, ended, said: running.stderr }).toEqual({ moment, ended: end, said: expect.any(String) });
      if (ended.exitCode === end.exitCode) {
        interrupted++;
        expect(running.stderr.match(/ERROR: /g)).toHaveLength(1);
        expect(running.stderr).toContain(`ERROR: interrupted by ${signal}`);
        expect(running.stderr).not.toContain("WARNING");
      }
      await outOfBackupMode(server);
      expect(await backupKeysIn(repository)).toEqual(before);
    }
    expect(interrupted).toBeGreaterThan(MOMENTS / 2);
  });

  /** Of a backup that had its sentinel before its signal came, and so can be restored; it is removed. */
  async function wasWhole(): Promise<boolean> {
    const [, newest] = await listedBackups(server, repository.env);
    if (newest === undefined) return false;
    wholeMs *= 0.8;
    const { exitCode, stderr } = await runWalb(["verify", newest], { as: server, env: repository.env });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
    await Bun.$`rm -r ${repository.directory}/basebackups_005/${newest} ${repository.directory}/basebackups_005/${newest}_backup_stop_sentinel.json`.quiet();
    return true;
  }

  /** Ends each where it said where it is, so that every stage is met. */
  const STAGES: readonly (readonly [string, (running: RunningWalb) => Promise<unknown>, Record<string, string>])[] = [
    ["waiting for the checkpoint", (running) => running.says("waiting for the server's checkpoint"), {}],
    ["copying", (running) => running.says('" started at '), {}],
    ["waiting for WAL", async () => await server.waitFor(isWaitingForWal, { what: "the label part" }), { hold: "yes" }],
  ];
  const isWaitingForWal = async () =>
    (await repository.keys()).filter((key) => key.endsWith("/backup_label.tar.zst")).length > 1;

  test.each(STAGES)("SIGTERM while it is %s: 143, and everything is taken back", async (_, until, { hold }) => {
    const before = await backupKeysIn(repository);
    await using running = await start();
    const archiveCommand = await server.psql("SHOW archive_command");
    if (hold) await stopArchivingDuring(running, server);
    await until(running);
    running.signal("SIGTERM");
    expect(await running.ended()).toEqual({ exitCode: 143, signal: null });
    await outOfBackupMode(server);
    if (hold) await server.configure({ archive_command: archiveCommand });
    expect(await backupKeysIn(repository)).toEqual(before);
  });

  test("delete garbage while it is waiting for WAL: 65, nothing is listed that is not whole, and everything is taken back", async () => {
    const before = await backupKeysIn(repository);
    const listed = await listedBackups(server, repository.env);
    await using running = await start();
    const archiveCommand = await server.psql("SHOW archive_command");
    await stopArchivingDuring(running, server);
    await server.waitFor(isWaitingForWal, { what: "the label part" });
    expect(await garbage(["--min-age", "0s", "--confirm"])).toContain("remove  base_");
    await server.configure({ archive_command: archiveCommand });
    expect({ ...(await running.ended()), stderr: running.stderr }).toEqual({
      exitCode: 65,
      signal: null,
      stderr: expect.stringMatching(/ERROR: somebody removed parts of backup "base_[0-9A-F]{24}" while it was made/),
    });
    expect(running.stderr).toContain('HINT: Look for a "wal-b delete garbage" that ran meanwhile');
    await outOfBackupMode(server);
    expect(await listedBackups(server, repository.env)).toEqual(listed);
    expect(await backupKeysIn(repository)).toEqual(before);
  });

  test(`kill -9 at ${MOMENTS} moments: nothing that is not whole is listed, and delete garbage removes what is left and nothing else`, async () => {
    const before = await backupKeysIn(repository);
    const [first = ""] = await listedBackups(server, repository.env);
    const needed = (await repository.keys()).filter((key) => key >= `wal_005/${first.slice("base_".length)}`);
    let left = 0;
    for (let moment = 0, tries = 1; moment < MOMENTS; moment++, tries++) {
      expect(tries).toBeLessThan(5 * MOMENTS);
      const keysSoFar = await backupKeysIn(repository);
      await using running = await start();
      await Bun.sleep((wholeMs * (moment + 1)) / (MOMENTS + 1));
      running.signal("SIGKILL");
      await running.ended();
      if (await wasWhole()) {
        moment--;
        continue;
      }
      await outOfBackupMode(server);
      // Killed before its claim had its name, it left nothing, or an unfinished upload.
      const added = (await backupKeysIn(repository)).filter((key) => !keysSoFar.includes(key));
      if (added.some((key) => !TEMPORARY.test(baseName(key)))) left++;
    }
    expect(left).toBeGreaterThan(1);

    const leftKeys = await backupKeysIn(repository);
    expect(await garbage(["--confirm"])).toContain("no unfinished backups or uploads that are old enough");
    expect(await backupKeysIn(repository)).toEqual(leftKeys);
    const shown = await garbage(["--min-age", "0s"]);
    expect(shown.match(/^remove {2}base_/gm)?.length).toBe(left);
    expect(await backupKeysIn(repository)).toEqual(leftKeys);
    await garbage(["--min-age", "0s", "--confirm"]);
    expect(await backupKeysIn(repository)).toEqual(before);
    const wal = await repository.keys();
    expect(needed.filter((key) => !wal.includes(key))).toEqual([]);
  });

  test("a running backup is spared by delete garbage, and finishes", async () => {
    await using running = await start();
    await running.says('" started at ');
    running.signal("SIGSTOP");
    await garbage(["--confirm"]);
    running.signal("SIGCONT");
    expect(await running.ended()).toEqual({ exitCode: 0, signal: null });
    expect(await listedBackups(server, repository.env)).toHaveLength(2);
  });

  test("a backup after all that restores every row", async () => {
    await server.query("CREATE TABLE last_of_all AS SELECT 1 AS id");
    await pushBackup(server, repository.env);
    const directory = `${server.directory}/restored`;
    await fetchBackup(server, repository.env, { directory });
    await using recovered = await recover(directory, repository.env);
    expect(await contentOf(recovered)).toEqual(await contentOf(server));
  });
});

describe("in S3", () => {
  let s3: S3Server;
  let stopS3: () => Promise<void>;
  let repository: TestRepository;
  let server: PostgresServer;
  const env = () => ({ ...repository.env, WALB_S3_MAX_PART_SIZE: "5MB", WALB_UPLOAD_CONCURRENCY: "2" });

  beforeAll(async () => {
    ({ server: s3, stop: stopS3 } = await anyS3Server());
    repository = await s3Repository(s3);
    server = await startArchiving(repository.env, { major: 15 });
    await server.query(LARGE_TABLE);
  });
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]();
    await stopS3?.();
  });

  test("SIGTERM while a part is uploaded: 143, no object and no unfinished upload is left", async () => {
    await using running = await startWalb(server, ["backup-push", server.dataDirectory], env());
    await running.says('" started at ');
    await server.waitFor(async () => (await unfinishedUploads(s3, repository)).length > 0, {
      intervalMs: 5,
      what: "an upload",
    });
    running.signal("SIGTERM");
    expect(await running.ended()).toEqual({ exitCode: 143, signal: null });
    expect(running.stderr).not.toContain("WARNING");
    expect(await unfinishedUploads(s3, repository)).toEqual([]);
    expect(await backupKeysIn(repository)).toEqual([]);
    await outOfBackupMode(server);
  });

  test("kill -9 while a part is uploaded: delete garbage aborts the upload and removes the objects, and a backup succeeds", async () => {
    await using running = await startWalb(server, ["backup-push", server.dataDirectory], env());
    await running.says('" started at ');
    await server.waitFor(async () => (await unfinishedUploads(s3, repository)).length > 0, {
      intervalMs: 5,
      what: "an upload",
    });
    running.signal("SIGKILL");
    await running.ended();
    await outOfBackupMode(server);
    expect(await listedBackups(server, repository.env)).toEqual([]);
    const left = await unfinishedUploads(s3, repository);
    expect(left.length).toBeGreaterThan(0);
    // Another program's, outside of the prefix.
    const [, bucket] = /^s3:\/\/([^/]+)/.exec(repository.env["WALE_S3_PREFIX"] ?? "") ?? [];
    const client = s3ClientOf(s3);
    await client.send(new CreateMultipartUploadCommand({ Bucket: bucket, Key: "databases/other/object" }));
    client.destroy();

    const young = await runWalb(["delete", "garbage", "--confirm"], { as: server, env: repository.env });
    expect(young.exitCode).toBe(0);
    expect((await unfinishedUploads(s3, repository)).length).toBe(left.length + 1);
    const { exitCode, stdout } = await runWalb(["delete", "garbage", "--min-age", "0s", "--confirm"], {
      as: server,
      env: repository.env,
    });
    expect(exitCode).toBe(0);
    expect(stdout).toContain("abort   upload of basebackups_005/");
    expect(await unfinishedUploads(s3, repository)).toEqual(["databases/other/object"]);
    expect(await backupKeysIn(repository)).toEqual([]);
    await pushBackup(server, env());
    expect(await listedBackups(server, repository.env)).toHaveLength(1);
  });
});
