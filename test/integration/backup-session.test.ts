/** A base backup's session on real servers of the oldest, a middle and the newest major. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { PostgresError } from "../../src/errors.ts";
import { describeArchiver, readArchiverStatus, switchWal } from "../../src/postgres/archiver.ts";
import { checkArchiving, checkDataDirectory, checkSeesBackupStart } from "../../src/postgres/backup-preflight.ts";
import { type BackupSession, startBackupSession } from "../../src/postgres/backup-session.ts";
import { type Connection, connectToPostgres } from "../../src/postgres/connection.ts";
import {
  readTablespaceLinks,
  tablespaceVersionDirectory,
  walkDataDirectory,
} from "../../src/postgres/data-directory.ts";
import { libpqSettings } from "../../src/postgres/libpq-settings.ts";
import { formatLsn } from "../../src/postgres/lsn.ts";
import { readMajorVersion, readOfflineState } from "../../src/postgres/offline-state.ts";
import { PG_CONTROL_PATH, readPgControl, readPgControlBytes } from "../../src/postgres/pg-control.ts";
import { formatTablespaceMap, parseTablespaceMap } from "../../src/postgres/tablespace-map.ts";
import { giveTo } from "../support/account.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { recordedLog } from "../unit/postgres/recorded-log.ts";

describe.each([12, 15, 18])("with PostgreSQL %i", (major) => {
  let server: PostgresServer;

  beforeAll(async () => {
    const archiveCommand = 'mkdir -p "$HOME/archive" && cp %p "$HOME/archive/%f"';
    server = await startPostgres({ major, archiveCommand, tablespaces: ["space"] });
    await server.query(`CREATE TABLE kept (id int) TABLESPACE space; INSERT INTO kept SELECT generate_series(1, 1000);
                        CREATE UNLOGGED TABLE emptied (id int); INSERT INTO emptied VALUES (1)`);
  });
  afterAll(async () => await server[Symbol.asyncDispose]());

  test("a copy taken between start and stop starts as a server, with its labels byte for byte", async () => {
    await using session = await start(server);
    await checkDataDirectory(server.dataDirectory, session.server);
    await checkSeesBackupStart(server.dataDirectory, session.startLsn);
    expect(session.timeline).toBe(1);
    expect(session.server).toMatchObject({ majorVersion: major, role: "primary", dataChecksums: "on" });
    const tablespaces = await readTablespaceLinks(server.dataDirectory);
    expect(tablespaces).toMatchObject([{ location: server.tablespaceDirectory("space") }]);

    await server.query("INSERT INTO kept SELECT generate_series(1001, 2000)");
    const { copy, space } = await copyOf(server);
    const { stopLsn, backupLabel, tablespaceMap, label } = await session.stop();
    expect(stopLsn).toBeGreaterThan(session.startLsn);
    expect(label).toMatchObject({ label: "a label", startTimeline: 1, startSegment: session.startSegment.name });
    expect(Buffer.from(backupLabel).toString()).toContain(
      `START WAL LOCATION: ${formatLsn(session.startLsn)} (file ${session.startSegment.name})\n`,
    );
    expect(Buffer.from(tablespaceMap).toString()).toBe(formatTablespaceMap(tablespaces));

    await writeFile(join(copy, "backup_label"), backupLabel);
    const links = parseTablespaceMap(Buffer.from(tablespaceMap).toString());
    const moved = formatTablespaceMap(links.map((link) => ({ ...link, location: space })));
    await writeFile(join(copy, "tablespace_map"), moved);
    await writeFile(join(copy, "recovery.signal"), "");
    await Bun.$`chown -R --reference=${server.dataDirectory} ${copy} ${space}`.quiet();
    await server.waitFor(async () =>
      (await readdir(join(server.directory, "archive"))).includes(session.startSegment.name),
    );
    const settings = { restore_command: `cp ${server.directory}/archive/%f %p`, archive_mode: "off" };
    await using restored = await startPostgresOn(copy, { major, settings });
    await restored.waitFor(async () => (await restored.psql("SELECT pg_is_in_recovery()")) === "f");
    expect(await restored.psql("SELECT count(*), (SELECT count(*) FROM emptied) FROM kept")).toBe("2000|0");
    expect(await restored.psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'space'")).toBe(
      space,
    );
  });

  test("a session that is left early ends the backup, and nothing of it stays in the data directory", async () => {
    {
      await using session = await start(server);
      expect(session.startLsn).toBeGreaterThan(0n);
    }
    await server.waitFor(async () => (await server.logText()).includes("aborting backup due to backend exiting"));
    expect(await sessions(server)).toBe("0");
    expect(await readdir(server.dataDirectory)).not.toContain("backup_label");
  });

  test("an aborted signal ends the session at once, with the signal's reason", async () => {
    const stop = new AbortController();
    const reason = new Error("asked to stop");
    await using session = await start(server, { signal: stop.signal });
    stop.abort(reason);
    expect(session.lost.reason).toBe(reason);
    await expect(session.stop()).rejects.toBe(reason);
    await server.waitFor(async () => (await sessions(server)) === "0");
  });

  test("a session that the server ends is lost before anybody asks, and says why", async () => {
    await using session = await start(server);
    const lost = new Promise((resolve) => session.lost.addEventListener("abort", resolve));
    await server.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wal-b'");
    await lost;
    const failure = await failureOf(session.stop());
    expect(failure.message).toBe("lost the connection to PostgreSQL");
    expect(failure.detail).toContain("terminating connection due to administrator command");
  });

  test("the archiver's state is told, and WAL can be switched", async () => {
    await using connection = await connect(server);
    await server.query("SELECT pg_logical_emit_message(false, 'test', 'x')");
    const before = await readArchiverStatus(connection);
    expect(before).toMatchObject({ walLevel: "replica", archiveMode: "on", archiveLibrary: "", failedCount: 0 });
    expect(await switchWal(connection)).toBeGreaterThan(0n);
    const status = await server.waitFor(async () => {
      const found = await readArchiverStatus(connection);
      return found.archived !== undefined && found;
    });
    expect(describeArchiver(status)).toMatch(
      /^The server last archived 0000000100000000000000\S+ at 20\d\d-\d\d-\d\d \S+\.$/,
    );
  });

  test("a role without rights is told which ones it needs", async () => {
    await server.query("DROP ROLE IF EXISTS poor; CREATE ROLE poor LOGIN");
    const open = () => connect(server, { PGUSER: "poor" });
    const first = await failureOf(startSession(await open()));
    expect(first.message).toBe('role "poor" may not see where the data directory is');
    expect(first.hint).toBe("Run as a superuser: GRANT pg_read_all_settings TO poor;");

    await server.query("GRANT pg_read_all_settings TO poor");
    const second = await failureOf(startSession(await open()));
    expect(second.message).toBe("could not start a backup");
    const grant = /^Run as a superuser: (GRANT EXECUTE ON FUNCTION .* TO poor;)$/.exec(second.hint ?? "")?.[1];
    expect(await sessions(server)).toBe("0");

    await server.query(grant as string);
    await using session = await startSession(await open());
    expect((await session.stop()).label.label).toBe("a label");
  });

  test("a server that stops during the backup is a failure that says so", async () => {
    await using session = await start(server);
    await server.crash();
    const failure = await failureOf(session.stop());
    await server.start();
    expect(failure).toBeInstanceOf(PostgresError);
    expect(failure.message).toBe("lost the connection to PostgreSQL");
  });

  test("a standby can be backed up, until it is promoted", async () => {
    await using standby = await standbyOf(server);
    await server.query("INSERT INTO kept VALUES (0); CHECKPOINT");
    await standby.waitFor(async () => (await standby.psql("SELECT count(*) FROM kept WHERE id = 0")) === "1");
    const archiveMode = await checkArchivingOf(standby);
    expect(archiveMode).toBe("on"); // of its own; a standby archives only with "always"

    {
      await using session = await start(standby);
      expect(session.server).toMatchObject({
        role: "standby",
        systemIdentifier: (await control(server)).systemIdentifier,
      });
      await checkSeesBackupStart(standby.dataDirectory, session.startLsn);
      const failure = await failureOf(checkDataDirectory(server.dataDirectory, session.server));
      expect(failure.message).toBe(`"${server.dataDirectory}" is not the data directory of this server`);
      expect((await session.stop()).label).toMatchObject({ backupFrom: "standby", startLsn: session.startLsn });
    }

    await using pinging = await start(standby, { pingEveryMs: 50 });
    await using silent = await start(standby);
    await standby.query("SELECT pg_promote()");
    await standby.waitFor(() => pinging.lost.aborted);
    // pg_control tells of the new timeline a moment before recovery is over.
    expect(String(pinging.lost.reason)).toMatch(/the standby (was promoted|followed to timeline 2) during the backup/);
    const failure = await failureOf(silent.stop());
    expect(failure.detail).toContain("the standby was promoted during online backup");
  });

  test("a directory that is not the server's is refused", async () => {
    await using session = await start(server);
    const copy = await server.makeDirectory("copy-of-before");
    await mkdir(join(copy, "global"));
    const bytes = await readFile(join(server.dataDirectory, PG_CONTROL_PATH));
    await writeFile(join(copy, PG_CONTROL_PATH), bytes);
    const moved = await failureOf(checkDataDirectory(copy, session.server));
    expect(moved.detail).toBe(`The server runs in "${server.dataDirectory}".`);

    await using later = await start(server);
    const stale = await failureOf(checkSeesBackupStart(copy, later.startLsn));
    expect(stale.message).toBe(`"${copy}" does not show the checkpoint that the backup starts from`);
  });

  test("a stopped cluster is told from a running one", async () => {
    expect((await failureOf(readOfflineState(server.dataDirectory))).message).toContain("a server runs in");
    await server.stop();
    const { control: found, majorVersion } = await readOfflineState(server.dataDirectory);
    expect({ state: found.state, majorVersion }).toEqual({ state: "shut down", majorVersion: major });
    await server.crash();
    await server.start();
    await server.crash();
    const failure = await failureOf(readOfflineState(server.dataDirectory));
    await server.start();
    expect(failure.detail).toBe('Its state is "in production".');
  });
});

describe("checkArchiving()", () => {
  test.each([
    [{}, "the server does not archive WAL", 'archive_mode is "off"'],
    [{ archive_mode: "on" }, "the server does not archive WAL", "archive_command is empty"],
    [{ wal_level: "minimal", max_wal_senders: 0 }, "the server does not write enough WAL", 'wal_level is "minimal"'],
  ])("with %o fails and says what to set", async (settings, message, detail) => {
    await using server = await startPostgres({ major: 15, settings });
    await using connection = await connect(server);
    const failure = await failureOf(checkArchiving(connection, { role: "primary" }));
    expect(failure.message).toContain(message);
    expect(failure.detail).toContain(detail);
    expect(failure.hint).toContain("postgresql.conf");
  });
});

async function connect(server: PostgresServer, env = {}, signal = new AbortController().signal): Promise<Connection> {
  const account = { name: undefined, homeDirectory: undefined };
  return await connectToPostgres(libpqSettings({ env: { ...server.env, ...env }, account }), {
    ...recordedLog(),
    signal,
  });
}

async function startSession(connection: Connection, pingEveryMs?: number): Promise<BackupSession> {
  const { log } = recordedLog();
  const ping = pingEveryMs === undefined ? {} : { pingEveryMs };
  return await startBackupSession({ connection, label: "a label", checkpoint: "fast", log, ...ping });
}

interface StartOptions {
  readonly signal?: AbortSignal;
  readonly pingEveryMs?: number;
}

async function start(server: PostgresServer, { signal, pingEveryMs }: StartOptions = {}): Promise<BackupSession> {
  return await startSession(await connect(server, {}, signal), pingEveryMs);
}

async function failureOf(promise: Promise<unknown>): Promise<PostgresError> {
  const failure: unknown = await promise.then(
    () => "no failure",
    (error) => error,
  );
  if (failure instanceof PostgresError) return failure;
  throw new Error(`not the failure that was expected: ${failure}`);
}

const sessions = (server: PostgresServer) =>
  server.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'wal-b'");

const control = (server: PostgresServer) => readPgControl(server.dataDirectory);

async function checkArchivingOf(server: PostgresServer): Promise<string> {
  await using connection = await connect(server);
  return (await checkArchiving(connection, { role: "standby" })).archiveMode;
}

/** What a backup would contain, pg_control last; the tablespace at another place than the original. */
async function copyOf(server: PostgresServer): Promise<{ readonly copy: string; readonly space: string }> {
  const copy = await server.makeDirectory("copy");
  const space = await server.makeDirectory("copy-of-space");
  const { catalogVersion } = await control(server);
  const versionDirectory = tablespaceVersionDirectory(await readMajorVersion(server.dataDirectory), catalogVersion);
  const { log } = recordedLog();
  const tablespaces = await readTablespaceLinks(server.dataDirectory);
  const options = { versionDirectory, tablespaces, wal: "exclude", log } as const;
  for await (const entry of walkDataDirectory(server.dataDirectory, options)) {
    const inSpace = /^pg_tblspc\/\d+\/(.*)/.exec(entry.path)?.[1];
    const path = inSpace === undefined ? join(copy, entry.path) : join(space, inSpace);
    if (entry.kind === "file") await cp(entry.absolutePath, path);
    else if (entry.kind === "directory") await mkdir(path, { mode: 0o700 });
  }
  await writeFile(join(copy, PG_CONTROL_PATH), await readPgControlBytes(server.dataDirectory));
  return { copy, space };
}

/** A copy of the stopped primary that follows it. */
async function standbyOf(primary: PostgresServer): Promise<PostgresServer> {
  const copy = await primary.makeDirectory("standby");
  await primary.stop();
  await cp(primary.dataDirectory, copy, { recursive: true, force: true, verbatimSymlinks: true });
  await writeFile(join(copy, "standby.signal"), "");
  await giveTo(primary.account, join(copy, "standby.signal"));
  await primary.start();
  await Bun.$`chown -R --reference=${primary.dataDirectory} ${copy}`.quiet();
  const settings = {
    primary_conninfo: `host=${primary.socketDirectory} port=${primary.port} user=${primary.user}`,
    hot_standby: "on",
  };
  return await startPostgresOn(copy, { major: primary.major, settings });
}
