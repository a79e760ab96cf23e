/** The backup half of the repository, reading: which backups are complete, and what they are made of. */
import { Failure, IntegrityError, NotFoundError, sentencesOf, UsageError } from "../errors.ts";
import type { ObjectEntry, ObjectKey, ObjectStore } from "../storage/object-store.ts";
import { printableLine } from "../system/printable.ts";
import { MAX_FILES_METADATA_BYTES } from "./files-metadata.ts";
import {
  BACKUPS,
  type BackupName,
  backupKeys,
  backupOfContent,
  backupOfSentinel,
  nameOfLookalike,
  parseBackupName,
  partsFolder,
} from "./keys.ts";
import { decodePermanence, decodeSentinel, type Sentinel } from "./sentinel.ts";

export interface Backup extends Sentinel {
  readonly name: string;
  readonly startSegment: string;
  /** When the store took the sentinel; only for showing it, never for deciding. */
  readonly lastModified: Date;
}

/** A backup that is listed but cannot be read; why not. */
export interface UnreadableBackup {
  readonly name: string;
  /** Of the sentinel, or of what may be one. */
  readonly key: ObjectKey;
  readonly lastModified: Date;
  readonly failure: Failure;
}

/** In the words of a message whose own says what that is for. */
export function whyUnreadable({ failure }: UnreadableBackup): { readonly detail: string; readonly hint?: string } {
  return { detail: sentencesOf(failure), ...(failure.hint && { hint: failure.hint }) };
}

export interface Catalog {
  /** Oldest first, by the time they finished. */
  readonly backups: readonly Backup[];
  readonly unreadable: readonly UnreadableBackup[];
  /** Begun and not listed: running, or what a backup that failed or was deleted has left. */
  readonly unfinished: readonly BackupName[];
}

const MAX_SENTINEL_BYTES = 16 * 2 ** 20;

/**
 * Reads every sentinel. A failure of the store is thrown; a sentinel that is no backup of ours is reported, and so is an object
 * that looks like one: passed over, it could be the newest backup.
 *
 * Folders and sentinels come from one listing. A backup that was begun before it is listed or unfinished, even when its sentinel
 * appears meanwhile: its folder was there.
 */
export async function readCatalog(store: ObjectStore): Promise<Catalog> {
  const { objects, folders } = await store.listLevel(BACKUPS);
  const backups: Backup[] = [];
  const unreadable = lookalikesAmong(objects, store);
  for (const { key, lastModified } of objects) {
    const backup = backupOfSentinel(key);
    if (backup === undefined) continue;
    // Ignorance about the store, a signal and a bug of ours are not properties of the backup; a mistyped bucket is not either.
    const read = await readObjects(store, backup.name).catch(reasonIf(IntegrityError, NotFoundError));
    const found = "failure" in read ? read : decoded(backup, read, lastModified, store);
    if ("failure" in found) unreadable.push({ name: backup.name, key, lastModified, failure: found.failure });
    else backups.push(found);
  }
  const byFinish = (a: Backup, b: Backup) =>
    a.finishedAt.getTime() - b.finishedAt.getTime() || Number(a.startLsn - b.startLsn);
  const listed = new Set([...backups, ...unreadable].map(({ name }) => name));
  const unfinished = folders
    .map(backupOfContent)
    .filter((backup) => backup !== undefined)
    .filter(({ name }) => !listed.has(name));
  return { backups: backups.toSorted(byFinish), unreadable, unfinished };
}

function lookalikesAmong(objects: readonly ObjectEntry[], store: ObjectStore): UnreadableBackup[] {
  const sentinels = objects.map(({ key }) => key).filter((key) => backupOfSentinel(key) !== undefined);
  return objects.flatMap(({ key, lastModified }) => {
    const name = nameOfLookalike(key);
    // A copy of one that is there stands for no other backup.
    if (name === undefined || sentinels.some((sentinel) => key.startsWith(sentinel))) return [];
    const failure = new IntegrityError(
      `${printableLine(store.urlOf(key))} looks like the sentinel of a backup, and has the name of none`,
      {
        detail: "It was renamed, or it is another program's, or the store's answer was changed on its way.",
        hint: "Run the command again. If this is told again, give the object its name back, or move it elsewhere.",
      },
    );
    return { name: printableLine(name), key, lastModified, failure };
  });
}

