/**
 * Which exit code recovery may see.
 *
 * PostgreSQL takes 1 to 125 from restore_command as "there is no such file": recovery ends there and the server promotes,
 * without the WAL that could not be read. A standby asks again instead, and would shut down on anything above 125. So the
 * same failure has two codes, told apart by the signal files. docs/decisions/0001-exit-codes.md has the experiment.
 */
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { EXIT_RECOVERY_MUST_STOP, exitCodeOf, InterruptedError, NotFoundError } from "../errors.ts";

export type RecoveryState = "recovery" | "standby" | "no recovery";

/**
 * @param destinations  what may be %p of restore_command, the likeliest first; its data directory is looked at before the
 *                      working directory
 */
export function recoveryState(workingDirectory: string, destinations: readonly string[] = []): RecoveryState {
  const candidates = [
    ...destinations.map((destination) => dirname(dirname(resolve(workingDirectory, destination)))),
    workingDirectory,
  ];
  for (const directory of candidates) {
    if (existsSync(join(directory, "standby.signal"))) return "standby";
    if (existsSync(join(directory, "recovery.signal"))) return "recovery";
  }
  return "no recovery";
}

/** Proved absence and signals keep their codes; any other failure, our own bugs included, must not look like absence. */
export function walFetchExitCode(error: unknown, state: RecoveryState): number {
  if (error instanceof NotFoundError || error instanceof InterruptedError) return exitCodeOf(error);
  if (state === "recovery") return EXIT_RECOVERY_MUST_STOP;
  return exitCodeOf(error);
}
