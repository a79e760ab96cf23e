/** What a backup consists of: the parts that belong to it, and its manifest of files. Restoring and verifying both need it. */
import { decodeContent } from "../codec/content.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, NotFoundError } from "../errors.ts";
import { MAX_MANIFEST_BYTES, parseBackupManifest } from "../postgres/backup-manifest.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { type Backup, listParts, readJsonObject } from "../repository/backup-catalog.ts";
import { filesOfFilesMetadata } from "../repository/files-metadata.ts";
import { backupKeys, CONTENT_SUFFIX, partKey, partsFolder } from "../repository/keys.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import type { ExpectedFiles } from "./unpack.ts";

/** The parts that a backup should have, beside those that it has. */
export interface PartsOfBackup {
  /** Under tar_partitions/, the largest first: read in this order, none is left to be read alone at the end. */
  readonly present: readonly string[];
  readonly storedBytes: number;
  /** Members of each part; undefined when the backup does not say. */
  readonly named: ReadonlyMap<string, readonly string[]> | undefined;
  /** Named, and not there. */
  readonly missing: readonly string[];
}

/** @throws IntegrityError  files_metadata.json is missing or damaged */
export async function readParts(store: ObjectStore, backup: Backup): Promise<PartsOfBackup> {
  const folder = partsFolder(backup.name);
  const listed = await listParts(store, backup.name);
  const present = listed.toSorted((a, b) => b.sizeBytes - a.sizeBytes).map(({ key }) => key.slice(folder.length));
  const named = withControl(await namedParts(store, backup), present);
  const there = new Set(present);
  return {
    present,
    storedBytes: listed.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    named,
    missing: [...(named?.keys() ?? [])].filter((part) => !there.has(part)),
  };
}

/** WAL-G has pg_control in a part of its own, which it does not name in files_metadata.json and restores all the same. */
function withControl(named: PartsOfBackup["named"], present: readonly string[]): PartsOfBackup["named"] {
  const control = present.filter((part) => part.startsWith("pg_control.tar") && !named?.has(part));
  return named && new Map([...named, ...control.map((part) => [part, [`/${PG_CONTROL_PATH}`]] as const)]);
}

export interface PartOfBackup {
  /** Under tar_partitions/. */
  readonly name: string;
  /** Names in the archive; undefined when the backup does not say. */
  readonly members: readonly string[] | undefined;
}

/**
 * @returns all parts, the largest first
 * @throws IntegrityError  one is missing or in another tool's format, or there is one too many
 */
export async function completeParts(store: ObjectStore, backup: Backup): Promise<readonly PartOfBackup[]> {
  const { present, storedBytes, named, missing } = await readParts(store, backup);
  if (missing.length > 0) {
    throw new IntegrityError(`backup "${backup.name}" is incomplete`, {
      detail: `${missing.map((part) => store.urlOf(partKey(backup.name, part))).join(", ")} ${missing.length === 1 ? "is" : "are"} missing.`,
      hint: "Restore another backup.",
    });
  }
  if (backup.walB && (storedBytes !== backup.compressedBytes || present.length !== backup.walB.parts)) {
    throw new IntegrityError(`backup "${backup.name}" is damaged`, {
      detail: `Its ${present.length} parts have ${storedBytes} bytes; there should be ${backup.walB.parts} with ${backup.compressedBytes} bytes.`,
      hint: "Restore another backup.",
    });
  }
  const parts = present.filter((name) => named === undefined || named.has(name));
  const unsupported = parts.find((name) => !name.endsWith(CONTENT_SUFFIX));
  if (unsupported !== undefined) {
    throw new IntegrityError(`backup "${backup.name}" is in a format that is not supported`, {
      detail: `It has ${store.urlOf(partKey(backup.name, unsupported))}; only parts that end in "${CONTENT_SUFFIX}" can be read.`,
      hint: "Restore it with the tool that made it, or restore another backup.",
    });
  }
  return parts.map((name) => ({ name, members: named?.get(name) }));
}

async function namedParts(
  store: ObjectStore,
  backup: Backup,
): Promise<ReadonlyMap<string, readonly string[]> | undefined> {
  const key = backupKeys(backup.name).filesMetadata;
  try {
    return filesOfFilesMetadata(await readJsonObject(store, key), store.urlOf(key));
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

export interface Manifest {
  /** As PostgreSQL's own programs read it. */
  readonly text: string;
  readonly files: ExpectedFiles;
}

/**
 * @returns undefined for what WAL-G made: it keeps no checksums
 * @throws IntegrityError  it is missing, damaged, or another backup's
 */
export async function readManifest(
  backup: Backup,
  { store, zstd }: { readonly store: ObjectStore; readonly zstd: Zstd },
): Promise<Manifest | undefined> {
  if (backup.walB === undefined) return undefined;
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
