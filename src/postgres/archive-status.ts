/** What a server's own files say of archiving: pg_wal/archive_status, and what is gone from pg_wal. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";

/**
 * Whether the server is done with archiving a segment that is finished. pg_stat_archiver cannot tell: it names the file that was
 * archived last, and that need not be the one with the highest name (a .backup file comes behind the segment after its own).
 *
 * A segment gets .ready when it is finished, and .done when archive_command has succeeded; then it may be recycled, and all
 * three go, the segment first. Source: PostgreSQL, xlogarchive.c, XLogArchiveNotify() and XLogArchiveCheckDone(); xlog.c,
 * RemoveXlogFile().
 */
export async function isDoneWithArchiving(dataDirectory: string, segment: string): Promise<boolean> {
  const wal = join(dataDirectory, "pg_wal");
  const status = join(wal, "archive_status");
  if (await isThere(join(status, `${segment}.done`))) return true;
  if (await isThere(join(status, `${segment}.ready`))) return false;
  return !(await isThere(join(wal, segment)));
}

async function isThere(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return false;
    throw new SourceMissingError(`could not read "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}
