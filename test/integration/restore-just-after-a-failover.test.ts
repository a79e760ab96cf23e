/**
 * Just after a failover the archive has the new timeline's history and not yet its first segment, and the old primary may go on
 * archiving. Recovery takes the old one's segment of that number then (xlogrecovery.c, XLogFileReadAnyTLI), and what follows it.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import {
  archiveEverything,
  fetchBackup,
  pushBackup,
  recover,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
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
  await promoted.waitFor(async () => (await promoted.psql("SELECT pg_is_in_recovery()")) === "f");
  await promoted.query("INSERT INTO steps VALUES ('new')");
  await promoted.waitFor(async () => (await repository.keys()).includes("wal_005/00000002.history.zst"));
});
afterAll(async () => {
  await promoted?.[Symbol.asyncDispose]();
  await old?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

async function restored(name: string, args: readonly string[]): Promise<string> {
  const directory = join(old.directory, name);
  const { exitCode, stderr } = await runWalb(["restore", directory, ...args], { as: old, env: repository.env });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  return directory;
}

async function rowsOf(recovered: PostgresServer): Promise<string> {
  await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_in_recovery()")) === "f");
  return await recovered.psql("SELECT id, count(*) FROM steps GROUP BY id ORDER BY id");
}

async function rowsAfterRecovery(directory: string): Promise<string> {
  await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
  return await rowsOf(recovered);
}

test("PostgreSQL itself replays what the old primary had after the fork", async () => {
  const directory = join(old.directory, "by hand");
  await fetchBackup(old, repository.env, { directory });
  await using recovered = await recover(directory, repository.env);
  expect(await rowsOf(recovered)).toBe("both|11\nold|2");
  expect(await recovered.logText()).toContain(`"00000002${forked}" is not in the archive`);
  expect(await recovered.logText()).toContain(`restored "00000001${forked}" from the archive`);
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
