/** What the scenarios of prefetching share: an archive with many small segments, recovery that stops at a gate, the prefetcher's process. */
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "./account.ts";
import type { Environment } from "./backups.ts";
import type { PostgresBinaries } from "./postgres-binaries.ts";
import { type PostgresServer, type Settings, startPostgres, startPostgresOn } from "./postgres-server.ts";
import { waitFor } from "./wait-for.ts";
import { walbBinary } from "./walb.ts";

/** Where the prefetcher keeps segments, below pg_wal. */
export const PREFETCHED = "pgsql_tmp_wal-b";

export const SEGMENTS = 24;

export interface ArchivedHistory extends AsyncDisposable {
  readonly primary: PostgresServer;
  readonly env: Environment;
  /** Of the primary; undefined when they are npm's. */
  readonly binaries: PostgresBinaries | undefined;
  /** Finished after the backup, in order. */
  readonly segments: readonly string[];
  /** What a server that has recovered all of it answers to rowsOf(). */
  readonly rows: string;
}

/** A primary, its backup in the repository, and so many segments of 1 MiB after it. */
export async function archiveSegments(
  server: number | PostgresBinaries,
  repository: (primary: PostgresServer) => Promise<Environment>,
  count = SEGMENTS,
): Promise<ArchivedHistory> {
  const walb = await walbBinary();
  // The archive's place is not known before the server is: its environment comes from a file that wal-b reads.
  const archiveCommand = `${walb} --envdir ../env wal-push %p`;
  const binaries = typeof server === "number" ? undefined : server;
  const program = typeof server === "number" ? { major: server } : { binaries };
  const primary = await startPostgres({ ...program, walSegmentSizeMiB: 1, archiveCommand });
  try {
    const env = await repository(primary);
    await writeEnvdir(primary, env);
    await primary.query("CREATE TABLE kept (id int PRIMARY KEY, text text)");
    await succeeds(primary, [walb, "backup-push", primary.dataDirectory], env);
    const segments = await writeSegments(primary, count, 0);
    return {
      primary,
      env,
      binaries,
      segments,
      rows: await rowsOf(primary),
      [Symbol.asyncDispose]: () => primary[Symbol.asyncDispose](),
    };
  } catch (error) {
    await primary[Symbol.asyncDispose]();
    throw error;
  }
}

/** Finishes some segments and waits until they are archived. @returns their names */
export async function writeSegments(
  server: PostgresServer,
  count: number,
  firstId: number,
): Promise<readonly string[]> {
  const segments: string[] = [];
  for (let n = 0; n < count; n++) {
    const from = firstId + n * 100;
    await server.query(`INSERT INTO kept SELECT n, md5(n::text) FROM generate_series(${from}, ${from + 99}) n`);
    segments.push(await server.switchWal());
  }
  await untilArchived(server, segments.at(-1) ?? "");
  return segments;
}

export async function untilArchived(server: PostgresServer, name: string): Promise<void> {
  const done = join(server.dataDirectory, "pg_wal/archive_status", `${name}.done`);
  await server.waitFor(() => Bun.file(done).exists(), { what: `"${name}" to be archived`, timeoutMs: 60_000 });
}

export async function writeEnvdir(server: PostgresServer, env: Environment): Promise<void> {
  const envdir = await server.makeDirectory("env");
  for (const [name, value] of Object.entries(env)) {
    await writeFile(join(envdir, name), value, { mode: 0o640 });
    await giveTo(server.account, join(envdir, name));
  }
}

