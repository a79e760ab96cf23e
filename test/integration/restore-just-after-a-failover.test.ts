/**
 * Just after a failover the archive has the new timeline's history and not yet its first segment, and the old primary may go on
 * archiving. Recovery takes the old one's segment of that number then (xlogrecovery.c, XLogFileReadAnyTLI), and what follows it.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  archiveEverything,
  fetchBackup,
  pushBackup,
  restoreBesideIt,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import { type PostgresServer, type Settings, startPostgresOn } from "../support/postgres-server.ts";
import { untilArchived, untilPromoted } from "../support/prefetching.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let old: PostgresServer;
let promoted: PostgresServer;
/** Without its timeline. */
let forked = "";

/** Eleven rows; then "old" on timeline 1 after the point at which timeline 2 begins, of which nothing but the history is archived. */
beforeAll(async () => {
  repository = await temporaryRepository();
  old = await startArchiving(repository.env, { major: 16 });
  await old.query("CREATE TABLE steps AS SELECT 'both' AS id FROM generate_series(1, 10)");
  await pushBackup(old, repository.env);
  await old.query("INSERT INTO steps VALUES ('both')");
  await old.query("SELECT pg_create_restore_point('fork')");
  forked = (await old.psql("SELECT pg_walfile_name(pg_current_wal_lsn())")).slice(8);
  await old.query("INSERT INTO steps VALUES ('old')");
  await archiveEverything(old, repository);
  await old.query("INSERT INTO steps VALUES ('old')");
  await archiveEverything(old, repository);

  const directory = await restored("promoted", ["--to", "name:fork", "--action", "promote"]);
  const settings = { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` };
  promoted = await startPostgresOn(directory, { env: repository.env, settings });
  await untilPromoted(promoted);
  await promoted.query("INSERT INTO steps VALUES ('new')");
  await promoted.waitFor(async () => (await repository.keys()).includes("wal_005/00000002.history.zst"));
});
afterAll(async () => {
  await promoted?.[Symbol.asyncDispose]();
  await old?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const restored = (name: string, args: readonly string[]) => restoreBesideIt(old, repository.env, name, args);

async function rowsOf(recovered: PostgresServer): Promise<string> {
  await untilPromoted(recovered);
  return await recovered.psql("SELECT id, count(*) FROM steps GROUP BY id ORDER BY id");
}

async function rowsAfterRecovery(directory: string): Promise<string> {
  await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
  return await rowsOf(recovered);
}

/** The backup, to be recovered without "restore". */
async function fetched(name: string): Promise<string> {
  const directory = join(old.directory, name);
  await fetchBackup(old, repository.env, { directory });
  await writeFile(join(directory, "recovery.signal"), "");
  return directory;
}

const recovery = async (restoreCommand: string, settings: Settings = {}) => ({
  env: repository.env,
  settings: { restore_command: restoreCommand, archive_mode: "off", ...settings },
});

test("PostgreSQL itself replays what the old primary had after the fork", async () => {
  const directory = await fetched("by hand");
  // What a restore_command says that knows nothing of timelines.
  const command = `${await walbBinary()} wal-fetch %f %p || exit 1`;
  await using recovered = await startPostgresOn(directory, await recovery(command));
  expect(await rowsOf(recovered)).toBe("both|11\nold|2");
  expect(await recovered.logText()).toContain(`restored "00000001${forked}" from the archive`);
});

test("wal-fetch stops a recovery that was set up by hand, and lets one go on that stays on purpose", async () => {
  const command = `${await walbBinary()} wal-fetch %f %p`;
  const options = { ...(await recovery(command)), until: "spawned" } as const;
  await using stopped = await startPostgresOn(await fetched("stopped"), options);
  expect(await stopped.exited(60_000)).toEqual({ exitCode: 1, signal: null });
  const log = await stopped.logText();
  expect(log).toContain(
    `ERROR: "00000002${forked}" is not archived yet, and recovery would take "00000001${forked}" for it`,
  );
  expect(log).toMatch(
    /HINT: If the recovery target is before LSN 0\/[0-9A-F]+, or timeline 2 was a trial, set recovery_target_timeline = '1'\./,
  );
  expect(log).toContain(
    `could not restore file "00000002${forked}" from archive: child process exited with exit code 200`,
  );

  const staying = await recovery(command, { recovery_target_timeline: "1" });
  await using stayed = await startPostgresOn(await fetched("stayed"), staying);
  expect(await rowsOf(stayed)).toBe("both|11\nold|2");
});

test.each([
  ["to the end of the archive", []],
  ["a standby", ["--standby"]],
  ["--dry-run", ["--dry-run"]],
  ["--timeline 2", ["--timeline", "2"]],
])("%s: is refused, with both segments, and nothing is written", async (_, args) => {
  const around = await old.makeDirectory("refused");
  const command = ["restore", join(around, "data"), ...args];
  const { exitCode, stderr } = await runWalb(command, { as: old, env: repository.env });
  expect({ exitCode, stderr }).toEqual({
    exitCode: 65,
    stderr: expect.stringContaining(
      `"00000002${forked}" is not archived yet, and recovery would take "00000001${forked}" for it`,
    ),
  });
  expect(stderr).toMatch(/Timeline 1 was left at LSN 0\/[0-9A-F]+ on the way to timeline 2/);
  expect(stderr).toContain("SELECT pg_switch_wal() on the server of timeline 2");
  expect(stderr).toContain("say --timeline 1.");
  expect(await readdir(around)).toEqual([]);
});

test("a target before the fork is reached, and the old timeline on purpose", async () => {
  expect(await rowsAfterRecovery(await restored("old", ["--timeline", "1"]))).toBe("both|11\nold|2");
  const directory = await restored("before", ["--to", "immediate", "--action", "promote"]);
  expect(await rowsAfterRecovery(directory)).toBe("both|10");
});

test("verify finds nothing damaged, and notes it", async () => {
  const { exitCode, stdout } = await runWalb(["verify"], { as: old, env: repository.env });
  expect({ exitCode, stdout }).toEqual({
    exitCode: 0,
    stdout: expect.stringContaining(`note: "00000002${forked}" is not archived yet`),
  });
});

test("once the segment is archived, recovery goes along the new timeline", async () => {
  await archiveEverything(promoted, repository);
  expect(await rowsAfterRecovery(await restored("newest", []))).toBe("both|11\nnew|1");
  const { stdout } = await runWalb(["verify"], { as: old, env: repository.env });
  expect(stdout).not.toContain("not archived yet");
});

test("a timeline that was left because it ended there, in the middle of a record, is gone along to its end", async () => {
  await using own = await temporaryRepository();
  await using crashed = await startArchiving(own.env, { major: 17, walSegmentSizeMiB: 1 });
  await pushBackup(crashed, own.env);
  // Fills segments, and ends none of them early: the last that is archived ends within a record.
  await crashed.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 10) FROM generate_series(1, 20000) n");
  await untilArchived(crashed, await crashed.psql("SELECT pg_walfile_name(pg_current_wal_lsn() - 1048576)"));
  await crashed.stop("immediate");

  const archiving = { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` };
  const directory = await restoreBesideIt(crashed, own.env, "first");
  await using promoted = await startPostgresOn(directory, { env: own.env, settings: archiving });
  await promoted.waitFor(async () => (await own.keys()).includes("wal_005/00000002.history.zst"));
  await promoted.stop("immediate");
  const begun = (await readdir(join(directory, "pg_wal"))).filter((name) => /^00000002[0-9A-F]{16}$/.test(name)).sort();
  const keys = await own.keys();
  expect(keys).toContain(`wal_005/${begun[0]?.replace("00000002", "00000001")}.zst`);
  expect(keys).not.toContain(`wal_005/${begun[0]}.zst`);

  const again = await startPostgresOn(await restoreBesideIt(crashed, own.env, "again"), {
    env: own.env,
    settings: { archive_mode: "off" },
  });
  await using _ = again;
  await untilPromoted(again);
  expect(await again.psql("SELECT timeline_id FROM pg_control_checkpoint()")).toBe("3");
});
