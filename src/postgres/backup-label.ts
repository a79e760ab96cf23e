/**
 * backup_label: from where the recovery of a base backup starts. A restored backup without it is silently corrupt.
 * Source: build_backup_content() in xlogbackup.c (do_pg_backup_stop() in xlog.c before 15).
 */
import { IntegrityError } from "../errors.ts";
import { type Lsn, parseLsn } from "./lsn.ts";

export const BACKUP_LABEL = "backup_label";

export interface BackupLabel {
  readonly startLsn: Lsn;
  /** The segment's name, 24 hex digits. */
  readonly startSegment: string;
  readonly checkpointLsn: Lsn;
  /** "streamed", whichever way the files were copied; "pg_start_backup" is the exclusive mode of old. */
  readonly backupMethod: string;
  readonly backupFrom: "primary" | "standby";
  /** In the server's log_timezone: "2025-11-23 14:26:29 UTC". */
  readonly startTime: string;
  readonly label: string;
  readonly startTimeline: number;
}

/** @throws IntegrityError  a line is missing or malformed */
export function parseBackupLabel(content: Uint8Array | string): BackupLabel {
  const text = typeof content === "string" ? content : new TextDecoder().decode(content);
  const lines = new Map(
    text.split("\n").flatMap((line): [string, string][] => {
      const [, name, value] = /^([A-Z ]+): (.*)$/s.exec(line) ?? [];
      return name !== undefined && value !== undefined ? [[name, value]] : [];
    }),
  );
  const line = (name: string): string => lines.get(name) ?? damaged(name);
  const lsnOf = (name: string, value: string): Lsn => parseLsn(value) ?? damaged(name);

  const [, startLsn, startSegment] = /^(\S+) \(file ([0-9A-F]{24})\)$/.exec(line("START WAL LOCATION")) ?? [];
  const startTimeline = Number(line("START TIMELINE"));
  if (startLsn === undefined || startSegment === undefined) return damaged("START WAL LOCATION");
  if (!Number.isSafeInteger(startTimeline) || startTimeline < 1) return damaged("START TIMELINE");

  return {
    startLsn: lsnOf("START WAL LOCATION", startLsn),
    startSegment,
    checkpointLsn: lsnOf("CHECKPOINT LOCATION", line("CHECKPOINT LOCATION")),
    backupMethod: line("BACKUP METHOD"),
    backupFrom: line("BACKUP FROM") === "standby" ? "standby" : "primary",
    startTime: line("START TIME"),
    label: line("LABEL"),
    startTimeline,
  };
}

function damaged(name: string): never {
  throw new IntegrityError("backup_label is damaged", { detail: `Its line "${name}" is missing or malformed.` });
}
