/** backup-list: what can be restored, for people and for scripts. */
import { IntegrityError, NotFoundError, UsageError } from "../errors.ts";
import { formatLsn } from "../postgres/lsn.ts";
import { segmentBefore, segmentStart } from "../postgres/wal-segment.ts";
import { type Backup, type Catalog, readCatalog } from "../repository/backup-catalog.ts";
import { type DrillEntry, findLastDrill, readRecoverySeconds } from "../repository/drill-result.ts";
import { formatJson } from "../repository/json.ts";
import { damagedPagesOf } from "../repository/sentinel.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { printableLine } from "../system/printable.ts";
import { selectBackup } from "./fetch.ts";

/** @param name  only this one, or "LATEST"; NotFoundError when there is none */
export async function listBackups(
  store: ObjectStore,
  name: string | undefined,
): Promise<Pick<Catalog, "backups" | "unreadable">> {
  if (name !== undefined) return { backups: [await selectBackup(store, name)], unreadable: [] };
  return readCatalog(store);
}

/** The last time that somebody tried whether a backup restores. */
export interface LastDrill extends DrillEntry {
  /** From the beginning of the restore until connections were taken; undefined when not asked for, or not known. */
  readonly recoverySeconds: number | undefined;
}

const DRILLS_AT_ONCE = 8;

/**
 * One request for each backup, and with details another one.
 *
 * @returns by the name of the backup
 */
export async function listDrills(
  backups: readonly Backup[],
  detail: TableForm["detail"],
  { store, log }: { readonly store: ObjectStore; readonly log: Log },
): Promise<ReadonlyMap<string, LastDrill>> {
  const drills = new Map<string, LastDrill>();
  await forEachAtOnce(DRILLS_AT_ONCE, backups, async ({ name }) => {
    const entry = await findLastDrill(store, name);
    if (entry === undefined) return;
    const recoverySeconds = detail === "brief" ? undefined : await recoverySecondsOf(entry, store, log);
    drills.set(name, { ...entry, recoverySeconds });
  });
  return drills;
}

/** What cannot be read is no reason not to list the backup. */
async function recoverySecondsOf(entry: DrillEntry, store: ObjectStore, log: Log): Promise<number | undefined> {
  try {
    return await readRecoverySeconds(store, entry);
  } catch (error) {
    if (!(error instanceof IntegrityError || error instanceof UsageError || error instanceof NotFoundError))
      throw error;
    log.warning(`the result of a drill of backup "${entry.backup}" cannot be read`, { detail: `${error.message}.` });
    return undefined;
  }
}

export interface TableForm {
  readonly detail: "brief" | "detail";
  readonly alignment: "aligned" | "tabs";
}

/** Column names of WAL-E, then ours; empty where the form is brief, or there was no drill. */
export function formatTable(
  backups: readonly Backup[],
  drills: ReadonlyMap<string, LastDrill>,
  { detail, alignment }: TableForm,
): string {
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
        damaged_pages: String(damagedPagesOf(backup) ?? ""),
      }),
      last_drill: drillText(drills.get(backup.name)),
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
      last_drill: "",
    },
  );
  const lines = [header, ...rows.map((row) => Object.values(row).map(printableLine))];
  return `${(alignment === "tabs" ? lines.map((line) => line.join("\t")) : align(lines)).join("\n")}\n`;
}

/** "2026-11-23T17:30:00.123Z good, recovery in 12.3 s" */
function drillText(drill: LastDrill | undefined): string {
  if (drill === undefined) return "";
  const { finishedAt, verdict, recoverySeconds } = drill;
  const recovery = recoverySeconds === undefined ? "" : `, recovery in ${recoverySeconds.toFixed(1)} s`;
  return `${finishedAt.toISOString()} ${verdict}${recovery}`;
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
export function formatJsonList(backups: readonly Backup[], drills: ReadonlyMap<string, LastDrill>): string {
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
    damaged_pages: damagedPagesOf(backup) ?? null,
    last_drill: drillEntry(drills.get(backup.name)),
    made_by: backup.walB ? `wal-b ${backup.walB.version}` : "wal-g",
  }));
  return `${formatJson(entries, 2)}\n`;
}

const drillEntry = (drill: LastDrill | undefined) =>
  drill === undefined
    ? null
    : {
        time: drill.finishedAt.toISOString(),
        verdict: drill.verdict,
        recovery_seconds: drill.recoverySeconds ?? null,
        key: drill.key,
      };
