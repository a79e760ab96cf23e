/** --while-offline: a stopped cluster, restored to a server that has an archive and to one that has none. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  listedBackups,
  pushBackup,
  recover,
  startArchiving,
  startWalb,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { untilPromoted } from "../support/prefetching.ts";
import { runWalb } from "../support/walb.ts";

const OFFLINE = ["--while-offline"];

let repository: Awaited<ReturnType<typeof temporaryRepository>>;

beforeAll(async () => {
  repository = await temporaryRepository();
});
afterAll(async () => await repository?.[Symbol.asyncDispose]());

const push = (server: PostgresServer, args: readonly string[] = [server.dataDirectory]) =>
  runWalb(["backup-push", ...OFFLINE, ...args], { as: server, env: repository.env });

/** Without recovery.signal: as after a clean shutdown. */
async function startWithoutArchive(directory: string): Promise<PostgresServer> {
  return await startPostgresOn(directory, { settings: { archive_mode: "off" } });
}

test.each([
  [12, 16],
  [15, 1],
  [18, 64],
])("PostgreSQL %i with segments of %i MiB that has never archived", async (major, walSegmentSizeMiB) => {
  await using own = await temporaryRepository();
  await using server = await startPostgres({ major, walSegmentSizeMiB, tablespaces: ["space"] });
  await server.query(`
    CREATE TABLE here AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n;
    CREATE TABLE elsewhere TABLESPACE space AS SELECT generate_series(1, 1000) AS id;
    CREATE UNLOGGED TABLE kept_by_a_clean_stop AS SELECT generate_series(1, 1000) AS id`);
  const expected = await contentOf(server);
  await server.stop();
  await pushBackup(server, own.env, OFFLINE);

  const directory = join(server.directory, "restored");
  await fetchBackup(server, own.env, { directory, args: ["--blind-restore"] });
  expect((await verifyBackup(directory, ["-i", "tablespaces"])).stdout).toBe("backup successfully verified\n");
  const names = await readdir(directory);
  expect(names).not.toContain("backup_label");
  expect(names).not.toContain("tablespace_map");
  await using restored = await startWithoutArchive(directory);
  expect(await contentOf(restored)).toEqual(expected);
  expect(await restored.logText()).not.toContain("was not properly shut down");
  expect(await restored.psql("SELECT count(*) FROM kept_by_a_clean_stop")).toBe("1000");
  await restored.query("INSERT INTO elsewhere VALUES (0)");
});

test.each([12, 18])(
  "PostgreSQL %i: restore --to immediate, with nothing archived behind the backup and with something",
  async (major) => {
    await using own = await temporaryRepository();
    await using server = await startArchiving(own.env, { major });
    await server.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id");
    const atTheStop = await contentOf(server);
    await server.stop();
    await pushBackup(server, own.env, OFFLINE);

    const restored = async (name: string) => {
      const directory = join(server.directory, name);
      const args = ["restore", directory, "--to", "immediate", "--action", "promote"];
      const { exitCode, stderr } = await runWalb(args, { as: server, env: own.env });
      expect(exitCode, stderr).toBe(0);
      return directory;
    };
    const recoveredFrom = async (directory: string) => {
      await using recovered = await startPostgresOn(directory, { env: own.env, settings: { archive_mode: "off" } });
      await untilPromoted(recovered);
      return await contentOf(recovered);
    };
    expect(await recoveredFrom(await restored("alone"))).toEqual(atTheStop);
    const startedLater = await restored("started later");

    await server.start();
    await server.query("INSERT INTO rows SELECT generate_series(1001, 2000)");
    await archiveEverything(server, own);
    expect(await recoveredFrom(await restored("behind"))).toEqual(atTheStop);
    expect(await recoveredFrom(startedLater)).toEqual(atTheStop);
  },
);

test("with an archive, recovery goes on from the backup to what was archived afterwards", async () => {
  await using server = await startArchiving(repository.env, { major: 17 });
  await server.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id");
  const atTheStop = await contentOf(server);
  await server.stop();
  const name = await pushBackup(server, repository.env, OFFLINE);
  expect(await listedBackups(server, repository.env)).toEqual([name]);

  await server.start();
  await server.query("INSERT INTO rows SELECT generate_series(1001, 2000)");
  const later = await contentOf(server);
  const last = await server.switchWal();
  await server.waitFor(async () => (await repository.keys()).includes(`wal_005/${last}.zst`));

  const directory = join(server.directory, "restored");
  await fetchBackup(server, repository.env, { directory });
  await using recovered = await recover(directory, repository.env);
  expect(await contentOf(recovered)).toEqual(later);
  await recovered.stop();

  await rm(directory, { recursive: true });
  await fetchBackup(server, repository.env, { directory });
  await using alone = await startWithoutArchive(directory);
  expect(await contentOf(alone)).toEqual(atTheStop);
});

