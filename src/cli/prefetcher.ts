/** wal-fetch's side of the prefetcher: takes what is ready, and sees to it that one is at work while it is of use. */
import { existsSync, statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import type { Settings } from "../config/settings.ts";
import { reasonOf } from "../errors.ts";
import { dataDirectoryOf, PG_CONTROL_PATH, readPgControl, readSystemIdentifier } from "../postgres/pg-control.ts";
import {
  isSegmentSize,
  parseWalFile,
  segmentAt,
  segmentNumber,
  type WalFile,
  type WalSegment,
} from "../postgres/wal-segment.ts";
import { PrefetchDirectory } from "../wal/prefetch-directory.ts";
import type { CommandContext, Words } from "./command.ts";
import { recoveryState } from "./recovery.ts";

/** What PostgreSQL's recovery calls the files that it asks for; pg_rewind and people use other names. */
const ASKED_BY_RECOVERY = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/**
 * pg_rewind and base backups, PostgreSQL's and others', leave out what begins so, wherever it is (PG_TEMP_FILE_PREFIX; filemap.c,
 * basebackup.c).
 */
const DIRECTORY_IN_PG_WAL = "pgsql_tmp_wal-b";

/** A segment that is on its way is waited for this long before wal-fetch reads it itself. */
const WAIT_MS = 10_000;

/** A standby that got the segment before this one less long ago has more to catch up with than one segment at a time. */
const CATCHING_UP_MS = 2_000;

export interface Prefetcher {
  take(): Promise<"taken" | "not ready">;
  /** Tells it where recovery is, and starts one if that is of use. */
  advance(): Promise<void>;
}

/** @returns undefined where there is nothing to prefetch for: no recovery, no segment or history, or switched off */
export function prefetcherFor(
  name: string,
  destination: string,
  words: Words,
  context: CommandContext,
): Prefetcher | undefined {
  const { settings, workingDirectory, log } = context;
  const state = recoveryState(workingDirectory, [destination]);
  const dataDirectory = dataDirectoryOf(destination);
  const file = parseWalFile(name);
  const isRecovery =
    ASKED_BY_RECOVERY.includes(basename(destination)) &&
    state !== "no recovery" &&
    existsSync(join(dataDirectory, PG_CONTROL_PATH));
  if (!isRecovery || settings.prefetchCount === 0 || file === undefined) return undefined;

  let opened: PrefetchDirectory | undefined;
  const open = () => {
    opened ??= prefetchDirectoryOf(destination, settings, readSystemIdentifier(dataDirectory));
    return opened;
  };
  // Prefetching changes how fast recovery is, never what it sees: what goes wrong here must not become an exit code.
  const goOnWithout = (cause: unknown) => log.warning("cannot prefetch WAL", { detail: `${reasonOf(cause)}.` });

  return {
    async take() {
      try {
        const directory = open();
        if (file.kind !== "segment") {
          // The last thing that recovery asks for is histories: then nobody comes who would remove what a killed one left.
          if (directory.prefetcher() === "dead") directory.remove();
          return "not ready";
        }
        const outcome = await directory.take(name, destination, WAIT_MS);
        if (outcome === "damaged") log.warning(`discarded "${name}": it was damaged after it was prefetched`);
        return outcome === "taken" ? "taken" : "not ready";
      } catch (cause) {
        goOnWithout(cause);
        return "not ready";
      }
    },

    async advance() {
      if (file.kind !== "segment") return;
      try {
        const directory = open();
        const found = directory.prefetcher();
        if (found === "alive") {
          directory.setPosition(name);
          directory.endLoading(name);
        } else if (state === "recovery" || (await isCatchingUp(file, destination))) {
          directory.create(name);
          directory.endLoading(name);
          startDetached(destination, words, context);
        } else if (found === "dead") {
          directory.remove();
        }
      } catch (cause) {
        goOnWithout(cause);
      }
    },
  };
}

/**
 * Removes what a killed prefetcher left: for wal-push, which sees a server go on after recovery.
 *
 * @param path  of a file in pg_wal
 */
export function removeLeftovers(path: string, { settings, workingDirectory }: CommandContext): void {
  try {
    const directory = new PrefetchDirectory(
      prefetchPath(resolve(workingDirectory, path), settings.prefetchDirectory),
      "",
    );
    if (directory.prefetcher() === "dead") directory.remove();
  } catch {
    // What is not ours stays.
  }
}

export function prefetchDirectoryOf(
  destination: string,
  settings: Settings,
  systemIdentifier: bigint,
): PrefetchDirectory {
  const { s3Prefix, filePrefix, endpoint, prefetchDirectory } = settings;
  const source = JSON.stringify([s3Prefix, filePrefix, endpoint, String(systemIdentifier)]);
  return new PrefetchDirectory(prefetchPath(destination, prefetchDirectory), source);
}

/** With a directory of its own, several clusters may share the setting. */
function prefetchPath(destination: string, setting: string | undefined): string {
  const walDirectory = dirname(destination);
  if (setting === undefined) return join(walDirectory, DIRECTORY_IN_PG_WAL);
  return join(setting, `wal-b-${Bun.hash.xxHash64(walDirectory).toString(16)}`);
}

/**
 * A standby that keeps up asks for one segment and then in vain, again and again: prefetching would ask in vain too. The server
 * keeps a restored segment in pg_wal, under its name, as soon as it has it (xlogarchive.c, KeepFileRestoredFromArchive).
 */
async function isCatchingUp(file: WalFile & WalSegment, destination: string): Promise<boolean> {
  const { walSegmentSizeBytes } = await readPgControl(dataDirectoryOf(destination));
  if (!isSegmentSize(walSegmentSizeBytes)) return false;
  const number = segmentNumber(file, walSegmentSizeBytes);
  if (number === 0n) return false;
  const before = segmentAt(file.timeline, number - 1n, walSegmentSizeBytes);
  const found = statSync(join(dirname(destination), before.name), { throwIfNoEntry: false });
  return found !== undefined && Date.now() - found.ctimeMs < CATCHING_UP_MS;
}

/** In a session of its own, without our streams: PostgreSQL waits for neither, and its signals do not reach it. */
function startDetached(destination: string, words: Words, { env, settings, workingDirectory }: CommandContext): void {
  const args = [...words.globalFlags(), "wal-prefetch", `--prefetch=${settings.prefetchCount}`, destination];
  const child = Bun.spawn([process.execPath, ...args], {
    cwd: workingDirectory,
    env: { ...env },
    detached: true,
    stdio: ["ignore", "ignore", "ignore"],
  });
  child.unref();
}
