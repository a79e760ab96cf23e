/** A server that does not archive, or not here, fails a backup before any file is copied; a server that crashes, at once. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdir, rename } from "node:fs/promises";
import { join } from "node:path";
import {
  listedBackups,
  pushBackup,
  startArchiving,
  startWalb,
  stopArchivingDuring,
  temporaryRepository,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { untilArchived } from "../support/prefetching.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const SOON = { WALB_ARCHIVE_TIMEOUT: "3s" };

let repository: Awaited<ReturnType<typeof temporaryRepository>>;

beforeAll(async () => {
  repository = await temporaryRepository();
});
afterAll(async () => await repository?.[Symbol.asyncDispose]());

const backupObjects = async () =>
  (await repository.keys()).filter((key) => /\.(zst|json)$/.test(key) && key.startsWith("base"));

async function fails(server: PostgresServer, env = {}): Promise<string> {
  const { exitCode, stderr } = await runWalb(["backup-push", server.dataDirectory], {
    as: server,
    env: { ...repository.env, ...SOON, ...env },
  });
  expect({ exitCode, stderr }).toEqual({ exitCode: 76, stderr: expect.stringMatching(/^wal-b: ERROR: /m) });
  expect(await server.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")).toBe("1");
  return stderr;
}

/** On a new server each, because what a server has archived before decides what it is told. */
test("an archive_command that fails: the failure of the archiver is told, and nothing was written", async () => {
  await using server = await startArchiving({}, { archiveCommand: "false", major: 14 });
  await server.switchWal();
  await server.waitFor(async () => (await server.psql("SELECT failed_count > 0 FROM pg_stat_archiver")) === "t");
  const stderr = await fails(server);
  expect(stderr).toMatch(/"[0-9A-F]{24}" was not archived within 3 s/);
  expect(stderr).toContain("The server has not archived anything yet. Archiving fails: 000000010000000000000001 at ");
  expect(stderr).toMatch(/, \d+ failures in all\./);
  expect(stderr).toContain("Look into the server's log for what archive_command says");
  expect(await backupObjects()).toEqual([]);
});

test("an archive_command that is not there, which the server does not count as a failure", async () => {
  await using server = await startArchiving({}, { archiveCommand: "/nonexistent/wal-b wal-push %p", major: 13 });
  const stderr = await fails(server);
  expect(stderr).toMatch(/"[0-9A-F]{24}" was not archived within 3 s/);
  expect(stderr).toContain("The server has not archived anything yet.");
  expect(stderr).toContain("Look into the server's log for what archive_command says");
  expect(await backupObjects()).toEqual([]);
});

test.each([
  ["before the backup asks", "true", "at once"],
  // Slower than the look at what it has archived.
  ["only while the backup waits", "sleep 1", "later"],
])("an archive_command that succeeds %s, and archives nowhere: not to this repository", async (_, command, when) => {
  await using server = await startArchiving({}, { archiveCommand: command, major: 15 });
  if (when === "at once") {
    const last = await server.switchWal();
    await server.waitFor(async () => (await server.psql("SELECT last_archived_wal FROM pg_stat_archiver")) === last);
  }
  const stderr = await fails(server);
  expect(stderr).toContain("the server archives WAL, but not to this repository");
  expect(stderr).toContain("The server says that it has archived ");
  expect(stderr).toContain("Compare the prefix in archive_command with the one used here.");
  expect(await backupObjects()).toEqual([]);
});

test.each([
  ["and the server says so", ""],
  ["and the server does not say so yet", " && sleep 60"],
])("another tool archives here, with lz4, %s: its object is named, which no restore could read", async (_, then) => {
  await using own = await temporaryRepository();
  const wal = join(own.directory, "wal_005");
  const archiveCommand = `mkdir -p ${wal} && cp %p ${wal}/%f.lz4${then}`;
  await using server = await startArchiving({}, { archiveCommand, major: 17 });
  const { exitCode, stderr } = await runWalb(["backup-push", server.dataDirectory], {
    as: server,
    env: { ...own.env, ...SOON },
  });
  expect({ exitCode, stderr }).toEqual({
    exitCode: 76,
    stderr: expect.stringMatching(/ERROR: the server archives WAL in a format that is not supported\n/),
  });
  expect(stderr).toMatch(/wal_005\/[0-9A-F]{24}\.lz4 is compressed with lz4\. A restore could not read it\./);
  expect((await own.keys()).filter((key) => key.startsWith("base"))).toEqual([]);
});

test("what was archived last is not what was archived highest, and was deleted since: the backup begins with its own segment", async () => {
  await using own = await temporaryRepository();
  await using server = await startArchiving(own.env, { walSegmentSizeMiB: 1 });
  await pushBackup(server, own.env);
  // By the server's files: of what a wal-push archives beside its own file pg_stat_archiver does not know.
  await untilArchived(server, await server.switchWal());
  const status = join(server.dataDirectory, "pg_wal/archive_status");
  const findLabel = async () => (await readdir(status)).find((name) => name.endsWith(".backup.done"));
  const label = (await server.waitFor(findLabel, { what: "the backup's label to be archived" })).replace(".done", "");
  // As when the archiver finds the label of a backup only behind the segment that comes after it.
  await rename(join(status, `${label}.done`), join(status, `${label}.ready`));
  // Wakes the archiver, and writes no WAL.
  await server.query("SELECT pg_reload_conf()");
  await untilArchived(server, label);
  const last = async () => await server.psql("SELECT last_archived_wal FROM pg_stat_archiver");
  await server.waitFor(async () => (await last()) === label, { what: `"${label}" to be what was archived last` });

  const { exitCode } = await runWalb(["delete", "everything", "--confirm"], { as: server, env: own.env });
  expect(exitCode).toBe(0);
  await pushBackup(server, { ...own.env, WALB_ARCHIVE_TIMEOUT: "30s" });
  expect(await listedBackups(server, own.env)).toHaveLength(1);
});

