/**
 * Reads the parts of a backup to their ends, writes nothing, and lists what is wrong instead of stopping at it.
 *
 * Memory: the names of the files, and for each part that is read at once the few frames of a decoding stream.
 */
import { decodeStream, releaseContent } from "../codec/content.ts";
import { readTar, type TarEntry } from "../codec/tar.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, NotFoundError } from "../errors.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { backupKeys, CONTENT_SUFFIX, partKey } from "../repository/keys.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { type PartsOfBackup, readManifest, readParts } from "./contents.ts";
import {
  checkFileHash,
  type ExpectedFiles,
  expectedFile,
  isDataDirectory,
  pathInside,
  RestoredFiles,
} from "./unpack.ts";
import { type Finding, findingOf, type PartsRead } from "./verify-report.ts";

export interface VerifyPartsContext {
  readonly store: ObjectStore;
  readonly zstd: Zstd;
  readonly partsAtOnce: number;
  /** Takes how many bytes of content were read. */
  readonly onRead: (bytes: number) => void;
  readonly signal: AbortSignal;
}

const FRAMES_IN_FLIGHT = 3;

/** What is being read, and what is known of it so far. */
interface Reading extends VerifyPartsContext {
  readonly backup: Backup;
  readonly expected: ExpectedFiles | undefined;
  readonly seen: RestoredFiles;
  /** Parts that hold pg_control. */
  readonly controlFiles: string[];
  readonly found: (key: string, failure: IntegrityError) => void;
}

/** @throws StorageError, AccessError  as the store */
export async function verifyParts(
  backup: Backup,
  context: VerifyPartsContext,
): Promise<{ readonly read: PartsRead; readonly findings: readonly Finding[] }> {
  const { store, partsAtOnce } = context;
  const keys = backupKeys(backup.name);
  const findings: Finding[] = [];
  const found = (key: string, failure: IntegrityError) => void findings.push(findingOf(key, store.urlOf(key), failure));

  const manifest = await readManifest(backup, context).catch((error: unknown) => note(error, keys.manifest, found));
  const contents = await readParts(store, backup).catch((error: unknown) => note(error, keys.filesMetadata, found));
  const expected = manifest?.files;
  const seen = new RestoredFiles(expected);
  const reading = { ...context, backup, expected, seen, controlFiles: [], found };

  const unread = contents ? await readAll(contents, reading, partsAtOnce) : undefined;
  // What a part that cannot be read should hold is told with the part.
  if (unread?.length === 0) checkWhole(seen, contents, reading);
  const read: PartsRead = {
    depth: expected ? "manifest" : "part",
    parts: contents?.present.length ?? 0,
    files: seen.files,
    contentBytes: seen.bytes,
    storedBytes: contents?.storedBytes ?? 0,
  };
  return { read, findings: findings.toSorted((a, b) => (a.key < b.key ? -1 : a.key > b.key ? 1 : 0)) };
}

/** @throws what is no property of the backup: a failure of the store, a signal, a bug */
function note(error: unknown, key: string, found: Reading["found"]): undefined {
  if (!(error instanceof IntegrityError)) throw error;
  found(key, error);
}

/** @returns the parts that could not be read to the end */
async function readAll(
  { present, missing, named }: PartsOfBackup,
  reading: Reading,
  partsAtOnce: number,
): Promise<readonly string[]> {
  const { backup, found } = reading;
  const unread: string[] = [];
  for (const part of missing) {
    const files = named?.get(part)?.length ?? 0;
    found(partKey(backup.name, part), new IntegrityError("the part is missing", { detail: `It held ${files} files.` }));
    unread.push(part);
  }
  for (const part of named ? present.filter((name) => !named.has(name)) : []) {
    found(
      partKey(backup.name, part),
      new IntegrityError("the part belongs to no file of the backup", {
        detail: "It is not in files_metadata.json, so WAL-G would pass over it.",
      }),
    );
  }
  await forEachAtOnce(
    partsAtOnce,
    named ? present.filter((name) => named.has(name)) : present,
    async (part, stopped) => {
      // Members are compared for our own backups only: what WAL-G lists beside them is not known for every version.
      const members = backup.walB && named?.get(part);
      const signal = AbortSignal.any([reading.signal, stopped]);
      if (!(await readPart(part, members && new Set(members), { ...reading, signal }))) unread.push(part);
    },
  );
  return unread;
}