async function succeeds(server: PostgresServer, command: readonly string[], env: Environment): Promise<void> {
  const { exitCode, stderr } = await server.runAs(command, { env });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}:\n${stderr}`);
}

export const rowsOf = async (server: PostgresServer) =>
  await server.psql("SELECT count(*), md5(string_agg(kept::text, ',' ORDER BY id)) FROM kept");

/** The backup, restored beside the primary, with a signal file. @returns its data directory */
export async function restoreBeside(
  { primary, env }: Pick<ArchivedHistory, "primary" | "env">,
  name: string,
  signal: "recovery.signal" | "standby.signal" = "recovery.signal",
): Promise<string> {
  const directory = join(primary.directory, name);
  await succeeds(primary, [await walbBinary(), "backup-fetch", directory, "LATEST"], env);
  await writeFile(join(directory, signal), "");
  await giveTo(primary.account, join(directory, signal));
  return directory;
}

export interface RecoveryOptions {
  readonly env: Environment;
  readonly binaries?: PostgresBinaries | undefined;
  /** The segment before which recovery waits for Gate.open(). */
  readonly gateAt?: string | undefined;
  readonly settings?: Settings;
}

export interface Recovering {
  readonly server: PostgresServer;
  /** Recovery is at the gate. */
  reached(): Promise<void>;
  open(): Promise<void>;
}

/** Starts recovery; archives nothing unless the settings say so. */
export async function startRecovery(dataDirectory: string, options: RecoveryOptions): Promise<Recovering> {
  const { env, binaries, gateAt = "none", settings = {} } = options;
  const gate = `${dataDirectory}.gate`;
  const wait = `if [ %f = ${gateAt} ]; then touch ${gate}.reached; while [ ! -e ${gate}.open ]; do sleep 0.05; done; fi`;
  const server = await startPostgresOn(dataDirectory, {
    settings: { restore_command: `${wait}; ${await walbBinary()} wal-fetch %f %p`, archive_mode: "off", ...settings },
    env,
    ...(binaries && { binaries }),
    until: "spawned",
  });
  return {
    server,
    reached: async () => {
      await server.waitFor(() => Bun.file(`${gate}.reached`).exists(), { what: "recovery to get to the gate" });
    },
    open: async () => {
      await writeFile(`${gate}.open`, "");
    },
  };
}

export async function untilPromoted(server: PostgresServer): Promise<void> {
  const isOver = async () => {
    if (!server.isRunning) throw new Error("the server ended");
    return (await server.psql("SELECT pg_is_in_recovery()").catch(() => "")) === "f";
  };
  await server.waitFor(isOver, { what: "the end of recovery", timeoutMs: 90_000 });
}

/** Which segments wal-fetch has put in place, by the server's log, in order. */
export async function restoredBy(server: PostgresServer): Promise<{
  readonly prefetched: readonly string[];
  readonly direct: readonly string[];
}> {
  const lines = [...(await server.logText()).matchAll(/restored "([0-9A-F]{24})" from the archive(, prefetched)?/g)];
  const names = (wanted: boolean) =>
    lines.filter(([, , prefetched]) => (prefetched !== undefined) === wanted).map(([, name = ""]) => name);
  return { prefetched: names(true), direct: names(false) };
}

/** Process numbers of the prefetchers of one data directory. */
export async function prefetchersOf(dataDirectory: string): Promise<readonly number[]> {
  const found: number[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const words = (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).split("\0");
    if (words.includes("wal-prefetch") && words.some((word) => word.startsWith(`${dataDirectory}/`)))
      found.push(Number(pid));
  }
  return found;
}

/** What the prefetcher keeps; undefined when there is no directory of it. */
export async function prefetchedIn(directory: string): Promise<readonly string[] | undefined> {
  return (await readdir(directory).catch(() => undefined))?.sort();
}

/** @throws Error  none runs */
export async function prefetcherOf(dataDirectory: string): Promise<number> {
  const [pid] = await prefetchersOf(dataDirectory);
  if (pid === undefined) throw new Error(`no prefetcher of "${dataDirectory}" runs`);
  return pid;
}

/** Until it has all that it is to have ahead. What is ready is marked as being loaded for a moment more. */
export async function untilFull(directory: string): Promise<void> {
  const isFull = async () => {
    const names = (await prefetchedIn(directory)) ?? [];
    return names.filter(isReady).length === 8 && !names.some((name) => name.endsWith(".loading"));
  };
  await waitFor(isFull, { what: "8 segments that are ready" });
}

export async function untilNothingIsLeft(dataDirectory: string, directory?: string): Promise<void> {
  const kept = directory ?? join(dataDirectory, "pg_wal", PREFETCHED);
  const isGone = async () =>
    (await prefetchedIn(kept)) === undefined && (await prefetchersOf(dataDirectory)).length === 0;
  await waitFor(isGone, { what: "the prefetcher and its directory to go", timeoutMs: 10_000 });
}

export const isReady = (name: string): boolean => /^[0-9A-F]{24}\.[0-9a-f]{16}$/.test(name);