/**
 * @throws NotFoundError   there is no such backup
 * @throws IntegrityError  its sentinel is damaged
 * @throws UsageError      it is of a kind that cannot be restored
 */
export async function findBackup(store: ObjectStore, name: string): Promise<Backup> {
  const backup = parseBackupName(name);
  const notThere = () =>
    new NotFoundError(`there is no backup "${name}"`, {
      detail: `Looked in ${store.location}.`,
      hint: 'Run "wal-b backup-list" for those there are.',
    });
  if (backup === undefined) throw notThere();
  try {
    const { lastModified } = await store.head(backupKeys(name).sentinel);
    return decodeBackup(backup, await readObjects(store, name), lastModified, store);
  } catch (error) {
    throw error instanceof NotFoundError ? notThere() : error;
  }
}

/**
 * What is newest, or leads to a target, means nothing across clusters: the newest backup of a prefix that two of them use is
 * now that of one and now that of the other.
 *
 * @param hint  how the user says which is meant
 * @throws UsageError  they are of more than one
 */
export function checkOneCluster(
  backups: readonly Pick<Backup, "name" | "systemIdentifier">[],
  { location, hint }: { readonly location: string; readonly hint: string },
): void {
  const newest = new Map(backups.map(({ name, systemIdentifier }) => [systemIdentifier, name]));
  if (newest.size <= 1) return;
  const each = [...newest].map(([systemIdentifier, name]) => `"${name}" of ${systemIdentifier}`);
  throw new UsageError(`the backups are of ${newest.size} clusters, and it is not said which is meant`, {
    detail: `Looked in ${location}. The newest of each, by system identifier: ${each.join(", ")}.`,
    hint: `${hint} "wal-b backup-list --detail" shows whose each is. Give each cluster a prefix of its own.`,
  });
}

interface BackupObjects {
  readonly sentinel: Uint8Array;
  /** Other tools' backups may have none. */
  readonly metadata: Uint8Array | undefined;
}

async function readObjects(store: ObjectStore, name: string): Promise<BackupObjects> {
  const keys = backupKeys(name);
  const { body: sentinel } = await store.get(keys.sentinel, MAX_SENTINEL_BYTES);
  const metadata = await store.get(keys.metadata, MAX_SENTINEL_BYTES).catch((error: unknown) => {
    if (!(error instanceof NotFoundError)) throw error;
    return undefined;
  });
  return { sentinel, metadata: metadata?.body };
}

function decodeBackup(backup: BackupName, objects: BackupObjects, lastModified: Date, store: ObjectStore): Backup {
  const { name, startSegment } = backup;
  const keys = backupKeys(name);
  const sentinel = decodeSentinel(backup, objects.sentinel, store.urlOf(keys.sentinel));
  // Ours always has it. Without it, nobody can tell whether the backup was marked permanent.
  if (objects.metadata === undefined && sentinel.walB)
    throw new IntegrityError(`${store.urlOf(keys.metadata)} is missing`);
  const marked = objects.metadata && decodePermanence(objects.metadata, store.urlOf(keys.metadata));
  return { ...sentinel, isPermanent: marked ?? sentinel.isPermanent, name, startSegment, lastModified };
}

type Unreadable = Pick<UnreadableBackup, "failure">;

function decoded(...args: Parameters<typeof decodeBackup>): Backup | Unreadable {
  try {
    return decodeBackup(...args);
  } catch (error) {
    return reasonIf(IntegrityError, UsageError)(error);
  }
}

/** Takes a failure of one of these kinds for a property of the backup. @throws any other */
const reasonIf =
  (...kinds: readonly (abstract new (...args: never[]) => Failure)[]) =>
  (failure: unknown): Unreadable => {
    if (failure instanceof Failure && kinds.some((kind) => failure instanceof kind)) return { failure };
    throw failure;
  };

/** The objects under tar_partitions/. */
export async function listParts(store: ObjectStore, name: string): Promise<readonly ObjectEntry[]> {
  return (await store.listLevel(partsFolder(name))).objects;
}

/** A small object of a backup, whole: files_metadata.json is the largest. @throws as ObjectStore.get() */
export async function readJsonObject(store: ObjectStore, key: string): Promise<Uint8Array> {
  return (await store.get(key, MAX_FILES_METADATA_BYTES)).body;
}
