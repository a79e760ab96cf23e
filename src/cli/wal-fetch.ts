/** restore_command = 'wal-b wal-fetch %f %p' */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Failure, NotFoundError } from "../errors.ts";
import { dataDirectoryOf, readPgControl, systemIdentifierBeside } from "../postgres/pg-control.ts";
import { parseWalFile } from "../postgres/wal-segment.ts";
import type { Command, CommandContext } from "./command.ts";
import type { Repository } from "./open-repository.ts";
import { prefetcherFor } from "./prefetcher.ts";
import { type RecoveryState, recoveryState } from "./recovery.ts";

export const walFetch: Command = {
  name: "wal-fetch",
  summary: "restore one file of pg_wal (restore_command)",
  description:
    "Puts the archived file NAME at DESTINATION, verified. Exits 74 only when the store proved that the file is not there. Any other failure exits 200 while recovery.signal is in the data directory, so that PostgreSQL stops instead of ending recovery early, and with its usual code under standby.signal, so that a standby asks again.",
  positionals: { name: { help: "%f of restore_command" }, destination: { help: "%p of restore_command" } },
  options: {
    prefetch: {
      alias: "p",
      kind: "text",
      value: "N",
      setting: "prefetchCount",
      help: "segments to keep ready ahead of recovery",
    },
  },
  examples: [["restore_command = 'wal-b --envdir /etc/wal-e.d/env wal-fetch %f %p'", "in postgresql.conf"]],

  async run(words, context) {
    const [name, destination] = [
      words.required("name"),
      resolve(context.workingDirectory, words.required("destination")),
    ];
    const prefetcher = prefetcherFor(name, destination, words, context);
    // A hit loads neither the store nor the codec.
    if ((await prefetcher?.take()) === "taken") {
      context.log.info(`restored "${name}" from the archive, prefetched`);
      await prefetcher?.advance();
      return;
    }

    const [{ openRepository }, { fetchWal }] = await Promise.all([
      import("./open-repository.ts"),
      import("../wal/fetch.ts"),
    ]);
    const state = recoveryState(context.workingDirectory, [destination]);
    await using repository = await openRepository(withDeadline(context, state));
    const systemIdentifier = systemIdentifierBeside(destination);
    try {
      await fetchWal(name, destination, {
        archive: repository.archive,
        systemIdentifier,
        gaps: state === "recovery" ? "refused" : "passed on",
        log: context.log,
        signal: context.signal,
      });
    } catch (error) {
      if (error instanceof NotFoundError) await checkProvesAbsence(context, { name, destination, state, repository });
      throw error;
    }
    await prefetcher?.advance();
  },
};

interface Absence {
  readonly name: string;
  readonly destination: string;
  readonly state: RecoveryState;
  readonly repository: Repository;
}

/**
 * Loaded where it is needed: a hit, for which recovery waits, comes without. Of a bucket only recovery asks more, which would end; a
 * standby asks for the same file again and again.
 *
 * @throws StorageError, AccessError  it is not proved
 * @throws IntegrityError             PostgreSQL would take another timeline's segment for it
 */
async function checkProvesAbsence(context: CommandContext, absence: Absence): Promise<void> {
  const [{ checkNotEmpty }, { parsePrefix }] = await Promise.all([import("./mounted.ts"), import("./prefix.ts")]);
  const { state, repository } = absence;
  const prefix = parsePrefix(context.settings);
  if (prefix.kind === "directory" || state === "recovery") await checkNotEmpty(repository.store, prefix);
  if (state === "recovery") await checkNotPastFork(context, absence);
}

/** @throws IntegrityError  PostgreSQL would take the segment of the timeline that was left */
async function checkNotPastFork(
  { log, signal }: CommandContext,
  { name, destination, repository }: Absence,
): Promise<void> {
  const segment = parseWalFile(name);
  // What pg_wal itself has, PostgreSQL takes before it looks for another timeline's.
  if (segment?.kind !== "segment" || existsSync(join(dirname(destination), name))) return;
  const { refuseForkBehind } = await import("../backup/past-fork.ts");
  // Of no data directory, or of a release that is not known, nobody can tell.
  const control = await readPgControl(dataDirectoryOf(destination)).catch((error: unknown) => {
    if (!(error instanceof Failure)) throw error;
  });
  if (control) await refuseForkBehind(segment, { archive: repository.archive, control, log, signal });
}

/** Giving up stops a recovery, and costs a standby a few seconds until it asks again. */
function withDeadline(context: CommandContext, state: RecoveryState): CommandContext {
  const { retryDeadlineMs, recoveryRetryDeadlineMs, standbyRetryDeadlineMs } = context.settings;
  const deadlines = {
    recovery: recoveryRetryDeadlineMs,
    standby: standbyRetryDeadlineMs,
    "no recovery": retryDeadlineMs,
  };
  return { ...context, settings: { ...context.settings, retryDeadlineMs: deadlines[state] } };
}
