/** The backup half of the repository, reading: which backups are complete, and what they are made of. */
import { IntegrityError, NotFoundError, UsageError } from "../errors.ts";
import type { ObjectEntry, ObjectStore } from "../storage/object-store.ts";
import { BACKUPS, type BackupName, backupKeys, backupOfSentinel, parseBackupName, partsFolder } from "./keys.ts";
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
  readonly lastModified: Date;
  readonly failure: unknown;
}

export interface Catalog {
  /** Oldest first, by the time they finished. */
  readonly backups: readonly Backup[];
  readonly unreadable: readonly UnreadableBackup[];
}

const MAX_JSON_BYTES = 512 * 2 ** 20;
const MAX_SENTINEL_BYTES = 16 * 2 ** 20;

/** Reads every sentinel. A failure of the store is thrown; a sentinel that is no backup of ours is reported. */
export async function readCatalog(store: ObjectStore): Promise<Catalog> {
  const { objects } = await store.listLevel(BACKUPS);
  const backups: Backup[] = [];
  const unreadable: UnreadableBackup[] = [];
  for (const { key, lastModified } of objects) {
    const backup = backupOfSentinel(key);
    if (backup === undefined) continue;
    try {
      backups.push(await readBackup(store, backup, lastModified));
    } catch (failure) {
      // Ignorance about the store, a signal and a bug of ours are not properties of the backup.
      if (!(failure instanceof IntegrityError || failure instanceof UsageError || failure instanceof NotFoundError))
        throw failure;
      unreadable.push({ name: backup.name, lastModified, failure });
    }
  }
  const byFinish = (a: Backup, b: Backup) =>
    a.finishedAt.getTime() - b.finishedAt.getTime() || Number(a.startLsn - b.startLsn);
  return { backups: backups.toSorted(byFinish), unreadable };
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
    return await readBackup(store, backup, lastModified);
  } catch (error) {
    throw error instanceof NotFoundError ? notThere() : error;
  }
}

async function readBackup(store: ObjectStore, backup: BackupName, lastModified: Date): Promise<Backup> {
  const keys = backupKeys(backup.name);
  const sentinel = decodeSentinel(
    backup,
    (await store.get(keys.sentinel, MAX_SENTINEL_BYTES)).body,
    store.urlOf(keys.sentinel),
  );
  const isPermanent = (await readPermanence(store, keys.metadata, sentinel)) ?? sentinel.isPermanent;
  return { ...sentinel, isPermanent, name: backup.name, startSegment: backup.startSegment, lastModified };
}

async function readPermanence(store: ObjectStore, key: string, sentinel: Sentinel): Promise<boolean | undefined> {
  try {
    return decodePermanence((await store.get(key, MAX_SENTINEL_BYTES)).body, store.urlOf(key));
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    // Ours always has it. Without it, nobody can tell whether the backup was marked permanent.
    if (sentinel.walB) throw new IntegrityError(`${store.urlOf(key)} is missing`, { cause: error });
    return undefined;
  }
}

/** The objects under tar_partitions/. */
export async function listParts(store: ObjectStore, name: string): Promise<readonly ObjectEntry[]> {
  return (await store.listLevel(partsFolder(name))).objects;
}

/** A small object of a backup, whole. @throws as ObjectStore.get() */
export async function readJsonObject(store: ObjectStore, key: string): Promise<Uint8Array> {
  return (await store.get(key, MAX_JSON_BYTES)).body;
}
