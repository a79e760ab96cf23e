/**
 * Recovery on a real server, with a store that fails at one chosen request in every way: it never ends early, and it has every
 * row when the store is well again. A standby stays up.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { faultNamed } from "../support/faults.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { writeEnvdir } from "../support/prefetching.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import { everyS3Server, type S3Server } from "../support/s3-server.ts";
import { walbBinary } from "../support/walb.ts";

/** One of each kind that wal-fetch tells apart; wal-path-meets-every-fault.test.ts has all of them. */
const FAULTS = [
  "403 AccessDenied",
  "404 NoSuchBucket",
  "500 InternalError",
  "503 SlowDown with Retry-After",
  "a 404 page of a proxy",
  "a 200 page of a proxy",
  "a connection that is refused",
  "a connection that is cut",
  "half a body, then the end",
  "a body with a byte changed",
  "silence",
].map((name) => ({ name, fault: faultNamed(name) }));
const endingIn = (end: string) => ({ only: (request: string) => request.endsWith(end) });

const { servers, stop } = await everyS3Server();
const [s3] = servers as readonly [S3Server];
const walb = await walbBinary();
let proxy: FaultProxy;
beforeAll(async () => {
  proxy = await startFaultProxy(s3.endpoint);
});
afterAll(async () => {
  await proxy[Symbol.asyncDispose]();
  await stop();
});

/** Gives up soon after the first failure, so that a test sees it. */
const IMPATIENT = {
  WALB_RECOVERY_RETRY_DEADLINE: "1s",
  WALB_STANDBY_RETRY_DEADLINE: "1s",
  WALB_PREFETCH: "0",
};
/** Where a fault is silence; a server that is busy answers by then. */
const SILENCE_IS_OVER = { WALB_IDLE_TIMEOUT: "2s" };

interface Scene extends AsyncDisposable {
  readonly primary: PostgresServer;
  readonly repository: TestRepository;
  readonly env: Readonly<Record<string, string>>;
  /** A restored directory, to be copied. */
  readonly restored: string;
  readonly rows: string;
  /** A segment in the middle of what recovery reads. */
  readonly middle: string;
}

const rowsOf = (server: PostgresServer) =>
  server.psql("SELECT count(*), md5(string_agg(id::text, ',' ORDER BY id)) FROM kept");

/** @param server  asked without the proxy between; through the proxy the first one if left out */
async function makeScene(major: number, server?: S3Server): Promise<Scene> {
  const repository = await s3Repository(server ?? s3);
  const env = server ? repository.env : { ...repository.env, AWS_ENDPOINT_URL_S3: proxy.url };
  const primary = await startPostgres({ major, walSegmentSizeMiB: 1, archiveCommand: `${walb} wal-push %p`, env });
  await primary.query("CREATE TABLE kept (id int PRIMARY KEY)");
  const pushed = await primary.runAs([walb, "backup-push", primary.dataDirectory], { env });
  expect(pushed.exitCode, pushed.stderr).toBe(0);
  const segments: string[] = [];
  for (let round = 0; round < 3; round++) {
    await primary.query(`INSERT INTO kept SELECT generate_series(${round * 100 + 1}, ${round * 100 + 100})`);
    segments.push(await primary.switchWal());
  }
  const last = `wal_005/${segments.at(-1)}.zst`;
  await primary.waitFor(async () => (await repository.keys()).includes(last), { what: `${last} in the archive` });
  const restored = join(primary.directory, "restored");
  const fetched = await primary.runAs([walb, "backup-fetch", restored, "LATEST"], { env });
  expect(fetched.exitCode, fetched.stderr).toBe(0);
  const rows = await rowsOf(primary);
  return {
    primary,
    repository,
    env,
    restored,
    rows,
    middle: segments[1] ?? "",
    [Symbol.asyncDispose]: () => primary[Symbol.asyncDispose](),
  };
}

/** A copy of the restored directory with a signal file; it goes with the primary's. */
async function copyOf({ primary, restored }: Scene, name: string, signal: string): Promise<string> {
  const directory = join(primary.directory, name);
  await rm(directory, { recursive: true, force: true });
  await cp(restored, directory, { recursive: true, preserveTimestamps: true });
  await writeFile(join(directory, signal), "");
  await giveTo(primary.account, join(directory, signal));
  return directory;
}

