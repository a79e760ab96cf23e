/** The state of a stopped cluster, for a backup without a server. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { PostgresError, reasonOf, SourceMissingError } from "../errors.ts";
import { type PgControl, readPgControl } from "./pg-control.ts";
import { isProcessRunning, readPostmasterPid } from "./postmaster-pid.ts";

export interface OfflineState {
  /** Everything a restored copy needs follows from `control.redoLsn` on `control.timeline`. */
  readonly control: PgControl;
  readonly majorVersion: number;
}

/**
 * @throws PostgresError  a server runs in the directory, or it was not shut down cleanly
 * @throws SourceMissingError  it is no data directory, or cannot be read
 */
export async function readOfflineState(dataDirectory: string): Promise<OfflineState> {
  refuseRunningServer(dataDirectory);
  const control = await readPgControl(dataDirectory);
  if (control.state !== "shut down" && control.state !== "shut down in recovery") {
    throw new PostgresError(`the cluster in "${dataDirectory}" was not shut down cleanly`, {
      detail: `Its state is "${control.state}".`,
      hint: "Start the server and stop it again, or back it up while it runs, without --while-offline.",
    });
  }
  return { control, majorVersion: await readMajorVersion(dataDirectory) };
}

/**
 * Refuses a directory in which a server runs. Ask again when the copy is done: one may have been started meanwhile.
 *
 * @throws PostgresError  one runs
 */
export function refuseRunningServer(dataDirectory: string): void {
  const running = readPostmasterPid(dataDirectory);
  if (!running || !isProcessRunning(running.pid)) return;
  throw new PostgresError(`a server runs in "${dataDirectory}"`, {
    detail: `postmaster.pid names process ${running.pid}, which is running.`,
    hint: "Stop the server, or back it up while it runs, without --while-offline.",
  });
}

/** PG_VERSION: "15". @throws SourceMissingError  it is missing or says something else */
export async function readMajorVersion(dataDirectory: string): Promise<number> {
  const path = join(dataDirectory, "PG_VERSION");
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw new SourceMissingError(`could not read "${path}"`, {
      detail: `${reasonOf(cause)}.`,
      hint: "Check that the path is a PostgreSQL data directory.",
      cause,
    });
  }
  if (/^\d+\s*$/.test(text)) return Number(text);
  throw new SourceMissingError(`"${path}" does not hold a major version`, { detail: `It says "${text.trim()}".` });
}