test("a running server, one that crashed, no directory and no data directory are refused", async () => {
  const before = await repository.keys();
  await using server = await startArchiving(repository.env);
  const running = await push(server);
  expect({ exitCode: running.exitCode, stderr: running.stderr }).toEqual({
    exitCode: 76,
    stderr: expect.stringContaining(`a server runs in "${server.dataDirectory}"`),
  });
  expect(running.stderr).toContain("back it up while it runs, without --while-offline");

  await server.crash();
  const crashed = await push(server);
  expect({ exitCode: crashed.exitCode, stderr: crashed.stderr }).toEqual({
    exitCode: 76,
    stderr: expect.stringContaining("was not shut down cleanly"),
  });
  expect(crashed.stderr).toContain('Its state is "in production"');

  const nothing = await push(server, []);
  expect({ exitCode: nothing.exitCode, stderr: nothing.stderr }).toEqual({
    exitCode: 64,
    stderr: expect.stringContaining("no directory was given"),
  });
  const empty = await push(server, [await server.makeDirectory("empty")]);
  expect({ exitCode: empty.exitCode, stderr: empty.stderr }).toEqual({
    exitCode: 66,
    stderr: expect.stringContaining('empty/global/pg_control"'),
  });
  expect(await repository.keys()).toEqual(before);
});

test("a second backup of a cluster that was not started since is told that it exists", async () => {
  await using own = await temporaryRepository();
  await using server = await startPostgres({});
  await server.stop();
  const name = await pushBackup(server, own.env, OFFLINE);
  const before = await own.keys();
  const { exitCode, stderr } = await runWalb(["backup-push", ...OFFLINE, server.dataDirectory], {
    as: server,
    env: own.env,
  });
  expect({ exitCode, stderr }).toEqual({
    exitCode: 65,
    stderr: expect.stringContaining(`there is a backup "${name}" already`),
  });
  expect(stderr).toContain("A stopped cluster has not been started since that backup");
  expect(await own.keys()).toEqual(before);
});

test("a cluster whose repository has another cluster's WAL is refused, and nothing is written", async () => {
  const before = await repository.keys();
  await using server = await startPostgres({});
  const own = await server.psql("SELECT system_identifier FROM pg_control_system()");
  await server.stop();
  const { exitCode, stderr } = await push(server);
  expect({ exitCode, stderr }).toEqual({
    exitCode: 65,
    stderr: expect.stringContaining(`the archive at file://${repository.directory} belongs to another cluster`),
  });
  expect(stderr).toContain(`this one has ${own}.`);
  expect(await repository.keys()).toEqual(before);
});

test("a server that is started during the backup makes it fail, and what was written is taken back", async () => {
  await using own = await temporaryRepository();
  await using server = await startPostgres({});
  await server.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id");
  await server.stop();
  // Last in the walk, so that wal-b is not done before it is stopped.
  const large = join(server.dataDirectory, "zzz");
  await writeFile(large, Buffer.alloc(64 * 2 ** 20, "x"));
  await giveTo(server.account, large);
  await using running = await startWalb(server, ["backup-push", ...OFFLINE, server.dataDirectory], {
    ...own.env,
    WALB_TAR_SIZE_THRESHOLD: "1MB",
    WALB_UPLOAD_CONCURRENCY: "1",
  });
  await running.says(" started");
  running.signal("SIGSTOP");
  await server.start();
  running.signal("SIGCONT");
  expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
  expect(running.stderr).toContain(`a server runs in "${server.dataDirectory}"`);
  expect((await own.keys()).filter((key) => /\.(zst|json)$/.test(key))).toEqual([]);
});

test("where nothing was archived since, the backup holds its own WAL: verify and restore know it", async () => {
  await using own = await temporaryRepository();
  await using server = await startPostgres();
  await server.query("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id");
  const atTheStop = await contentOf(server);
  await server.stop();
  await pushBackup(server, own.env, OFFLINE);
  const options = { as: server, env: own.env };
  for (const args of [[], ["--wal"]])
    expect(await runWalb(["verify", "LATEST", ...args], options)).toMatchObject({ exitCode: 0 });

  const directory = join(server.directory, "restored");
  const beyond = await runWalb(["restore", directory, "--to", "2100-01-01 00:00:00+00"], options);
  expect(beyond).toMatchObject({ exitCode: 74, stderr: expect.stringContaining("Nothing was archived after backup") });
  for (const target of ["immediate", "latest"]) {
    const plan = await runWalb(["restore", directory, "--to", target, "--dry-run"], options);
    expect(plan).toMatchObject({ exitCode: 0, stdout: expect.stringContaining("the backup holds what it needs") });
  }
  expect(await runWalb(["restore", directory], options)).toMatchObject({ exitCode: 0 });
  await using restored = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
  expect(await contentOf(restored)).toEqual(atTheStop);
});
