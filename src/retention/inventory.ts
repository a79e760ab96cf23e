/**
 * Everything that a retention plan must know, read completely or not at all: what cannot be read could be what is still
 * needed, so any failure here ends the command before anything is deleted.
 */
import { IntegrityError, UsageError } from "../errors.ts";
import { parseTimelineHistory, type TimelineHistory } from "../postgres/timeline-history.ts";
import { readCatalog, whyUnreadable } from "../repository/backup-catalog.ts";
import {
  BACKUPS,
  type BackupName,
  backupFolder,
  backupKeys,
  backupOfContent,
  backupOfSentinel,
  parseBackupName,
  WAL,
} from "../repository/keys.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { ObjectStore, UnfinishedUpload } from "../storage/object-store.ts";
import type { Inventory, WalEntry } from "./plan.ts";

/**
 * Backups are listed before WAL: one that runs is known by its folder, and WAL that it needs is not taken for old.
 *
 * @throws IntegrityError  a sentinel or a timeline history cannot be read; StorageError and AccessError as the store
 */
export async function readInventory(store: ObjectStore, archive: WalArchive): Promise<Inventory> {
  const { backups, unreadable, unfinished: folders } = await readCatalog(store);
  const [damaged] = unreadable.filter(({ failure }) => !(failure instanceof UsageError));
  if (damaged) {
    throw new IntegrityError(`backup "${damaged.name}" cannot be read, so nothing is deleted`, {
      hint: "What it needs cannot be known. If it is of no use, remove its sentinel by hand, then run the command again.",
      ...whyUnreadable(damaged),
      cause: damaged.failure,
    });
  }

  const unfinished: BackupName[] = [];
  for (const backup of folders) if (await hasObjects(store, backupFolder(backup.name))) unfinished.push(backup);

  const wal: WalEntry[] = [];
  const histories = new Map<number, TimelineHistory>();
  for await (const { key, sizeBytes, file } of archive.list()) {
    wal.push({ key, sizeBytes, file });
    if (file?.kind === "history")
      histories.set(file.timeline, parseTimelineHistory(file.timeline, await archive.readText(file)));
  }
  const others = unreadable.map(({ name }) => parseBackupName(name) ?? { name, startSegment: "" });
  return { backups, others, unfinished, wal, histories };
}

/** MinIO goes on listing the folder of a backup that was deleted, which would keep WAL and which nothing could remove. */
async function hasObjects(store: ObjectStore, folder: string): Promise<boolean> {
  for await (const _ of store.list(folder)) return true;
  return false;
}

/** What a backup that failed, or still runs, has left: objects of a backup without a sentinel. */
export interface UnfinishedBackup {
  readonly name: string;
  readonly keys: readonly string[];
  readonly sizeBytes: number;
  /** When the newest of its objects was written; a running backup writes one every few seconds. */
  readonly lastWrite: Date;
}

export interface Leftovers {
  readonly backups: readonly UnfinishedBackup[];
  readonly uploads: readonly UnfinishedUpload[];
}

export async function readLeftovers(store: ObjectStore): Promise<Leftovers> {
  const complete = new Set<string>();
  const found = new Map<string, { keys: string[]; sizeBytes: number; lastWrite: Date }>();
  for await (const { key, sizeBytes, lastModified } of store.list(BACKUPS)) {
    const sentinel = backupOfSentinel(key);
    if (sentinel) complete.add(sentinel.name);
    const content = backupOfContent(key);
    if (!content) continue;
    const entry = found.get(content.name) ?? { keys: [], sizeBytes: 0, lastWrite: lastModified };
    entry.keys.push(key);
    entry.sizeBytes += sizeBytes;
    if (lastModified > entry.lastWrite) entry.lastWrite = lastModified;
    found.set(content.name, entry);
  }

  const uploads: UnfinishedUpload[] = [];
  // Not below "": what else is at the root is not ours, and may be unreadable, as the lost+found of a file system.
  for (const prefix of [BACKUPS, WAL])
    for await (const upload of store.listUnfinishedUploads(prefix)) uploads.push(upload);
  const backups = [...found].filter(([name]) => !complete.has(name)).map(([name, entry]) => ({ name, ...entry }));
  return { backups, uploads };
}

/** Every object of a backup, the sentinel first, the claim last. */
export async function keysOfBackup(store: ObjectStore, name: string): Promise<readonly string[]> {
  const { sentinel, claim } = backupKeys(name);
  const content: string[] = [];
  for await (const { key } of store.list(`${BACKUPS}${name}/`)) if (key !== claim) content.push(key);
  return [sentinel, ...content, claim];
}
