/** A server with a backlog: a base backup, then segments that its transactions wrote and that nobody has archived yet. */
import { cp, link, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../../test/support/account.ts";
import { systemPostgres } from "../../test/support/postgres-binaries.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../../test/support/postgres-server.ts";
import { waitFor } from "../../test/support/wait-for.ts";
import type { Sample } from "../measure.ts";
import { runOrThrow } from "../peers/place.ts";
import { load, runTransactions, SETTINGS, segmentNames } from "../workload.ts";
import { watchPrograms } from "./programs.ts";

export interface WalHistory extends AsyncDisposable {
  readonly server: PostgresServer;
  /** Finished ones, from the base backup's first on, in order. */
  readonly segments: readonly string[];
  /** Copies of them. */
  readonly directory: string;
  /** Sets PostgreSQL's own archiver to work on all of them. */
  archiveWith(command: string): Promise<Sample>;
  /** Marks all of them as not archived, with an archiver that has no command. */
  blockArchiver(): Promise<void>;
  /** From the base backup to the end of the archive. `command` is restore_command, with @ for the data directory. */
  recoverWith(command: string): Promise<Sample>;
}

const DATA_MIB = 150;
/** Transactions alone would write for minutes. */
const BULK = [
  `UPDATE document SET changed_at = now(), body = jsonb_set(body, '{total}', to_jsonb(round((random() * 1000)::numeric, 2)))
    WHERE random() < 0.4`,
  "UPDATE pgbench_accounts SET abalance = abalance + 1000 - (random() * 2000)::int WHERE random() < 0.3",
  "VACUUM document, pgbench_accounts",
];
/** After each so many segments there is a checkpoint, as it would be in so much WAL: pages are written in full after it. */
const SEGMENTS_BETWEEN_CHECKPOINTS = 32;
const WRITE_TIMEOUT_MS = 600_000;
const ARCHIVE_TIMEOUT_MS = 180_000;
const RECOVERY_TIMEOUT_MS = 180_000;
const COUNT =
  "SELECT (SELECT count(*) FROM pgbench_history), (SELECT count(*) FROM document), (SELECT sum(abalance) FROM pgbench_accounts)";

/** @throws Error  there is no PostgreSQL with pgbench on this machine */
export async function makeWalHistory(count: number): Promise<WalHistory> {
  const binaries = systemPostgres();
  if (!binaries) throw new Error("no PostgreSQL with pgbench is installed, as Debian's package postgresql has it");
  const settings = { ...SETTINGS, wal_keep_size: "16GB", max_wal_size: "32GB", archive_mode: "on" };
  const server = await startPostgres({ binaries, settings: { ...settings, archive_command: "true" } });
  try {
    await load(server, DATA_MIB);
    const base = join(server.directory, "base backup");
    const backup = [server.bin("pg_basebackup"), "-D", base, "-X", "none", "-c", "fast", "--no-sync", "--no-manifest"];
    await runOrThrow(server, backup);
    const label = await readFile(join(base, "backup_label"), "utf8");
    const first = /file ([0-9A-F]{24})/.exec(label)?.[1] ?? "";
    await server.configure({ archive_command: "" });
    const last = await writeSegments(server, first, count);
    const expected = await server.psql(COUNT);

    const walDirectory = join(server.dataDirectory, "pg_wal");
    const segments = (await segmentNames(server)).filter((name) => name >= first && name <= last);
    const directory = await server.makeDirectory("segments");
    for (const name of segments) await cp(join(walDirectory, name), join(directory, name));
    for (const name of segments) await giveTo(server.account, join(directory, name));

    return {
      server,
      segments,
      directory,
      blockArchiver: () => blockArchiver(server, segments),
      archiveWith: (command) => archiveAll(server, command, segments.length),
      recoverWith: (command) => recover({ server, base, command, expected }),
      [Symbol.asyncDispose]: () => server[Symbol.asyncDispose](),
    };
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/** @returns the last one */
async function writeSegments(server: PostgresServer, first: string, count: number): Promise<string> {
  const finished = async () => (await segmentNames(server)).filter((name) => name >= first).length - 1;
  const until = performance.now() + WRITE_TIMEOUT_MS;
  let checkpointAt = SEGMENTS_BETWEEN_CHECKPOINTS;
  await server.query("CHECKPOINT");
  for (let written = 0; written < count; written = await finished()) {
    if (performance.now() > until)
      throw new Error(`wrote ${written} segments, not ${count}, in ${WRITE_TIMEOUT_MS} ms`);
    if (written >= checkpointAt) {
      await server.query("CHECKPOINT");
      checkpointAt = written + SEGMENTS_BETWEEN_CHECKPOINTS;
    }
    await runTransactions(server, 1);
    for (const statement of BULK) await server.query(statement);
  }
  return await server.switchWal();
}

const statusDirectory = (server: PostgresServer) => join(server.dataDirectory, "pg_wal/archive_status");

async function blockArchiver(server: PostgresServer, segments: readonly string[]): Promise<void> {
  await server.configure({ archive_command: "" });
  // Without a command it sleeps until it is told of new settings; with one that fails it would try again after a second.
  await Bun.sleep(300);
  const status = statusDirectory(server);
  const marks = await readdir(status);
  for (const name of segments) {
    if (marks.includes(`${name}.done`)) await rename(join(status, `${name}.done`), join(status, `${name}.ready`));
    else if (!marks.includes(`${name}.ready`)) throw new Error(`PostgreSQL has forgotten ${name}`);
  }
}

async function archiveAll(server: PostgresServer, command: string, count: number): Promise<Sample> {
  const programs = watchPrograms(server.directory);
  const begun = performance.now();
  try {
    await server.configure({ archive_command: command });
    const isOver = async () => !(await readdir(statusDirectory(server))).some((name) => name.endsWith(".ready"));
    const what = `${count} segments to be archived`;
    await server.waitFor(isOver, { what, timeoutMs: ARCHIVE_TIMEOUT_MS, intervalMs: 10 });
    const wallMs = performance.now() - begun;
    return { wallMs, peakBytes: programs.stop() };
  } finally {
    programs.stop();
  }
}

interface Recovery {
  readonly server: PostgresServer;
  readonly base: string;
  readonly command: string;
  /** What COUNT answers when all WAL was replayed. */
  readonly expected: string;
}

async function recover({ server, base, command, expected }: Recovery): Promise<Sample> {
  const directory = join(server.directory, "recovering");
  await rm(directory, { recursive: true, force: true });
  await runOrThrow(server, ["cp", "-a", base, directory]);
  await runOrThrow(server, ["touch", join(directory, "recovery.signal")]);
  await runOrThrow(server, ["sync", "-f", directory]);
  const programs = watchPrograms(server.directory);
  const begun = performance.now();
  try {
    await using recovered = await startPostgresOn(directory, {
      binaries: systemPostgres(),
      settings: { ...SETTINGS, fsync: "on", archive_mode: "off", restore_command: command.replaceAll("@", directory) },
      until: "spawned",
    });
    const isOver = async () => {
      if (!recovered.isRunning) throw new Error("the server ended");
      return (await recovered.psql("SELECT pg_is_in_recovery()").catch(() => "")) === "f";
    };
    const what = "the end of recovery";
    await recovered.waitFor(isOver, { what, timeoutMs: RECOVERY_TIMEOUT_MS, intervalMs: 20 });
    const wallMs = performance.now() - begun;
    const peakBytes = programs.stop();
    const found = await recovered.psql(COUNT);
    if (found !== expected) throw new Error(`${command} recovered "${found}", not "${expected}"`);
    return { wallMs, peakBytes };
  } finally {
    programs.stop();
  }
}

/** A pg_wal with some of the segments, each marked as not archived. @returns their paths */
export async function makeBacklog(
  { server, directory, segments }: WalHistory,
  { name, count }: { readonly name: string; readonly count: number },
): Promise<readonly string[]> {
  const wal = join(await server.makeDirectory(name), "pg_wal");
  await rm(wal, { recursive: true, force: true });
  for (const path of [wal, join(wal, "archive_status")]) {
    await mkdir(path, { mode: 0o700 });
    await giveTo(server.account, path);
  }
  const chosen = segments.slice(0, count);
  for (const segment of chosen) {
    await link(join(directory, segment), join(wal, segment));
    const mark = join(wal, "archive_status", `${segment}.ready`);
    await writeFile(mark, "");
    await giveTo(server.account, mark);
  }
  return chosen.map((segment) => join(wal, segment));
}

/** A data directory that looks as if a server were in recovery there, until end(). */
export async function pretendRecovery(
  { server }: WalHistory,
  name: string,
): Promise<{ readonly directory: string; readonly destination: string; end(): Promise<void> }> {
  const directory = join(server.directory, name);
  await rm(directory, { recursive: true, force: true });
  for (const below of ["", "/global", "/pg_wal"]) await server.makeDirectory(name + below);
  await cp(join(server.dataDirectory, "global/pg_control"), join(directory, "global/pg_control"));
  await writeFile(join(directory, "recovery.signal"), "");
  // This process stands for the server: it lives as long as it has to.
  const lines = [process.pid, directory, Math.floor(Date.now() / 1_000), server.port, "", "", "", "standby "];
  await writeFile(join(directory, "postmaster.pid"), `${lines.join("\n")}\n`);
  for (const file of ["global/pg_control", "recovery.signal", "postmaster.pid"])
    await giveTo(server.account, join(directory, file));
  return {
    directory,
    destination: join(directory, "pg_wal/RECOVERYXLOG"),
    async end() {
      for (const file of ["recovery.signal", "postmaster.pid"]) await rm(join(directory, file), { force: true });
      await Bun.sleep(300);
    },
  };
}

export async function untilThereAre(
  count: number,
  directory: string,
  isReady: (name: string) => boolean,
): Promise<void> {
  const found = async () => (await readdir(directory).catch(() => [])).filter(isReady).length >= count;
  await waitFor(found, { what: `${count} segments in ${directory}`, timeoutMs: 20_000, intervalMs: 20 });
}

/**
 * PostgreSQL removes what is at the destination before it runs restore_command (xlogarchive.c, RestoreArchivedFile). To replace a file
 * instead takes 25 ms: ext4 then begins to write the new one (auto_da_alloc).
 */
export async function removeAsRecovery(destination: string): Promise<void> {
  await rm(destination, { force: true });
}
