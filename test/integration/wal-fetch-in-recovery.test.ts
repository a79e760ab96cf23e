/**
 * What a real server makes of wal-fetch: recovery stops when the store is gone, goes on when it is back, and ends only where the
 * archive ends; a standby waits.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdir, readdir, readFile, rename, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { untilArchived } from "../support/prefetching.ts";
import { anyS3Server } from "../support/s3-server.ts";
import { startTcpProxy, type TcpProxy } from "../support/tcp-proxy.ts";
import { walbBinary } from "../support/walb.ts";

/** Of the last checkpoint: at offset 48 of pg_control in every major from 12 to 18. */
async function timelineOf(dataDirectory: string): Promise<number> {
  return (await readFile(join(dataDirectory, "global/pg_control"))).readUInt32LE(48);
}

const rowsOf = async (server: PostgresServer) =>
  await server.psql("SELECT count(*), md5(string_agg(kept::text, ',' ORDER BY id)) FROM kept");

/** A store that can go away and come back. */
interface Store {
  readonly env: Readonly<Record<string, string>>;
  leave(): Promise<void>;
  comeBack(): Promise<void>;
}

interface Scene {
  readonly primary: PostgresServer;
  readonly store: Store;
  readonly walb: string;
  /** The rows that are archived. */
  readonly rows: string;
  /** Archived in the middle: recovery gets to it. */
  readonly middle: string;
}

async function makeScene(major: number, makeStore: (primary: PostgresServer) => Promise<Store>): Promise<Scene> {
  const walb = await walbBinary();
  // The archive's place is not known before the server is: its environment comes from a file that wal-b reads.
  const primary = await startPostgres({
    major,
    walSegmentSizeMiB: 1,
    archiveCommand: `${walb} --envdir ../env wal-push %p`,
  });
  try {
    const store = await makeStore(primary);
    const envdir = await primary.makeDirectory("env");
    for (const [name, value] of Object.entries(store.env)) {
      await writeFile(join(envdir, name), value, { mode: 0o640 });
      await giveTo(primary.account, join(envdir, name));
    }
    await primary.query("CREATE TABLE kept (id int PRIMARY KEY, text text)");
    const pushed = await primary.runAs([walb, "backup-push", primary.dataDirectory], { env: store.env });
    expect(pushed.exitCode, pushed.stderr).toBe(0);
    let middle = "";
    let last = "";
    for (let round = 0; round < 4; round++) {
      await primary.query(
        `INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(${round * 1000 + 1}, ${round * 1000 + 1000}) n`,
      );
      last = await primary.switchWal();
      if (round === 1) middle = last;
    }
    await untilArchived(primary, last);
    return { primary, store, walb, rows: await rowsOf(primary), middle };
  } catch (error) {
    await primary[Symbol.asyncDispose]();
    throw error;
  }
}

/** The backup, restored beside the primary, with a signal file. */
async function restore({ primary, walb, store }: Scene, name: string, signal: string): Promise<string> {
  const directory = join(primary.directory, name);
  const fetched = await primary.runAs([walb, "backup-fetch", directory, "LATEST"], { env: store.env });
  expect(fetched.exitCode, fetched.stderr).toBe(0);
  await writeFile(join(directory, signal), "");
  await giveTo(primary.account, join(directory, signal));
  return directory;
}

const IMPATIENT = { WALB_RETRY_DEADLINE: "1s", WALB_RECOVERY_RETRY_DEADLINE: "1s", WALB_STANDBY_RETRY_DEADLINE: "1s" };

async function untilPromoted(server: PostgresServer): Promise<void> {
  await server.waitFor(async () => (await server.psql("SELECT pg_is_in_recovery()")) === "f", {
    what: "the end of recovery",
  });
}

