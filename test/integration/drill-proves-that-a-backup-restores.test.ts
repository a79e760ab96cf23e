/**
 * verify --drill on every major: a backup with tablespaces is restored, recovered to the end of the archive, looked at, and
 * removed; and whatever its configuration, its triggers and its presets say, nothing outside sees any of it.
 */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { appendFile, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { documentOf, oncePerMajor, ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb } from "../support/walb.ts";

interface Story {
  readonly major: number;
  readonly server: PostgresServer;
  readonly repository: Awaited<ReturnType<typeof temporaryRepository>>;
  readonly scratch: ScratchParent;
  readonly backup: string;
  /** What would exist if anything that the backup asks for had been done. */
  readonly evil: string;
}

const storyOf = oncePerMajor(tell);

/** Varied over the majors, so that each is met on an old and on a new one. */
const SEGMENT_MIB: Readonly<Record<number, number>> = { 13: 16, 14: 64, 16: 16, 17: 64 };
const hasChecksums = (major: number) => major % 2 === 0;

/** The server is stopped at the end: a drill needs the repository only. */
async function tell(major: number): Promise<Story> {
  const repository = await temporaryRepository();
  const segmentMiB = SEGMENT_MIB[major] ?? 1;
  const server = await startArchiving(repository.env, {
    major,
    tablespaces: ["fast"],
    dataChecksums: hasChecksums(major),
    walSegmentSizeMiB: segmentMiB,
    settings: {
      max_wal_size: `${4 * segmentMiB + 32}MB`,
      min_wal_size: `${2 * segmentMiB}MB`,
      max_prepared_transactions: "5",
    },
  });
  const scratch = await ScratchParent.create(server);
  const evil = join(server.directory, "evil");
  const rows = "SELECT repeat(md5(n::text), 10) FROM generate_series(1, 3000) n";
  await server.query(`
    CREATE TABLE kept (id serial PRIMARY KEY, text text);
    CREATE TABLE elsewhere (id serial PRIMARY KEY, text text) TABLESPACE fast;
    CREATE INDEX computed ON kept (lower(text)) WHERE id > 10;
    CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS one;
    CREATE MATERIALIZED VIEW empty AS SELECT * FROM kept WITH NO DATA;
    CREATE INDEX hashed ON kept USING hash (id);
    CREATE FUNCTION told(id int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
      $$ BEGIN IF current_setting('application_name') = 'wal-b drill' THEN RAISE 'run by a drill'; END IF; RETURN id; END $$;
    CREATE INDEX calling ON kept (told(id));
    INSERT INTO kept (text) ${rows}; INSERT INTO elsewhere (text) ${rows}`);
  await server.query("CREATE DATABASE other");
  {
    await using session = await server.connect("other");
    await session.query("CREATE TABLE locked AS SELECT 1 AS one");
    await session.query("BEGIN; ALTER TABLE locked ADD COLUMN two int; PREPARE TRANSACTION 'half ''way'");
  }

  const backup = await withHostileConfiguration(server, evil, async () => await pushBackup(server, repository.env));

  // What replay comes to: a limit that is raised, segments, and what would run when somebody connects or creates something.
  await appendFile(join(server.dataDirectory, "postgresql.conf"), "max_connections = 60\n");
  await server.restart();
  await using session = await server.connect();
  await session.query(`INSERT INTO kept (text) ${rows}; INSERT INTO elsewhere (text) ${rows}`);
  await session.query(`
    CREATE FUNCTION outside() RETURNS event_trigger LANGUAGE plpgsql AS
      $$ BEGIN COPY (SELECT 1) TO PROGRAM 'cat > ${evil}'; END $$;
    CREATE EVENT TRIGGER outside ON ddl_command_start EXECUTE FUNCTION outside();
    ALTER EVENT TRIGGER outside ENABLE ALWAYS`);
  if (major >= 17) {
    await session.query("CREATE EVENT TRIGGER at_login ON login EXECUTE FUNCTION outside()");
    await session.query("ALTER EVENT TRIGGER at_login ENABLE ALWAYS");
  }
  await session.query("ALTER DATABASE postgres SET session_preload_libraries = 'nosuch'");
  await session.query("ALTER DATABASE other SET default_transaction_read_only = on");
  await session.query("ALTER ROLE postgres SET role = 'pg_monitor'");
  const { rows: last } = await session.query<{ name: string }>("SELECT pg_walfile_name(pg_switch_wal()) AS name");
  await waitFor(async () => (await repository.keys()).includes(`wal_005/${last[0]?.name}.zst`), {
    what: "the last segment in the archive",
    timeoutMs: 120_000,
  });
  await session.end();
  await server.stop();
  await rm(evil, { force: true });
  return { major, server, repository, scratch, backup, evil };
}

/** As somebody might have left it: none of this is what the running server has. */
async function withHostileConfiguration<T>(server: PostgresServer, evil: string, work: () => Promise<T>): Promise<T> {
  const settings = [
    ["archive_mode", "on"],
    ["archive_command", `echo archived > ${evil}`],
    ["recovery_end_command", `echo ended > ${evil}`],
    ["archive_cleanup_command", `echo cleaned > ${evil}`],
    ["listen_addresses", "*"],
    ["shared_preload_libraries", "nosuch"],
    ["external_pid_file", evil],
    ["log_directory", server.directory],
    ["logging_collector", "on"],
  ].map(([name, value]) => `${name} = '${value}'\n`);
  const hostile = {
    "postgresql.conf": `${settings.join("")}include '/nonexistent'\n`,
    "postgresql.auto.conf": `${settings.join("")}work_mem = 'much'\n`,
    "pg_hba.conf": "this is no rule\n",
    "pg_ident.conf": "nor this\n",
  };
  const original = new Map<string, string>();
  for (const [name, text] of Object.entries(hostile)) {
    const path = join(server.dataDirectory, name);
    original.set(path, await readFile(path, "utf8"));
    await appendFile(path, text);
  }
  try {
    return await work();
  } finally {
    for (const [path, text] of original) await writeFile(path, text);
  }
}

/** Every file below it, with size, time and content's hash. */
async function fingerprint(directory: string): Promise<string> {
  const script = 'cd "$1" && find . -printf "%p %s %T@ %m %u\\n" | sort && find . -type f -exec sha256sum {} + | sort';
  const { exitCode, stdout, stderr } = await runProgram(["/bin/sh", "-c", script, "sh", directory]);
  if (exitCode !== 0) throw new Error(stderr);
  return stdout;
}

const ACCOUNTS = ["whoever runs this", "the server's account"] as const;

/** On the oldest and the newest major as each account, and as either in turn on those between. */
const accountsOn = (major: number) =>
  major === POSTGRES_MAJORS[0] || major === NEWEST_MAJOR ? ACCOUNTS : [ACCOUNTS[major % 2] ?? ACCOUNTS[0]];

describe.each(POSTGRES_MAJORS)("PostgreSQL %i", (major) => {
  test.each(accountsOn(major))(
    "as %s, it restores, and nothing outside sees it",
    async (who) => {
      const { server, repository, scratch, backup, evil } = await storyOf(major);
      const before = { keys: await repository.keys(), server: await fingerprint(server.directory) };

      const result = await scratch.drill(repository.env, [], who === "the server's account" ? server : undefined);
      expect(result).toMatchObject({ exitCode: 0 });
      const document = documentOf(result);
      expect(document).toMatchObject({
        backup_name: backup,
        verdict: "good",
        restore: { files: expect.any(Number), bytes: expect.any(Number) },
        // template0 and template1 too.
        checks: { databases: 4, amcheck: expect.stringMatching(/^1\./) },
        findings: [],
        kept: null,
      });
      expect(Number.parseInt(document.postgres_version, 10)).toBe(major);
      expect(document.replay.wal_bytes).toBe(document.replay.end_lsn - document.replay.start_lsn);
      expect(document.replay.wal_bytes).toBeGreaterThan(3 * 2 ** 20);
      expect(document.recovery_seconds).toBeGreaterThan(document.restore.seconds);
      expect(document.notes).toEqual([
        'In the copy, prepared transactions of "other" were rolled back: 1.',
        "Indexes that are no B-trees were not checked: 1.",
      ]);

      expect(await scratch.left()).toEqual([]);
      expect(existsSync(evil)).toBe(false);
      // The tablespace is in it, where it always was.
      expect(await fingerprint(server.directory)).toBe(before.server);
      const added = (await repository.keys()).filter((key) => !before.keys.includes(key));
      expect(added.map((key) => `file://${repository.directory}/${key}`)).toEqual([document.stored ?? ""]);
      const stored: unknown = JSON.parse(await readFile(join(repository.directory, added[0] ?? ""), "utf8"));
      expect(document).toMatchObject(stored as object);
    },
    240_000,
  );
});

test("a listing tells of the last one", async () => {
  const { server, repository, scratch, backup } = await storyOf(NEWEST_MAJOR);
  const { stored, recovery_seconds } = documentOf(await scratch.drill(repository.env, ["--to", "immediate"]));
  const list = async (...args: string[]) =>
    await runWalb(["backup-list", ...args], { env: repository.env, as: server });
  const time = /walb_drill_(.*)_good/.exec(stored ?? "")?.[1]?.replace(/T(\d\d)-(\d\d)-/, "T$1:$2:");
  expect((await list()).stdout).toMatch(new RegExp(`\tlast_drill\n${backup}\t.*\t${time} good\n`));
  expect((await list("--detail")).stdout).toContain(`\t${time} good, recovery in ${recovery_seconds.toFixed(1)} s\n`);
  const { stdout } = await list("--json");
  expect(JSON.parse(stdout)).toMatchObject([{ last_drill: { time, verdict: "good", recovery_seconds } }]);
}, 240_000);

test("--keep leaves a directory that a server starts on", async () => {
  const { server, repository, scratch } = await storyOf(NEWEST_MAJOR);
  const { kept } = documentOf(await scratch.drill(repository.env, ["--keep"], server));
  expect(await scratch.left()).toEqual([(kept ?? "").slice(scratch.path.length + 1)]);
  const settings = { config_file: join(kept ?? "", "postgresql.conf") };
  {
    await using copy = await startPostgresOn(join(kept ?? "", "data"), { settings, until: "spawned" });
    const comesIn = async () => {
      await using session = await copy.connect("other");
      return (await session.query("SELECT 1")).rowCount === 1;
    };
    await copy.waitFor(async () => await comesIn().catch(() => false), {
      what: "the kept server to answer",
      timeoutMs: 120_000,
    });
    expect(await copy.logText()).not.toContain("was not properly shut down");
  }
  // It is no leftover.
  const again = await scratch.drill(repository.env, [], server);
  expect(again.stderr).not.toContain("left");
  await rm(kept ?? "", { recursive: true });
}, 240_000);
