/** A promotion parts the archive's timelines; restore goes along the one that is meant, and makes standbys. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readFile, stat, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import {
  archiveEverything,
  pushBackup,
  restoreBesideIt,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let backup = "";
let late = "";

/** Ten rows; then "old" on timeline 1 after the point at which timeline 2 begins, with "new". */
beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { major: 16 });
  await server.query("CREATE TABLE steps AS SELECT 'both' AS id FROM generate_series(1, 10)");
  backup = await pushBackup(server, repository.env);
  await server.query("INSERT INTO steps VALUES ('both')");
  await server.query("SELECT pg_create_restore_point('fork')");
  await server.query("INSERT INTO steps VALUES ('old')");
  await archiveEverything(server, repository);
  await server.query("INSERT INTO steps VALUES ('old')");
  await archiveEverything(server, repository);
  late = await pushBackup(server, repository.env);
  await archiveEverything(server, repository);

  const directory = await restored("promoted", ["--to", "name:fork", "--action", "promote"]);
  const settings = { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` };
  await using promoted = await startPostgresOn(directory, { env: repository.env, settings });
  await promoted.waitFor(async () => (await promoted.psql("SELECT pg_is_in_recovery()")) === "f");
  await promoted.query("INSERT INTO steps VALUES ('new'), ('new'), ('new')");
  await archiveEverything(promoted, repository);
  await promoted.query("INSERT INTO steps VALUES ('new')");
  await archiveEverything(promoted, repository);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const restored = (name: string, args: readonly string[]) => restoreBesideIt(server, repository.env, name, args);

async function rowsAfterRecovery(directory: string): Promise<string> {
  await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
  await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_in_recovery()")) === "f");
  return await recovered.psql("SELECT id, count(*) FROM steps GROUP BY id ORDER BY id");
}

test("the newest timeline, from a backup that leads there", async () => {
  const plan = await runWalb(["restore", join(server.directory, "no"), "--dry-run", "--json"], {
    as: server,
    env: repository.env,
  });
  expect(plan.stderr).toContain(`the newest backup, "${late}", does not lead to timeline 2`);
  expect(plan.stderr).toContain("To stay on the other one, say --timeline 1.");
  expect(JSON.parse(plan.stdout)).toMatchObject({ backup_name: backup, timeline: 2 });
  expect(await rowsAfterRecovery(await restored("newest", []))).toBe("both|11\nnew|4");
});

test("the old timeline, past the point where it was left", async () => {
  expect(await rowsAfterRecovery(await restored("old", ["--timeline", "1"]))).toBe("both|11\nold|2");
});

test("a backup that does not lead to the timeline is refused", async () => {
  const args = ["restore", join(server.directory, "no"), "--backup", late, "--timeline", "2"];
  const { exitCode, stderr } = await runWalb(args, { as: server, env: repository.env });
  expect(exitCode).toBe(64);
  expect(stderr).toContain(`backup "${late}" does not lead to timeline 2`);
});

test("a standby goes on to ask the archive, and follows it", async () => {
  const directory = await restored("standby", ["--standby"]);
  expect(existsSync(join(directory, "standby.signal"))).toBe(true);
  expect(existsSync(join(directory, "recovery.signal"))).toBe(false);
  await using standby = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
  await standby.waitFor(async () => (await standby.psql("SELECT count(*) FROM steps WHERE id = 'new'")) === "4");
  expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("t");
  await standby.query("SELECT pg_promote()");
  expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("f");
});

test("--action shutdown stops the server at the target", async () => {
  const directory = await restored("shutdown", ["--to", "immediate", "--backup", backup, "--action", "shutdown"]);
  await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" }, until: "spawned" });
  await recovered.exited();
  expect(await recovered.logText()).toContain("shutdown at recovery target");
});

const TO_BACKUP = () => ["--to", "immediate", "--backup", backup];
test.each([
  ["latest", () => []],
  ["--standby", () => ["--standby"]],
  ["--action pause", TO_BACKUP],
  ["--action promote", () => [...TO_BACKUP(), "--action", "promote"]],
  ["--action shutdown", () => [...TO_BACKUP(), "--action", "shutdown"]],
])("%s: the log shows what restore said that it would", async (what, args) => {
  const directory = join(server.directory, `told ${what}`);
  const { stdout } = await runWalb(["restore", directory, ...args()], { as: server, env: repository.env });
  const [, told = ""] = /^3\. The log shows (.*)$/m.exec(stdout) ?? [];
  const phrases = [...told.matchAll(/"([^"]+)"/g)].map(([, phrase]) => phrase ?? "");
  expect(phrases).not.toEqual([]);
  await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" }, until: "spawned" });
  await recovered.waitFor(async () => {
    const log = await recovered.logText();
    return phrases.every((phrase) => log.includes(phrase));
  });
});

// Only root restores for another account.
if (process.getuid?.() !== 0) {
  process.stderr.write("not tested: restoring as root: that needs root\n");
} else {
  test("root restores for the server's account, with an envdir that the server reads too", async () => {
    const around = await server.makeDirectory("restored by root");
    const envdir = await server.makeDirectory("envdir");
    await writeFile(join(envdir, "WALB_FILE_PREFIX"), repository.directory);
    const directory = join(around, "data");
    const args = ["--envdir", "envdir", "restore", directory, "--to", "immediate", "--action", "promote"];
    const { exitCode, stderr } = await runWalb(args, { cwd: server.directory });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.not.stringContaining("WARNING") });
    for (const name of ["postgresql.auto.conf", "recovery.signal"]) {
      expect([name, (await stat(join(directory, name))).uid]).toEqual([name, server.account?.uid ?? -1]);
    }
    expect(await readFile(join(directory, "postgresql.auto.conf"), "utf8")).toContain(
      `restore_command = '${resolve(import.meta.dir, "../../dist/wal-b")} --envdir ${envdir} wal-fetch %f "%p"'`,
    );
    // The server's account may not be able to enter the checkout.
    const restore_command = `${await walbBinary()} --envdir ${envdir} wal-fetch %f "%p"`;
    await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off", restore_command } });
    await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_in_recovery()")) === "f");
  });
}
