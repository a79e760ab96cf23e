/**
 * Every key of the repository, and its inverse: WAL-G's layout.
 *
 * basebackups_005/base_<24 hex>_backup_stop_sentinel.json   the backup exists from here on
 * basebackups_005/base_<24 hex>/…                           what it is made of
 * wal_005/<name in pg_wal>.zst                              archived WAL
 */
import { parseWalFile, type WalFile } from "../postgres/wal-segment.ts";
import type { ObjectKey } from "../storage/object-store.ts";

export const BACKUPS = "basebackups_005/";
export const WAL = "wal_005/";
export const CONTENT_SUFFIX = ".zst";

const SENTINEL_SUFFIX = "_backup_stop_sentinel.json";

/** Ours and WAL-G's; the second group is the parent of a delta, the third the offset in WAL-E's names. */
const BACKUP_NAME = /^base_([0-9A-F]{24})(?:_D_([0-9A-F]{24}))?(_[0-9A-F]{8})?$/;

export interface BackupName {
  readonly name: string;
  readonly startSegment: string;
  readonly madeBy: "wal-g" | "wal-e";
  /** Of a delta: where the backup starts that it is made on, which may be a delta too. undefined: it is none. */
  readonly parentSegment: string | undefined;
}

/** "base_000000010000000000000004" → its parts; undefined for any other text. */
export function parseBackupName(name: string): BackupName | undefined {
  const [, startSegment, parentSegment, offset] = BACKUP_NAME.exec(name) ?? [];
  if (!startSegment || parseWalFile(startSegment)?.kind !== "segment") return undefined;
  const madeBy = offset !== undefined && parentSegment === undefined ? "wal-e" : "wal-g";
  return { name, startSegment, madeBy, parentSegment };
}

export const backupNameOf = (startSegment: string) => `base_${startSegment}`;

export const sentinelKey = (backup: string): ObjectKey => `${BACKUPS}${backup}${SENTINEL_SUFFIX}`;
export const backupFolder = (backup: string) => `${BACKUPS}${backup}/`;
export const partsFolder = (backup: string) => `${backupFolder(backup)}tar_partitions/`;

/** The small objects of a backup, by what they hold. */
export const backupKeys = (backup: string) => ({
  sentinel: sentinelKey(backup),
  metadata: `${backupFolder(backup)}metadata.json`,
  filesMetadata: `${backupFolder(backup)}files_metadata.json`,
  /** PostgreSQL's backup_manifest: size and SHA-256 of every file. Ours; other tools pass over it. */
  manifest: `${backupFolder(backup)}backup_manifest${CONTENT_SUFFIX}`,
  /** Who began this backup, and when; the first object written. Ours. */
  claim: `${backupFolder(backup)}walb_claim.json`,
});

const DRILL = /\/walb_drill_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z)_(good|bad)\.json$/;

export interface DrillName {
  readonly backup: string;
  readonly finishedAt: Date;
  readonly verdict: "good" | "bad";
}

/** What every key of a drill's result begins with, for one backup. In the order of keys the newest is the last. */
export const drillPrefix = (backup: string) => `${backupFolder(backup)}walb_drill_`;

/** One for each drill, because nothing is overwritten; a listing alone tells how it ended. Ours. */
export const drillKey = ({ backup, finishedAt, verdict }: DrillName): ObjectKey =>
  `${drillPrefix(backup)}${finishedAt.toISOString().replaceAll(":", "-")}_${verdict}.json`;

/** undefined when it is not the key of a drill's result. */
export function parseDrillKey(key: ObjectKey): DrillName | undefined {
  const backup = backupOfContent(key)?.name;
  const [, time, verdict] = DRILL.exec(key) ?? [];
  if (backup === undefined || time === undefined || !key.startsWith(drillPrefix(backup))) return undefined;
  const finishedAt = new Date(time.replace(/T(\d\d)-(\d\d)-/, "T$1:$2:"));
  if (Number.isNaN(finishedAt.getTime())) return undefined;
  return { backup, finishedAt, verdict: verdict === "good" ? "good" : "bad" };
}

/** "part_001.tar.zst"; parts are numbered from 1. */
export const partName = (number: number) => `part_${String(number).padStart(3, "0")}.tar${CONTENT_SUFFIX}`;
export const PG_CONTROL_PART = `pg_control.tar${CONTENT_SUFFIX}`;
export const BACKUP_LABEL_PART = `backup_label.tar${CONTENT_SUFFIX}`;
export const partKey = (backup: string, part: string): ObjectKey => `${partsFolder(backup)}${part}`;

/** The name of a backup whose sentinel this is. */
export function backupOfSentinel(key: ObjectKey): BackupName | undefined {
  if (!key.startsWith(BACKUPS) || !key.endsWith(SENTINEL_SUFFIX)) return undefined;
  return parseBackupName(key.slice(BACKUPS.length, -SENTINEL_SUFFIX.length));
}

/**
 * What an object beside the sentinels is called that is none but looks like one: somebody renamed it, or a letter of its key was
 * changed on its way. undefined for a sentinel, and for what has nothing of its name.
 */
export function nameOfLookalike(key: ObjectKey): string | undefined {
  if (!key.startsWith(BACKUPS) || backupOfSentinel(key) !== undefined) return undefined;
  const name = key.slice(BACKUPS.length);
  return name.startsWith("base_") || name.endsWith(SENTINEL_SUFFIX) ? name : undefined;
}

/** The name of the backup whose folder holds this key. */
export function backupOfContent(key: ObjectKey): BackupName | undefined {
  if (!key.startsWith(BACKUPS)) return undefined;
  const [folder, rest] = key.slice(BACKUPS.length).split("/", 2);
  return rest === undefined || folder === undefined ? undefined : parseBackupName(folder);
}

export const walKey = (name: string): ObjectKey => `${WAL}${name}${CONTENT_SUFFIX}`;

/** Endings that other tools give to what they compress. */
const FOREIGN_SUFFIXES = ["lz4", "lzo", "lzma", "br", "gz"];
const WAL_OBJECT = new RegExp(`^(.+?)(?:\\.(zst|${FOREIGN_SUFFIXES.join("|")}))?$`);

export interface WalObject {
  readonly file: WalFile;
  /** "zst", one of the endings of other tools, or "" for content that is not compressed. */
  readonly compression: string;
}

/** Whether it is in a form that is read: what wal-b writes, or not compressed. Recovery stops at any other. */
export const isSupported = ({ compression }: Partial<WalObject>) => compression === "zst" || compression === "";

/** The key of an object below wal_005/ → which file it holds; undefined when it is not one. */
export function parseWalKey(key: ObjectKey): WalObject | undefined {
  if (!key.startsWith(WAL)) return undefined;
  const [, name = "", compression = ""] = WAL_OBJECT.exec(key.slice(WAL.length)) ?? [];
  const file = parseWalFile(name);
  return file && { file, compression };
}
