/**
 * backup-fetch: a base backup → a data directory that recovery can start from.
 *
 * choose → check the target and its space → parts, several at once, each file against the backup manifest → everything is
 * there → backup_manifest, for pg_verifybackup → fsync → pg_control gets its name. Until that last step a server refuses to
 * start on the directory.
 */
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { decodeContent } from "../codec/content.ts";
import type { Zstd } from "../codec/zstd.ts";
import { Failure, IntegrityError, NotFoundError, systemCodeOf } from "../errors.ts";
import { BACKUP_MANIFEST, parseBackupManifest } from "../postgres/backup-manifest.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { type Backup, findBackup, listParts, readCatalog, readJsonObject } from "../repository/backup-catalog.ts";
import { partsOfFilesMetadata } from "../repository/files-metadata.ts";
import { backupKeys, partKey, partsFolder } from "../repository/keys.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { checkSpace } from "./space.ts";
import { finishDirectories, planTarget, prepareTarget, syncTree, type TablespaceChoice } from "./target.ts";
import { type ExpectedFiles, placeFile, RestoredFiles, unpackPart } from "./unpack.ts";

export interface BackupFetchContext {
  readonly store: ObjectStore;
  readonly zstd: Zstd;
  readonly partsAtOnce: number;
  readonly tablespaces: TablespaceChoice;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** What pg_control is called until everything else is in place. */
const PG_CONTROL_UNTIL_COMPLETE = `${PG_CONTROL_PATH}.walb-incomplete`;

/**
 * @param name    of a backup, or "LATEST": the one that finished last
 * @param target  an empty directory, or one that does not exist yet
 * @throws NotFoundError     there is no such backup
 * @throws IntegrityError    the backup is incomplete or damaged
 * @throws DestinationError  the target is not empty, in use, or cannot be written
 */
export async function fetchBackup(name: string, target: string, context: BackupFetchContext): Promise<Backup> {
  const { store, log, partsAtOnce, signal } = context;
  const backup = await selectBackup(store, name);
  const parts = await completeParts(store, backup);
  const manifest = await readManifest(backup, context);
  const expected = manifest?.files;

  const plan = await planTarget(target, backup.tablespaces, context.tablespaces);
  await checkSpace(plan, { totalBytes: backup.uncompressedBytes, files: expected, log });
  const prepared = await prepareTarget(plan);
  log.info(`restoring backup "${backup.name}" into "${target}"`);

  const restored = new RestoredFiles(expected);
  const unpack = {
    ...context,
    target,
    restored,
    expected,
    rename: new Map([[PG_CONTROL_PATH, PG_CONTROL_UNTIL_COMPLETE]]),
    owner: prepared.owner,
  };
  await forEachAtOnce(partsAtOnce, parts, async (part, othersFailed) => {
    const key = partKey(backup.name, part);
    try {
      await unpackPart(store.stream(key), { ...unpack, signal: AbortSignal.any([signal, othersFailed]) });
    } catch (error) {
      throw partFailure(store.urlOf(key), error);
    }
  });
  restored.checkComplete(backup.name);
  if (manifest) await placeFile(BACKUP_MANIFEST, manifest.text, unpack);
  await finishDirectories(prepared);

  await syncTree(target, prepared.tablespaceDirectories, signal);
  await putControlInPlace(target, backup.name);
  log.info(`restored backup "${backup.name}": ${restored.files} files, ${(restored.bytes / 2 ** 20).toFixed(1)} MiB`);
  return backup;
}

async function putControlInPlace(target: string, backup: string): Promise<void> {
  try {
    await rename(join(target, PG_CONTROL_UNTIL_COMPLETE), join(target, PG_CONTROL_PATH));
    await syncDirectory(join(target, "global"));
  } catch (cause) {
    if (systemCodeOf(cause) !== "ENOENT") throw destinationError(`could not put "${PG_CONTROL_PATH}" in place`, cause);
    throw new IntegrityError(`backup "${backup}" has no ${PG_CONTROL_PATH}`, {
      hint: "Restore another backup.",
      cause,
    });
  }
}

export async function selectBackup(store: ObjectStore, name: string): Promise<Backup> {
  if (name !== "LATEST") return findBackup(store, name);
  const { backups, unreadable } = await readCatalog(store);
  const newest = backups.at(-1);
  const newestUnreadable = unreadable.toSorted((a, b) => a.lastModified.getTime() - b.lastModified.getTime()).at(-1);
  if (newestUnreadable && (newest === undefined || newestUnreadable.lastModified > newest.lastModified)) {
    // Restoring an older one without a word could lose what the user expects to get.
    throw new IntegrityError(`the newest backup, "${newestUnreadable.name}", cannot be read`, {
      detail:
        newestUnreadable.failure instanceof Failure
          ? `${newestUnreadable.failure.message}.`
          : String(newestUnreadable.failure),
      hint: newest ? `The newest one that can be read is "${newest.name}": name it to restore it.` : undefined,
      cause: newestUnreadable.failure,
    });
  }
  if (newest === undefined) throw new NotFoundError("there is no backup", { detail: `Looked in ${store.location}.` });
  return newest;
}

/** @returns the names of all parts @throws IntegrityError  one is missing, or there is one too many */
async function completeParts(store: ObjectStore, backup: Backup): Promise<readonly string[]> {
  const folder = partsFolder(backup.name);
  const listed = await listParts(store, backup.name);
  const present = listed.map(({ key }) => key.slice(folder.length));
  const named = await namedParts(store, backup);

  const missing = (named ?? []).filter((part) => !present.includes(part));
  if (missing.length > 0) {
    throw new IntegrityError(`backup "${backup.name}" is incomplete`, {
      detail: `${missing.map((part) => store.urlOf(partKey(backup.name, part))).join(", ")} ${missing.length === 1 ? "is" : "are"} missing.`,
      hint: "Restore another backup.",
    });
  }
  const storedBytes = listed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
  if (backup.walB && (storedBytes !== backup.compressedBytes || present.length !== backup.walB.parts)) {
    throw new IntegrityError(`backup "${backup.name}" is damaged`, {
      detail: `Its ${present.length} parts have ${storedBytes} bytes; there should be ${backup.walB.parts} with ${backup.compressedBytes} bytes.`,
      hint: "Restore another backup.",
    });
  }
  return named ?? present;
}

async function namedParts(store: ObjectStore, backup: Backup): Promise<readonly string[] | undefined> {
  const key = backupKeys(backup.name).filesMetadata;
  try {
    return partsOfFilesMetadata(await readJsonObject(store, key), store.urlOf(key));
  } catch (error) {
    // WAL-G writes none when it is told so; wal-b always does.
    if (error instanceof NotFoundError && backup.walB === undefined) return undefined;
    throw error instanceof NotFoundError
      ? new IntegrityError(`backup "${backup.name}" is incomplete`, {
          detail: `${store.urlOf(key)} is missing.`,
          cause: error,
        })
      : error;
  }
}

interface Manifest {
  /** As PostgreSQL's own programs read it. */
  readonly text: string;
  readonly files: ExpectedFiles;
}

/** @returns undefined for what WAL-G made: it keeps no checksums */
async function readManifest(backup: Backup, { store, zstd, log }: BackupFetchContext): Promise<Manifest | undefined> {
  if (backup.walB === undefined) {
    log.warning(`backup "${backup.name}" has no checksums of its files`, {
      detail: "Another tool made it. What is restored can only be checked as far as its compression does.",
    });
    return undefined;
  }
  const key = backupKeys(backup.name).manifest;
  try {
    const text = new TextDecoder().decode(
      await decodeContent(await readJsonObject(store, key), zstd, MAX_MANIFEST_BYTES),
    );
    if (new Bun.CryptoHasher("sha256").update(text).digest("hex") !== backup.walB.manifestSha256) {
      throw new IntegrityError("it is not the one that the backup was made with", {
        detail: "Its SHA-256 is not the one in the sentinel.",
      });
    }
    return { text, files: parseBackupManifest(text) };
  } catch (error) {
    if (!(error instanceof IntegrityError || error instanceof NotFoundError)) throw error;
    throw new IntegrityError(`the manifest of backup "${backup.name}" cannot be used`, {
      detail: `${store.urlOf(key)}: ${error.message}. ${error.detail ?? ""}`.trim(),
      hint: "Restore another backup.",
      cause: error,
    });
  }
}

const MAX_MANIFEST_BYTES = 2 ** 30;

function partFailure(url: string, error: unknown): unknown {
  if (error instanceof NotFoundError)
    return new IntegrityError("a part of the backup is missing", {
      detail: `${error.message}.`,
      hint: "Restore another backup.",
      cause: error,
    });
  if (!(error instanceof IntegrityError)) return error;
  return new IntegrityError("a part of the backup is damaged", {
    detail: [`${url}: ${error.message}.`, error.detail].filter(Boolean).join(" "),
    hint: "What was restored so far cannot be started. Empty the directory and restore another backup.",
    cause: error,
  });
}