describe.each([12, 15, 18])("PostgreSQL %i", (major) => {
  let scene: Scene;
  beforeAll(async () => {
    scene = await makeScene(major);
  }, 120_000);
  afterAll(() => scene[Symbol.asyncDispose]());

  const settings = (extra: Readonly<Record<string, string>> = {}) => ({
    restore_command: `${walb} wal-fetch %f %p`,
    archive_mode: "off",
    wal_retrieve_retry_interval: "200ms",
    ...extra,
  });

  test.each(FAULTS.map(({ name, fault }) => [name, fault] as const))(
    "recovery stops at %s, and has every row afterwards",
    async (_, fault) => {
      const directory = await copyOf(scene, "recovered", "recovery.signal");
      await proxy.arm(fault, endingIn(`${scene.middle}.zst`));
      await using server = await startPostgresOn(directory, {
        settings: settings(),
        env: { ...scene.env, ...IMPATIENT, ...SILENCE_IS_OVER },
        until: "spawned",
      });
      expect(await server.exited(60_000)).toEqual({ exitCode: 1, signal: null });
      expect(proxy.answered).toBeGreaterThan(0);
      const log = await server.logText();
      expect(log).toContain(
        `could not restore file "${scene.middle}" from archive: child process exited with exit code 200`,
      );
      expect(log).not.toContain("selected new timeline ID");
      expect(await readdir(join(directory, "pg_wal"))).not.toContain("00000002.history");

      await proxy.arm();
      await server.start();
      await server.waitFor(async () => (await server.psql("SELECT pg_is_in_recovery()")) === "f", {
        what: "the end of recovery",
      });
      expect(await rowsOf(server)).toBe(scene.rows);
    },
  );

  test("recovery stops when a timeline history cannot be asked for, so that no number is taken twice", async () => {
    const directory = await copyOf(scene, "recovered", "recovery.signal");
    await proxy.arm(faultNamed("500 InternalError"), endingIn(".history.zst"));
    await using server = await startPostgresOn(directory, {
      settings: settings(),
      env: { ...scene.env, ...IMPATIENT },
      until: "spawned",
    });
    expect(await server.exited(60_000)).toEqual({ exitCode: 1, signal: null });
    expect(await server.logText()).toContain(
      'could not restore file "00000002.history" from archive: child process exited with exit code 200',
    );
    await proxy.arm();
  });

  test("a standby stays up through all of them and catches up", async () => {
    const directory = await copyOf(scene, "standby", "standby.signal");
    await proxy.arm(faultNamed("403 AccessDenied"), endingIn(`${scene.middle}.zst`));
    await using standby = await startPostgresOn(directory, {
      settings: settings({ hot_standby: "on", recovery_target_timeline: "current" }),
      env: { ...scene.env, ...IMPATIENT, ...SILENCE_IS_OVER },
    });
    for (const { name, fault } of FAULTS) {
      await proxy.arm(fault, endingIn(`${scene.middle}.zst`));
      await standby.waitFor(async () => proxy.answered > 1, {
        what: `the standby to meet ${name}`,
        timeoutMs: 30_000,
      });
      expect(standby.isRunning).toBe(true);
    }
    await proxy.arm();
    await standby.waitFor(async () => (await rowsOf(standby)) === scene.rows, { what: "the standby to catch up" });
    expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("t");
  });
});

test.each(servers.map((server) => [server.name, server] as const))(
  "on %s, credentials that may not list: recovery does not end, the message says which right is missing, and with it all goes on",
  async (_, server) => {
    await using scene = await makeScene(18, server);
    const directory = await copyOf(scene, "recovered", "recovery.signal");
    const blind = await scene.repository.blindEnv();
    const restore_command = `${walb} --envdir ../env wal-fetch %f %p`;
    await writeEnvdir(scene.primary, { ...blind, ...IMPATIENT });
    await using recovering = await startPostgresOn(directory, {
      settings: { restore_command, archive_mode: "off" },
      until: "spawned",
    });
    expect(await recovering.exited()).toEqual({ exitCode: 1, signal: null });
    const log = await recovering.logText();
    // Nobody has ever written it, and recovery asks for it first. Ceph answers the GET so, as AWS does; MinIO answers that it is not
    // there, and refuses to list whether it is there in another form.
    expect(log).toMatch(
      /ERROR: could not (read|list) "s3:.*\/00000002\.history(\.zst)?"\n {2}DETAIL: S3 answered 403 AccessDenied/,
    );
    expect(log).toContain("Without s3:ListBucket, S3 answers so for an object that is not there, too");
    expect(log).toContain(
      'FATAL:  could not restore file "00000002.history" from archive: child process exited with exit code 200',
    );
    // What is there can be read.
    const there = join(scene.primary.directory, "there");
    const fetched = await scene.primary.runAs([walb, "wal-fetch", scene.middle, there], {
      env: { ...blind, WALB_PREFETCH: "0" },
    });
    expect(fetched.exitCode, fetched.stderr).toBe(0);

    await writeEnvdir(scene.primary, { ...scene.repository.hostEnv, ...IMPATIENT });
    await recovering.start();
    await recovering.waitFor(async () => (await recovering.psql("SELECT pg_is_in_recovery()")) === "f", {
      what: "the end of recovery",
    });
    expect(await rowsOf(recovering)).toBe(scene.rows);
  },
);
