/** backup-list: what can be restored, for people and for scripts. */
import { formatLsn } from "../postgres/lsn.ts";
import { segmentBefore, segmentStart } from "../postgres/wal-segment.ts";
import { type Backup, type Catalog, readCatalog } from "../repository/backup-catalog.ts";
import { formatJson } from "../repository/json.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { selectBackup } from "./fetch.ts";

/** @param name  only this one, or "LATEST"; NotFoundError when there is none */
export async function listBackups(store: ObjectStore, name: string | undefined): Promise<Catalog> {
  if (name !== undefined) return { backups: [await selectBackup(store, name)], unreadable: [] };
  return readCatalog(store);
}

export interface TableForm {
  readonly detail: "brief" | "detail";
  readonly alignment: "aligned" | "tabs";
}

/** Column names of WAL-E, then ours; empty where the form is brief. */
export function formatTable(backups: readonly Backup[], { detail, alignment }: TableForm): string {
  const ifDetail = (text: string) => (detail === "detail" ? text : "");
  const rows = backups.map((backup) => {
    const stop = segmentBefore(backup.timeline, backup.stopLsn, backup.segmentSize);
    return {
      name: backup.name,
      last_modified: backup.lastModified.toISOString(),
      expanded_size_bytes: ifDetail(String(backup.uncompressedBytes)),
      wal_segment_backup_start: backup.startSegment,
      wal_segment_offset_backup_start: offsetIn(backup.startLsn, backup),
      wal_segment_backup_stop: ifDetail(stop.name),
      wal_segment_offset_backup_stop: ifDetail(
        String(backup.stopLsn - segmentStart(stop, backup.segmentSize)).padStart(8, "0"),
      ),
      ...(detail === "detail" && {
        finish_time: backup.finishedAt.toISOString(),
        stored_size_bytes: String(backup.compressedBytes),
        start_lsn: formatLsn(backup.startLsn),
        finish_lsn: formatLsn(backup.stopLsn),
        pg_version: String(backup.pgVersion),
        system_identifier: String(backup.systemIdentifier),
        hostname: backup.hostname,
        permanent: backup.isPermanent ? "yes" : "no",
      }),
    };
  });
  const header = Object.keys(
    rows[0] ?? {
      name: "",
      last_modified: "",
      expanded_size_bytes: "",
      wal_segment_backup_start: "",
      wal_segment_offset_backup_start: "",
      wal_segment_backup_stop: "",
      wal_segment_offset_backup_stop: "",
    },
  );
  const lines = [header, ...rows.map((row) => Object.values(row) as string[])];
  return `${(alignment === "tabs" ? lines.map((line) => line.join("\t")) : align(lines)).join("\n")}\n`;
}

/** WAL-E's form: decimal, eight digits. */
const offsetIn = (lsn: bigint, { segmentSize }: Backup) => String(lsn % BigInt(segmentSize)).padStart(8, "0");

function align(lines: readonly (readonly string[])[]): string[] {
  const filled = (lines[0] ?? []).map(
    (_, column) => lines.slice(1).some((line) => line[column] !== "") || lines.length === 1,
  );
  const kept = lines.map((line) => line.filter((_, column) => filled[column]));
  const widths = (kept[0] ?? []).map((_, column) => Math.max(...kept.map((line) => line[column]?.length ?? 0)));
  return kept.map((line) =>
    line
      .map((cell, column) => cell.padEnd(widths[column] ?? 0))
      .join("  ")
      .trimEnd(),
  );
}

/** Keys of WAL-G's `backup-list --detail --json`, with ours behind them. */
export function formatJsonList(backups: readonly Backup[]): string {
  const entries = backups.map((backup) => ({
    backup_name: backup.name,
    time: backup.lastModified.toISOString(),
    wal_file_name: backup.startSegment,
    start_time: backup.startedAt.toISOString(),
    finish_time: backup.finishedAt.toISOString(),
    hostname: backup.hostname,
    data_dir: backup.dataDirectory,
    pg_version: backup.pgVersion,
    start_lsn: backup.startLsn,
    finish_lsn: backup.stopLsn,
    is_permanent: backup.isPermanent,
    system_identifier: backup.systemIdentifier,
    uncompressed_size: backup.uncompressedBytes,
    compressed_size: backup.compressedBytes,
    timeline: backup.timeline,
    tablespaces: backup.tablespaces,
    made_by: backup.walB ? `wal-b ${backup.walB.version}` : "wal-g",
  }));
  return `${formatJson(entries, 2)}\n`;
}
