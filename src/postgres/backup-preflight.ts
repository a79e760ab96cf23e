/** What has to be true before hours of copying begin: the server archives WAL, and the directory is this server's. */
import { realpath, stat } from "node:fs/promises";
import { PostgresError } from "../errors.ts";
import { type ArchiverStatus, readArchiverStatus } from "./archiver.ts";
import type { Connection } from "./connection.ts";
import { formatLsn, type Lsn } from "./lsn.ts";
import { readPgControl } from "./pg-control.ts";
import type { ServerFacts } from "./server-facts.ts";

/**
 * Checks that the server writes and archives the WAL without which a copy is worthless. A standby with archive_mode
 * other than "always" leaves archiving to its primary, whose settings it cannot know.
 *
 * @throws PostgresError  it does not; the hint has the lines for postgresql.conf
 */
export async function checkArchiving(
  connection: Connection,
  { role }: Pick<ServerFacts, "role">,
): Promise<ArchiverStatus> {
  const status = await readArchiverStatus(connection);
  const { walLevel, archiveMode, archiveCommand, archiveLibrary } = status;
  if (walLevel === "minimal") {
    throw new PostgresError("the server does not write enough WAL for a base backup", {
      detail: 'wal_level is "minimal".',
      hint: "Set wal_level = replica in postgresql.conf and restart the server.",
    });
  }
  if (role === "standby" && archiveMode !== "always") return status;

  if (archiveMode === "off") {
    throw new PostgresError("the server does not archive WAL", {
      detail: 'archive_mode is "off". A base backup can only be restored together with the WAL written meanwhile.',
      hint: "Set archive_mode = on and archive_command = 'wal-b wal-push %p' in postgresql.conf, and restart the server.",
    });
  }
  const noCommand = archiveCommand === "" || archiveCommand === "(disabled)";
  if (noCommand && archiveLibrary === "") {
    throw new PostgresError("the server does not archive WAL", {
      detail: "archive_mode is on, but archive_command is empty.",
      hint: "Set archive_command = 'wal-b wal-push %p' in postgresql.conf and reload the server.",
    });
  }
  return status;
}

/**
 * Checks that the directory is that of the server we are connected to: the same cluster, and the same place if the
 * server's path can be seen from here (in another container it cannot).
 *
 * @throws PostgresError  it is another one
 */
export async function checkDataDirectory(dataDirectory: string, server: ServerFacts): Promise<void> {
  const { systemIdentifier } = await readPgControl(dataDirectory);
  if (systemIdentifier !== server.systemIdentifier) {
    throw new PostgresError(`"${dataDirectory}" is not the data directory of this server`, {
      detail: `It belongs to the cluster ${systemIdentifier}; the server's is ${server.systemIdentifier}, in "${server.dataDirectory}".`,
      hint: CHECK_BOTH,
    });
  }

  const [ours, theirs] = await Promise.all([
    realpath(dataDirectory),
    realpath(server.dataDirectory).catch(() => undefined),
  ]);
  if (theirs === undefined || ours === theirs) return;
  const same = await isSameFile(ours, theirs);
  if (!same) {
    throw new PostgresError(`"${dataDirectory}" is not the data directory of this server`, {
      detail: `The server runs in "${server.dataDirectory}".`,
      hint: CHECK_BOTH,
    });
  }
}

/**
 * Checks, once the backup has started, that its checkpoint has arrived in the directory. It has not in a copy of the
 * cluster, a mount that is stale, or the directory of a standby on the same machine.
 *
 * @throws PostgresError  it has not
 */
export async function checkSeesBackupStart(dataDirectory: string, startLsn: Lsn): Promise<void> {
  const { redoLsn } = await readPgControl(dataDirectory);
  if (redoLsn >= startLsn) return;
  throw new PostgresError(`"${dataDirectory}" does not show the checkpoint that the backup starts from`, {
    detail: `The backup starts at ${formatLsn(startLsn)}; the latest checkpoint in the directory is at ${formatLsn(redoLsn)}.`,
    hint: `It is a copy, another server's directory or a stale mount. ${CHECK_BOTH}`,
  });
}

const CHECK_BOTH = "Check the directory, PGHOST and PGPORT.";

/** Two paths of one directory: a bind mount. */
async function isSameFile(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([one, other].map((path) => stat(path, { bigint: true })));
  return a !== undefined && b !== undefined && a.dev === b.dev && a.ino === b.ino;
}