/** @returns whether it could be read to the end */
async function readPart(part: string, members: Set<string> | undefined, reading: Reading): Promise<boolean> {
  const { store, zstd, backup, signal, found } = reading;
  const key = partKey(backup.name, part);
  let files = 0;
  if (!part.endsWith(CONTENT_SUFFIX)) {
    found(key, new IntegrityError("the part is in a format that is not supported"));
    return false;
  }
  try {
    const content = decodeStream((await store.open(key)).chunks, zstd, { framesInFlight: FRAMES_IN_FLIGHT });
    for await (const entry of readTar(content, { release: releaseContent })) {
      signal.throwIfAborted();
      const isFile = entry.type === "file" || entry.type === "contiguous-file";
      if (isFile && members && !members.delete(entry.name))
        found(
          key,
          new IntegrityError(`"${entry.name}" is in the part, and files_metadata.json does not list it there`),
        );
      if (await readEntry(entry, isFile, key, reading)) files++;
    }
  } catch (error) {
    if (!(error instanceof IntegrityError || error instanceof NotFoundError)) throw error;
    const unread = members && members.size > 0 ? `${files} of its files could be read, ${members.size} could not.` : "";
    const detail = [error.detail, unread].filter(Boolean).join(" ");
    found(key, new IntegrityError(`the part is damaged: ${error.message}`, { detail, cause: error }));
    return false;
  }
  const [first] = members ?? [];
  if (members && first !== undefined) {
    const detail = `files_metadata.json lists ${members.size} there that it has not.`;
    found(key, new IntegrityError(`"${first}" is not in the part`, { detail }));
  }
  return true;
}

/** @returns whether it is a file @throws IntegrityError  the archive is damaged; a damaged file alone is noted */
async function readEntry(entry: TarEntry, isFile: boolean, key: string, reading: Reading): Promise<boolean> {
  const { expected, seen, controlFiles, onRead, signal, found } = reading;
  const hash = isFile && expected ? new Bun.CryptoHasher("sha256") : undefined;
  let bytesRead = 0;
  for await (const bytes of entry.content) {
    signal.throwIfAborted();
    hash?.update(bytes);
    bytesRead += bytes.byteLength;
    onRead(bytes.byteLength);
  }
  if (isDataDirectory(entry)) return false;
  try {
    const path = pathInside(entry.name);
    if (path === TABLESPACE_MAP || entry.type === "directory") return isFile;
    if (!isFile) {
      if (expected === undefined) return false;
      throw new IntegrityError(`the part has "${path}", which is neither a file nor a directory`);
    }
    if (path === PG_CONTROL_PATH) controlFiles.push(key);
    // Before it is compared: a file that is damaged is there, and not missing as well.
    if (expected === undefined || expected.has(path)) seen.add(path, bytesRead);
    const wanted = expectedFile(path, bytesRead, expected);
    if (wanted && hash) checkFileHash(path, hash.digest("hex"), wanted);
  } catch (error) {
    note(error, key, found);
  }
  return isFile;
}

/** What only the whole of the parts tells. */
function checkWhole(
  seen: RestoredFiles,
  contents: PartsOfBackup | undefined,
  { backup, controlFiles, found }: Reading,
): void {
  const keys = backupKeys(backup.name);
  try {
    seen.checkComplete(backup.name);
  } catch (error) {
    note(error, keys.manifest, found);
  }
  if (controlFiles.length === 0) found(keys.sentinel, new IntegrityError(`the backup has no ${PG_CONTROL_PATH}`));
  const { present = [], storedBytes } = contents ?? {};
  if (backup.walB && (storedBytes !== backup.compressedBytes || present.length !== backup.walB.parts)) {
    const detail = `There are ${present.length} with ${storedBytes} bytes; there should be ${backup.walB.parts} with ${backup.compressedBytes} bytes.`;
    found(keys.sentinel, new IntegrityError("the parts are not those that the sentinel tells of", { detail }));
  }
}