function recoveryTests(scene: () => Scene): void {
  test("recovery stops when the store goes away in its middle, and has every row when it is back", async () => {
    const { primary, store, walb, rows, middle } = scene();
    const directory = await restore(scene(), "recovered", "recovery.signal");
    // PostgreSQL waits in the middle until the store is gone.
    const gate = join(primary.directory, "gate");
    const restoreCommand = `if [ %f = ${middle} ]; then touch ${gate}.reached; while [ ! -e ${gate}.gone ]; do sleep 0.05; done; fi; ${walb} wal-fetch %f %p`;
    const env = { ...store.env, ...IMPATIENT, WALB_PREFETCH: "0" };
    await using server = await startPostgresOn(directory, {
      settings: { restore_command: restoreCommand, archive_command: `${walb} wal-push %p` },
      env,
      until: "spawned",
    });
    await server.waitFor(() => Bun.file(`${gate}.reached`).exists(), { what: "recovery to get to the middle" });
    await store.leave();
    try {
      await writeFile(`${gate}.gone`, "");
      expect(await server.exited(60_000)).toEqual({ exitCode: 1, signal: null });
    } finally {
      await store.comeBack();
    }
    const log = await server.logText();
    expect(log).toContain(
      `FATAL:  could not restore file "${middle}" from archive: child process exited with exit code 200`,
    );
    expect(log).not.toContain("selected new timeline ID");
    expect(log).not.toContain("archive recovery complete");
    expect(await timelineOf(directory)).toBe(1);
    expect(await readdir(join(directory, "pg_wal"))).not.toContain("00000002.history");
    expect(await readdir(directory)).toContain("recovery.signal");

    await server.start();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(rows);
    // The end of the archive is the end of recovery, on a timeline of its own.
    expect(await server.psql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")).toBe("00000002");
    expect(await server.logText()).toContain("archive recovery complete");
    await untilArchived(server, "00000002.history");
    await server.query("CHECKPOINT");
    expect(await timelineOf(directory)).toBe(2);
  });

  test("a timeline's number that is in the archive is not taken again", async () => {
    const { store, walb, rows } = scene();
    const directory = await restore(scene(), "another", "recovery.signal");
    await using server = await startPostgresOn(directory, {
      settings: {
        restore_command: `${walb} wal-fetch %f %p`,
        recovery_target_timeline: "current",
        archive_mode: "off",
      },
      env: store.env,
    });
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(rows);
    expect(await server.psql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")).toBe("00000003");
  });

  test("a standby stays up while the store is away, and catches up by itself", async () => {
    const { primary, store, walb, rows } = scene();
    const directory = await restore(scene(), "standby", "standby.signal");
    await using standby = await startPostgresOn(directory, {
      settings: {
        restore_command: `${walb} wal-fetch %f %p`,
        recovery_target_timeline: "current",
        wal_retrieve_retry_interval: "200ms",
        hot_standby: "on",
        archive_mode: "off",
      },
      env: { ...store.env, ...IMPATIENT },
    });
    await standby.waitFor(async () => (await rowsOf(standby)) === rows, { what: "the standby to catch up" });

    await store.leave();
    let expected = "";
    try {
      await primary.query("INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(100001, 101000) n");
      await primary.switchWal();
      expected = await rowsOf(primary);
      // It asks, is told that nobody knows, and asks again.
      const asked = await refusals(standby);
      await standby.waitFor(async () => (await refusals(standby)) >= asked + 3, {
        what: "the standby to ask in vain",
        timeoutMs: 60_000,
      });
      expect(await rowsOf(standby)).toBe(rows);
      expect(standby.isRunning).toBe(true);
      expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("t");
    } finally {
      await store.comeBack();
    }
    await untilArchived(primary, await primary.switchWal());
    await standby.waitFor(async () => (await rowsOf(standby)) === expected, { what: "the standby to catch up again" });
    expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("t");
    expect(await standby.logText()).not.toContain("FATAL:  could not restore file");
  });
}

/** How often wal-fetch has told that it could not find out; absence is told in other words. */
async function refusals(server: PostgresServer): Promise<number> {
  const errors = (await server.logText()).match(/^wal-b: ERROR: .*$/gm) ?? [];
  return errors.filter((error) => !error.endsWith("is not in the archive")).length;
}

describe.each([12, 15, 18])("PostgreSQL %i, with a directory that is moved away", (major) => {
  let scene: Scene;
  let lostAndFound = "";
  beforeAll(async () => {
    scene = await makeScene(major, async (primary) => {
      const repository = await primary.makeDirectory("repository");
      // As at the root of a file system: the end of the archive is found all the same.
      lostAndFound = join(repository, "lost+found");
      await mkdir(lostAndFound, { mode: 0o000 });
      return {
        env: { WALB_FILE_PREFIX: repository },
        leave: () => rename(repository, `${repository}.away`),
        comeBack: () => rename(`${repository}.away`, repository),
      };
    });
  }, 120_000);
  afterAll(async () => {
    // Nobody but root can remove it together with what is around it.
    await rmdir(lostAndFound).catch(() => {});
    await scene?.primary[Symbol.asyncDispose]();
  });
  recoveryTests(() => scene);
});

describe("PostgreSQL 18, with an S3 server whose connections are cut and refused", () => {
  let scene: Scene;
  let proxy: TcpProxy;
  let stop = async () => {};
  beforeAll(async () => {
    const { server, stop: stopServers } = await anyS3Server();
    stop = stopServers;
    proxy = await startTcpProxy(server.endpoint);
    const bucket = await server.createBucket();
    scene = await makeScene(18, async () => ({
      env: {
        WALB_S3_PREFIX: `s3://${bucket}/path`,
        AWS_ENDPOINT_URL: proxy.url,
        AWS_REGION: server.region,
        AWS_ACCESS_KEY_ID: server.accessKeyId,
        AWS_SECRET_ACCESS_KEY: server.secretAccessKey,
      },
      leave: () => proxy.close(),
      comeBack: () => proxy.open(),
    }));
  }, 180_000);
  afterAll(async () => {
    await scene?.primary[Symbol.asyncDispose]();
    await proxy?.[Symbol.asyncDispose]();
    await stop();
  });
  recoveryTests(() => scene);
});
