/** What verify found: as lines for people, and as one JSON document. */
import { type Failure, IntegrityError, sentencesOf } from "../errors.ts";
import { formatJson } from "../repository/json.ts";
import { printableLine } from "../system/printable.ts";
import { formatBytes } from "../system/quantity.ts";

/** Something in the repository that is not as it must be. */
export interface Finding {
  readonly key: string;
  readonly url: string;
  /** In lower case, without a full stop. */
  readonly problem: string;
  /** Whole sentences. */
  readonly detail?: string | undefined;
}

/** "part": its archive is whole. "manifest": each file is what was backed up, too. */
export type Depth = "manifest" | "part";

export interface PartsRead {
  readonly depth: Depth;
  readonly parts: number;
  readonly files: number;
  /** Of the files. */
  readonly contentBytes: number;
  readonly storedBytes: number;
}

export interface WalRead {
  readonly timeline: number;
  readonly first: string;
  readonly last: string;
  /** That are there and good. */
  readonly segments: number;
  readonly contentBytes: number;
}

export interface VerifiedBackup {
  readonly name: string;
  /** Undefined where the sentinel could not be read. */
  readonly parts: PartsRead | undefined;
  readonly wal: readonly WalRead[];
  readonly walReach: WalReach;
  readonly findings: readonly Finding[];
  /** What to know that is no damage, as whole sentences. */
  readonly notes: readonly string[];
  readonly durationMs: number;
}

/** Which WAL was read: what the backup needs to be consistent, or all that it can be recovered with. */
export type WalReach = "stop of the backup" | "end of the archive";

export interface VerifyReport {
  readonly location: string;
  readonly startedAt: Date;
  readonly finishedAt: Date;
  readonly backups: readonly VerifiedBackup[];
  /** Why it ended early: the store failed. */
  readonly stoppedBy: Failure | undefined;
}

export function findingOf(key: string, url: string, { message, detail }: Failure): Finding {
  return { key, url, problem: message, ...(detail && { detail }) };
}

/** @throws IntegrityError  something is damaged or missing; the failure of the store if there was one */
export function checkReport({ backups, stoppedBy }: VerifyReport): void {
  if (stoppedBy) throw stoppedBy;
  const bad = backups.filter(({ findings }) => findings.length > 0);
  if (bad.length === 0) return;
  const [first, ...others] = bad.flatMap(({ findings }) => findings);
  const more =
    others.length === 0 ? "" : ` So are ${others.length} more, in ${bad.map(({ name }) => name).join(", ")}.`;
  throw new IntegrityError(
    `${bad.length} of ${backups.length} ${backups.length === 1 ? "backup is" : "backups are"} not good`,
    {
      detail: `${first?.url}: ${first?.problem}.${more}`,
      hint: "Take a new backup now. What is damaged was left as it is; another copy of a WAL segment may be in pg_wal of a server.",
    },
  );
}

/** One line for each backup, and below it what is wrong with it. */
export function formatVerifyText({ backups }: VerifyReport): string {
  return backups
    .flatMap((backup) => [
      [verdictOf(backup).padEnd(4), backup.name, summaryOf(backup)].join("  "),
      ...backup.findings.map(
        ({ url, problem, detail }) => `      ${[`${url}: ${problem}.`, detail].filter(Boolean).join(" ")}`,
      ),
      ...backup.notes.map((note) => `      note: ${note}`),
    ])
    .map((line) => `${printableLine(line)}\n`)
    .join("");
}

const verdictOf = ({ findings }: VerifiedBackup) => (findings.length === 0 ? "good" : "bad");

function summaryOf({ parts, wal, walReach, durationMs }: VerifiedBackup): string {
  const seconds = `${(durationMs / 1000).toFixed(1)} s`;
  if (parts === undefined) return `not read; ${seconds}`;
  const depth = parts.depth === "manifest" ? "compared with the manifest" : "without checksums to compare with";
  return [
    `${count(parts.files, "file")}, ${formatBytes(parts.contentBytes)} in ${count(parts.parts, "part")}, ${depth}`,
    `WAL to the ${walReach}: ${wal.map(walText).join(", and ") || "none"}`,
    seconds,
  ].join("; ");
}

const walText = ({ first, last, segments }: WalRead) => `${count(segments, "segment")}, ${first} … ${last}`;
const count = (n: number, what: string) => `${n} ${what}${n === 1 ? "" : "s"}`;
export function formatVerifyJson(report: VerifyReport): string {
  const { location, startedAt, finishedAt, backups, stoppedBy } = report;
  const allGood = backups.every(({ findings }) => findings.length === 0);
  return `${formatJson(
    {
      repository: location,
      verdict: stoppedBy ? "unknown" : allGood ? "good" : "bad",
      ...(stoppedBy && { stopped_by: sentencesOf(stoppedBy) }),
      start_time: startedAt.toISOString(),
      finish_time: finishedAt.toISOString(),
      backups: backups.map((backup) => ({
        backup_name: backup.name,
        verdict: verdictOf(backup),
        ...(backup.parts && {
          compared_with: backup.parts.depth === "manifest" ? "manifest" : null,
          parts: backup.parts.parts,
          files: backup.parts.files,
          content_bytes: backup.parts.contentBytes,
          stored_bytes: backup.parts.storedBytes,
        }),
        wal_to: backup.walReach,
        wal: backup.wal.map(({ timeline, first, last, segments, contentBytes }) => ({
          timeline,
          first,
          last,
          segments,
          content_bytes: contentBytes,
        })),
        seconds: backup.durationMs / 1000,
        findings: backup.findings.map(({ key, url, problem, detail }) => ({
          key,
          url,
          problem,
          detail: detail ?? null,
        })),
        notes: backup.notes,
      })),
    },
    2,
  )}\n`;
}