test("archive_mode off, and an empty archive_command", async () => {
  await using server = await startArchiving(repository.env, { settings: { archive_mode: "off" } });
  expect(await fails(server)).toContain('archive_mode is "off"');
  await server.configure({ archive_mode: "on", archive_command: "" });
  await server.restart();
  expect(await fails(server)).toContain("archive_mode is on, but archive_command is empty");
  expect(await backupObjects()).toEqual([]);
});

describe("an archive that works", () => {
  let server: PostgresServer;
  let archiveCommand: string;

  beforeAll(async () => {
    server = await startArchiving(repository.env, { major: 16 });
    archiveCommand = `${await walbBinary()} wal-push %p`;
    await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 10000) n");
    await pushBackup(server, repository.env);
  });
  afterAll(async () => await server?.[Symbol.asyncDispose]());

  const startHeld = async (timeout = "60s") => {
    const running = await startWalb(server, ["backup-push", server.dataDirectory], {
      ...repository.env,
      WALB_ARCHIVE_TIMEOUT: timeout,
      WALB_TAR_SIZE_THRESHOLD: "1MB",
    });
    await running.says('" started at ');
    running.signal("SIGSTOP");
    return running;
  };

  test("that breaks while files are copied: the missing segment is named, and the parts are taken back", async () => {
    const before = await backupObjects();
    await using running = await startHeld("10s");
    await server.configure({ archive_command: "false" });
    running.signal("SIGCONT");
    expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
    await server.configure({ archive_command: archiveCommand });
    expect(running.stderr).toMatch(/ERROR: "[0-9A-F]{24}" was not archived within 10 s/);
    expect(running.stderr).toMatch(/Archiving fails: [0-9A-F]{24} at /);
    expect(await backupObjects()).toEqual(before);
  });

  test("a slow archive_command is waited for", async () => {
    await server.configure({ archive_command: `sleep 1; ${archiveCommand}` });
    await pushBackup(server, { ...repository.env, WALB_ARCHIVE_TIMEOUT: "30s" });
    await server.configure({ archive_command: archiveCommand });
    expect(await listedBackups(server, repository.env)).toHaveLength(2);
  });

  test("a server that crashes during the backup ends it with 76, and the parts are taken back", async () => {
    const before = await backupObjects();
    await using running = await startHeld();
    await server.crash();
    running.signal("SIGCONT");
    expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
    expect(running.stderr).toContain("ERROR: lost the connection to PostgreSQL");
    expect(running.stderr).toContain("HINT: The server's log says why it ended the session, or whether it stopped.");
    expect(await backupObjects()).toEqual(before);

    await server.start();
    await pushBackup(server, repository.env);
    expect(await listedBackups(server, repository.env)).toHaveLength(3);
  });

  const endSession = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'wal-b%'";
  /** Waits for nothing but its WAL, which does not come, and has no session any more. */
  const startWithoutSession = async (timeout: string) => {
    const labels = async () => (await backupObjects()).filter((key) => key.endsWith("/backup_label.tar.zst")).length;
    const before = await labels();
    const running = await startWalb(server, ["backup-push", server.dataDirectory], {
      ...repository.env,
      WALB_ARCHIVE_TIMEOUT: timeout,
    });
    await stopArchivingDuring(running, server);
    await server.waitFor(async () => (await labels()) > before, { what: "the label part" });
    await server.query(endSession);
    return running;
  };

  test("a session that ends once the server is out of backup mode is needed no more: the backup goes on to wait for its WAL", async () => {
    const before = await listedBackups(server, repository.env);
    await using running = await startWithoutSession("60s");
    // Told after 15 s.
    await running.says("waiting for PostgreSQL to archive");
    await server.configure({ archive_command: archiveCommand });
    expect({ ...(await running.ended()), stderr: running.stderr }).toEqual({
      exitCode: 0,
      signal: null,
      stderr: expect.stringMatching(
        /The server cannot be asked any more: lost the connection to PostgreSQL\..* terminating connection due to administrator command/,
      ),
    });
    const [newest = "", ...others] = (await listedBackups(server, repository.env)).toReversed();
    expect(others).toEqual(before.toReversed());
    const { exitCode, stderr } = await runWalb(["verify", newest], { as: server, env: repository.env });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  });

  test("without its session, a backup whose WAL does not come in time says just that", async () => {
    const before = await backupObjects();
    await using running = await startWithoutSession("6s");
    expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
    await server.configure({ archive_command: archiveCommand });
    expect(running.stderr).toMatch(/ERROR: "[0-9A-F]{24}" was not archived within 6 s/);
    expect(running.stderr).toContain("The server cannot be asked any more: lost the connection to PostgreSQL.");
    expect(await backupObjects()).toEqual(before);
  });

  test("a session that is ended by an administrator ends the backup with 76", async () => {
    const before = await backupObjects();
    await using running = await startHeld();
    await server.query(endSession);
    running.signal("SIGCONT");
    expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
    expect(running.stderr).toContain("terminating connection due to administrator command");
    expect(await backupObjects()).toEqual(before);
  });
});
