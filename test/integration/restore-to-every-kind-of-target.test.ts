/**
 * wal-b restore sets a directory up so that a server on it recovers to exactly what was said, waits there, and goes on. That every
 * major goes to every kind of target is shown by story-on-postgresql-*.test.ts.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { runWalb } from "../support/walb.ts";

interface Story {
  readonly server: PostgresServer;
  readonly repository: Awaited<ReturnType<typeof temporaryRepository>>;
  /** Row counts, by what is said to --to. */
  readonly targets: ReadonlyMap<string, { readonly to: string; readonly rows: number }>;
}

const stories = new Map<number, Promise<Story>>();
afterAll(async () => {
  for (const story of stories.values()) {
    const { server, repository } = await story;
    await server[Symbol.asyncDispose]();
    await repository[Symbol.asyncDispose]();
  }
});

function storyOf(major: number): Promise<Story> {
  const known = stories.get(major) ?? tell(major);
  stories.set(major, known);
  return known;
}

/** One row for each commit, so that a count of rows says exactly where recovery stopped. */
async function tell(major: number): Promise<Story> {
  const repository = await temporaryRepository();
  const server = await startArchiving(repository.env, { major });
  const insert = async () => await server.query("INSERT INTO steps (filler) VALUES (repeat('x', 1000))");
  await server.query("CREATE TABLE steps (id serial, filler text)");
  for (let n = 0; n < 10; n++) await insert();
  await server.configure({ work_mem: "7MB", log_line_prefix: "it's 100% \\ " });
  // Of an earlier recovery, and in the way of this one.
  await server.query("ALTER SYSTEM SET recovery_target_name = 'long ago'");
  await server.query("ALTER SYSTEM SET restore_command = 'false'");
  // Of a delayed standby.
  await server.query("ALTER SYSTEM SET recovery_min_apply_delay = '8h'");
  await pushBackup(server, repository.env);
  await server.query("ALTER SYSTEM SET work_mem = '9MB'");

  await insert();
  await Bun.sleep(20);
  const time = await server.psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
  await Bun.sleep(20);
  await insert();
  await server.query("SELECT pg_create_restore_point('at twelve')");
  await archiveEverything(server, repository);
  await insert();
  const lsn = await server.psql("SELECT pg_current_wal_insert_lsn()");
  const xid = await server.psql("INSERT INTO steps (filler) VALUES ('with a number') RETURNING xmin");
  for (let n = 14; n < 20; n++) await insert();
  await archiveEverything(server, repository);
  return {
    server,
    repository,
    targets: new Map([
      ["immediate", { to: "immediate", rows: 10 }],
      ["a time", { to: `${time}Z`, rows: 11 }],
      ["a time of another zone", { to: `${laterBy(2, time)}+02:00`, rows: 11 }],
      ["a restore point", { to: "name:at twelve", rows: 12 }],
      ["an LSN", { to: lsn, rows: 13 }],
      ["a transaction", { to: xid, rows: 14 }],
      ["latest", { to: "latest", rows: 20 }],
    ]),
  };
}

/** The same moment on a clock that many hours further east. */
function laterBy(hours: number, time: string): string {
  const date = new Date(`${time.slice(0, 19).replace(" ", "T")}Z`);
  return `${new Date(date.getTime() + hours * 3_600_000).toISOString().slice(0, 19)}${time.slice(19)}`;
}

describe.each([17])("on PostgreSQL %i", (major) => {
  test.each(["immediate", "a time", "a time of another zone", "a restore point", "an LSN", "a transaction"])(
    "to %s: recovers to it, waits, and goes on",
    async (name) => {
      const { server, repository, targets } = await storyOf(major);
      const { to, rows } = targets.get(name) ?? { to: "", rows: -1 };
      const directory = join(server.directory, `to ${name}`);
      const { exitCode, stderr, stdout } = await runWalb(["restore", directory, "--to", to], {
        as: server,
        env: repository.env,
      });
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.stringContaining("restored backup") });
      expect(stdout).toContain("SELECT pg_wal_replay_resume();");
      expect((await stat(join(directory, "recovery.signal"))).mode & 0o777).toBe(0o600);

      await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
      await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_wal_replay_paused()")) === "t", {
        what: "the pause at the target",
      });
      expect(await recovered.psql("SELECT count(*) FROM steps")).toBe(String(rows));
      await recovered.query("SELECT pg_wal_replay_resume()");
      await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_in_recovery()")) === "f");
      expect(await recovered.psql("SELECT count(*) FROM steps")).toBe(String(rows));
      await recovered.query("INSERT INTO steps (filler) VALUES ('it is a server')");
    },
  );

  test("to the end of the archive, if nothing else is said, with the settings that were there", async () => {
    const { server, repository } = await storyOf(major);
    const directory = join(server.directory, "to latest");
    const { exitCode, stderr } = await runWalb(["restore", directory], { as: server, env: repository.env });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });

    const text = await readFile(join(directory, "postgresql.auto.conf"), "utf8");
    expect(text).toMatch(/^# Before wal-b restore, .*: recovery_target_name = 'long ago'$/m);
    expect(text).toMatch(/^# Before wal-b restore, .*: restore_command = 'false'$/m);
    expect(text).toMatch(/^# Before wal-b restore, .*: recovery_min_apply_delay = '8h'$/m);
    expect(text).toMatch(/^restore_command = '.*wal-b'? --file-prefix=.* wal-fetch %f "%p"'$/m);

    await using recovered = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
    await recovered.waitFor(async () => (await recovered.psql("SELECT pg_is_in_recovery()")) === "f");
    expect(await recovered.psql("SELECT count(*) FROM steps")).toBe("20");
    expect(await recovered.psql("SHOW work_mem")).toBe("7MB");
    expect(await recovered.psql("SHOW recovery_min_apply_delay")).toBe("0");
    expect(await recovered.psql("SHOW log_line_prefix")).toBe("it's 100% \\ ");
  });

  test("a dry run shows the plan and writes nothing", async () => {
    const { server, repository, targets } = await storyOf(major);
    const directory = join(server.directory, "not made");
    const to = targets.get("an LSN")?.to ?? "";
    const args = ["restore", directory, "--to", to, "--action", "promote", "--dry-run"];
    const text = await runWalb(args, { as: server, env: repository.env });
    expect({ exitCode: text.exitCode, stderr: text.stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(text.stdout).toContain(`target      LSN ${to}, on timeline 1; then promote\n`);
    const json = await runWalb([...args, "--json"], { as: server, env: repository.env });
    expect(JSON.parse(json.stdout)).toMatchObject({
      target: "lsn",
      timeline: 1,
      signal_file: "recovery.signal",
      settings: { recovery_target_lsn: to, recovery_target_action: "promote", recovery_target_timeline: "1" },
    });
    expect(await readdir(server.directory)).not.toContain("not made");
  });
});
