/** wal-fetch's side of the prefetcher: takes what is ready, and sees to it that one is at work. */
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { reasonOf } from "../errors.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { parseWalFile } from "../postgres/wal-segment.ts";
import { PrefetchDirectory } from "../wal/prefetch-directory.ts";
import type { CommandContext, Words } from "./command.ts";
import { recoveryState } from "./recovery.ts";

/** What PostgreSQL's recovery calls the segment that it asks for; pg_rewind and people use other names. */
const ASKED_BY_RECOVERY = "RECOVERYXLOG";

/** A segment that is on its way is waited for this long before wal-fetch reads it itself. */
const WAIT_MS = 10_000;

export interface Prefetcher {
  take(): Promise<"taken" | "not ready">;
  /** Tells it where recovery is, and starts one unless it is at work. */
  advance(): Promise<void>;
}

/** @returns undefined where there is nothing to prefetch for: no recovery, no segment, or switched off */
export function prefetcherFor(
  name: string,
  destination: string,
  words: Words,
  context: CommandContext,
): Prefetcher | undefined {
  const { settings, workingDirectory } = context;
  const isRecovery =
    basename(destination) === ASKED_BY_RECOVERY &&
    recoveryState(workingDirectory, [destination]) !== "no recovery" &&
    existsSync(join(dirname(dirname(destination)), PG_CONTROL_PATH));
  if (!isRecovery || settings.prefetchCount === 0 || parseWalFile(name)?.kind !== "segment") return undefined;

  const directory = new PrefetchDirectory(prefetchPath(destination, settings.prefetchDirectory));
  // Prefetching changes how fast recovery is, never what it sees: what goes wrong here must not become an exit code.
  const goOnWithout = (cause: unknown) =>
    context.log.warning(`cannot prefetch into "${directory.path}"`, { detail: `${reasonOf(cause)}.` });
  return {
    async take() {
      try {
        return await directory.take(name, destination, WAIT_MS);
      } catch (cause) {
        goOnWithout(cause);
        return "not ready";
      }
    },
    async advance() {
      try {
        await directory.setPosition(name);
        if (!(await directory.hasPrefetcher())) startDetached(destination, words, context);
      } catch (cause) {
        goOnWithout(cause);
      }
    },
  };
}

/** With a directory of its own, several clusters may share the setting. */
export function prefetchPath(destination: string, setting: string | undefined): string {
  const walDirectory = dirname(destination);
  if (setting === undefined) return join(walDirectory, ".wal-b");
  return join(setting, `wal-b-${Bun.hash.xxHash64(walDirectory).toString(16)}`);
}

/** In a session of its own, without our streams: PostgreSQL waits for neither, and its signals do not reach it. */
function startDetached(destination: string, words: Words, { env, workingDirectory }: CommandContext): void {
  const child = spawn(process.execPath, [...words.globalFlags(), "wal-prefetch", destination], {
    cwd: workingDirectory,
    env: { ...env },
    detached: true,
    stdio: "ignore",
  });
  // One that cannot be started costs speed and nothing else.
  child.on("error", () => {});
  child.unref();
}
