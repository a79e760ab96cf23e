/** Whether and how the server archives WAL: for preflight checks, and for messages while a segment is waited for. */
import type { Connection } from "./connection.ts";
import { type Lsn, parseLsn } from "./lsn.ts";
import { isNotPermitted } from "./server-facts.ts";

export interface ArchiverStatus {
  readonly walLevel: string;
  readonly archiveMode: "off" | "on" | "always";
  /** undefined: the role may not see it (pg_read_all_settings); "" or "(disabled)": there is none. */
  readonly archiveCommand: string | undefined;
  /** Always "" before 15, which has no such setting. */
  readonly archiveLibrary: string | undefined;
  readonly archived: ArchiverEvent | undefined;
  readonly failed: ArchiverEvent | undefined;
  /** Failures since the statistics were reset; a command that is killed or exits above 125 is not counted. */
  readonly failedCount: number;
}

export interface ArchiverEvent {
  /** Name of a file in pg_wal. */
  readonly wal: string;
  /** In ISO format with the session's time zone, for messages. */
  readonly at: string;
}

export async function readArchiverStatus(connection: Connection): Promise<ArchiverStatus> {
  const [row] = await connection.query<Record<string, string | null>>(`
    SELECT current_setting('wal_level') AS wal_level, current_setting('archive_mode') AS archive_mode, failed_count,
           last_archived_wal, date_trunc('second', last_archived_time) AS last_archived_time,
           last_failed_wal, date_trunc('second', last_failed_time) AS last_failed_time
      FROM pg_stat_archiver`);
  return {
    walLevel: row?.["wal_level"] ?? "",
    archiveMode: (row?.["archive_mode"] ?? "off") as ArchiverStatus["archiveMode"],
    archiveCommand: await readSetting(connection, "archive_command"),
    archiveLibrary: await readSetting(connection, "archive_library"),
    archived: eventOf(row?.["last_archived_wal"], row?.["last_archived_time"]),
    failed: eventOf(row?.["last_failed_wal"], row?.["last_failed_time"]),
    failedCount: Number(row?.["failed_count"] ?? 0),
  };
}

/** A sentence for a DETAIL: what the archiver last did, and whether it fails now. */
export function describeArchiver({ archived, failed, failedCount }: ArchiverStatus): string {
  const last = archived
    ? `The server last archived ${archived.wal} at ${archived.at}.`
    : "The server has not archived anything yet.";
  if (!failed) return last;
  const failing = !archived || failed.at >= archived.at;
  return `${last} ${failing ? "Archiving fails" : "It failed before"}: ${failed.wal} at ${failed.at}, ${failedCount} failures in all.`;
}

/**
 * Ends the current WAL segment so that it can be archived. Does nothing when nothing was written to it.
 *
 * @returns the end of the switch record + 1, in the segment that ended
 * @throws ServerError  on a standby, or the role may not (EXECUTE on pg_switch_wal())
 */
export async function switchWal(connection: Connection): Promise<Lsn> {
  const [row] = await connection.query<{ lsn: string }>("SELECT pg_switch_wal() AS lsn");
  return parseLsn(row?.lsn ?? "") as Lsn;
}

async function readSetting(connection: Connection, name: string): Promise<string | undefined> {
  try {
    const [row] = await connection.query<{ value: string | null }>("SELECT current_setting($1, true) AS value", [name]);
    return row?.value ?? "";
  } catch (error) {
    if (isNotPermitted(error)) return undefined;
    throw error;
  }
}

function eventOf(wal: string | null | undefined, at: string | null | undefined): ArchiverEvent | undefined {
  return wal && at ? { wal, at } : undefined;
}
