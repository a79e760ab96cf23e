/**
 * One part → files in the target directory, each compared with the backup manifest.
 *
 * The archive may be hostile: a member is placed only where its name leads inside the target, over nothing that exists, and
 * only files and directories are made.
 */
import { chmod, chown } from "node:fs/promises";
import { dirname, join } from "node:path";
import { decodeStream, releaseContent } from "../codec/content.ts";
import { readTar, type TarEntry } from "../codec/tar.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, systemCodeOf } from "../errors.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import { destinationError, madeDurable } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { createNewFile, type NewFile, type WriteMode } from "../system/new-file.ts";
import type { Progress } from "../system/progress.ts";
import { makeDirectories, type Owner } from "./owner.ts";

/** What every file must be, by path relative to the data directory. */
export type ExpectedFiles = ReadonlyMap<string, ExpectedFile>;

export interface ExpectedFile {
  readonly sizeBytes: number;
  /** To the second. */
  readonly modifiedAt: Date;
  readonly sha256: string;
}

/** What pg_control is called until everything else is in place. */
export const PG_CONTROL_UNTIL_COMPLETE = `${PG_CONTROL_PATH}.walb-incomplete`;

export interface UnpackContext {
  readonly target: string;
  readonly zstd: Zstd;
  readonly restored: RestoredFiles;
  /** undefined: the backup does not say */
  readonly expected: ExpectedFiles | undefined;
  /** Files that are there already, and are passed over. */
  readonly complete: ReadonlySet<string>;
  /** Who files are given to; undefined: who runs this. */
  readonly owner: Owner | undefined;
  readonly log: Log;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

const FRAMES_IN_FLIGHT = 3;

/**
 * Files from this size on go to the disk while other parts are unpacked, past the page cache, and not all at the end, when nothing else is
 * left to be done. The many small ones are faster together.
 */
const LARGE_FILE_BYTES = 4 * 2 ** 20;

/**
 * tablespace_map is passed over: a server that finds it makes the links anew, to where tablespaces were on the source
 * (xlogrecovery.c, read_tablespace_map), and ours are in place already.
 *
 * @returns the directories that are in the part, relative to the target
 * @throws IntegrityError  damaged, hostile, or not what the manifest says; DestinationError as the file system
 */
export async function unpackPart(
  source: AsyncIterable<Uint8Array>,
  context: UnpackContext,
): Promise<readonly string[]> {
  const directories: string[] = [];
  const content = decodeStream(source, context.zstd, { framesInFlight: FRAMES_IN_FLIGHT });
  for await (const entry of readTar(content, { release: releaseContent })) {
    context.signal.throwIfAborted();
    if (isDataDirectory(entry)) continue;
    const path = pathInside(entry.name);
    if (path === TABLESPACE_MAP) continue;
    if (entry.type === "directory") {
      await makeDirectory(path, entry, context);
      directories.push(path);
    } else if (entry.type === "file" || entry.type === "contiguous-file") await writeFile(path, entry, context);
    else refuseOther(path, entry, context);
  }
  return directories;
}

/** WAL-G's archives begin with the directory itself. */
export const isDataDirectory = ({ type, name }: TarEntry) => type === "directory" && name === "/";

/**
 * "/base/1/1259" → "base/1/1259".
 *
 * @throws IntegrityError  the name leads out of the directory
 */
export function pathInside(memberName: string): string {
  const segments = memberName.replace(/^\/+/, "").replace(/\/+$/, "").split("/");
  if (memberName.includes("\0") || segments.some((segment) => segment === ".." || segment === "." || segment === "")) {
    throw new IntegrityError("the part has a member that would leave the directory", {
      detail: `Its name is ${JSON.stringify(memberName)}.`,
    });
  }
  return segments.join("/");
}

async function makeDirectory(path: string, entry: TarEntry, { target, owner }: UnpackContext): Promise<void> {
  const directory = join(target, path);
  try {
    await makeDirectories(directory, owner);
    await chmod(directory, directoryMode(entry.mode));
    if (owner) await chown(directory, owner.uid, owner.gid);
  } catch (cause) {
    throw destinationError(`could not create the directory "${directory}"`, cause);
  }
}

/** PostgreSQL starts on a directory of 0700 or 0750 only (checkDataDir in miscinit.c). */
const directoryMode = (mode: number) => (mode & 0o050 ? 0o750 : 0o700);

async function writeFile(path: string, entry: TarEntry, context: UnpackContext): Promise<void> {
  const { target, expected, restored, complete, progress, signal } = context;
  const wanted = expectedFile(path, entry.sizeBytes, expected);
  if (complete.has(path)) return;

  const place = join(target, path === PG_CONTROL_PATH ? PG_CONTROL_UNTIL_COMPLETE : path);
  const hash = wanted && new Bun.CryptoHasher("sha256");
  const isLarge = entry.sizeBytes >= LARGE_FILE_BYTES;
  {
    // Other tools' archives come in pieces of some KiB, which the page cache had better collect.
    await using file = await createFile(place, context, isLarge && expected ? "direct" : "cached");
    for await (const bytes of entry.content) {
      signal.throwIfAborted();
      // Hashed while it is written, which other threads do.
      const writing = writeTo(file, bytes, place);
      hash?.update(bytes);
      await writing;
      progress.advance(bytes.byteLength);
    }
    await setAttributes(file, entry, place, context.owner);
    if (isLarge) await madeDurable(place, () => file.handle.sync());
  }
  if (wanted && hash) checkFileHash(path, hash.digest("hex"), wanted);
  restored.add(path, entry.sizeBytes);
}

/**
 * @returns undefined when there is no manifest
 * @throws IntegrityError  the manifest does not have the file, or with another size
 */
export function expectedFile(
  path: string,
  sizeBytes: number,
  expected: ExpectedFiles | undefined,
): ExpectedFile | undefined {
  const wanted = expected?.get(path);
  if (expected && wanted === undefined)
    throw new IntegrityError(`the part has "${path}", which is not in the backup's manifest`);
  if (wanted && wanted.sizeBytes !== sizeBytes) {
    throw new IntegrityError(`"${path}" has the wrong size`, {
      detail: `It has ${sizeBytes} bytes, the backup's manifest says ${wanted.sizeBytes}.`,
    });
  }
  return wanted;
}

/** @throws IntegrityError  the content is another one */
export function checkFileHash(path: string, sha256: string, wanted: ExpectedFile): void {
  if (sha256 === wanted.sha256) return;
  throw new IntegrityError(`"${path}" is not what was backed up`, {
    detail: "Its SHA-256 differs from the one in the backup's manifest.",
  });
}

async function setAttributes(
  { handle }: NewFile,
  entry: TarEntry,
  place: string,
  owner: Owner | undefined,
): Promise<void> {
  try {
    // Permission bits only, and none for others: a data directory is nobody else's business.
    await handle.chmod(entry.mode & 0o770);
    if (owner) await handle.chown(owner.uid, owner.gid);
    await handle.utimes(entry.modifiedAt, entry.modifiedAt);
  } catch (cause) {
    throw destinationError(`could not set mode, owner and time of "${place}"`, cause);
  }
}

/** A file that is in no part. @throws DestinationError  it could not be made */
export async function placeFile(
  path: string,
  content: string,
  context: Pick<UnpackContext, "target" | "owner">,
): Promise<void> {
  const place = join(context.target, path);
  await using file = await createFile(place, context, "cached");
  await writeTo(file, new TextEncoder().encode(content), place);
  if (context.owner) await file.handle.chown(context.owner.uid, context.owner.gid);
}

/** Parts come in any order, so a file may come before the entry of its directory. */
async function createFile(place: string, { owner }: Pick<UnpackContext, "owner">, mode: WriteMode): Promise<NewFile> {
  try {
    return await createNewFile(place, mode);
  } catch (cause) {
    if (systemCodeOf(cause) !== "ENOENT") throw destinationError(`could not create "${place}"`, cause);
  }
  try {
    await makeDirectories(dirname(place), owner);
    return await createNewFile(place, mode);
  } catch (cause) {
    throw destinationError(`could not create "${place}"`, cause);
  }
}

async function writeTo(file: NewFile, bytes: Uint8Array, place: string): Promise<void> {
  try {
    await file.write(bytes);
  } catch (cause) {
    throw destinationError(`could not write "${place}"`, cause);
  }
}

/** WAL-G stores symbolic links that are no tablespaces as headers without content. */
function refuseOther(path: string, entry: TarEntry, { log, expected }: UnpackContext): void {
  if (expected)
    throw new IntegrityError(`the part has "${path}", which is neither a file nor a directory`, {
      detail: `It is a ${entry.type}.`,
    });
  log.warning(`"${path}" is a ${entry.type} and is not restored`, {
    ...(entry.linkTarget && { detail: `It led to "${entry.linkTarget}".` }),
    hint: "Make it by hand if it is needed.",
  });
}

/** What has been restored so far, against what must be. */
export class RestoredFiles {
  readonly #missing: Set<string> | undefined;
  #files = 0;
  #bytes = 0;

  /** @param complete  what was there before */
  constructor(expected: ExpectedFiles | undefined, complete: ReadonlySet<string> = new Set()) {
    this.#missing = expected && new Set(expected.keys()).difference(complete);
    for (const path of complete) {
      this.#files++;
      this.#bytes += expected?.get(path)?.sizeBytes ?? 0;
    }
  }

  get files(): number {
    return this.#files;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** @throws IntegrityError  the same file came before */
  add(path: string, sizeBytes: number): void {
    if (this.#missing && !this.#missing.delete(path)) throw new IntegrityError(`"${path}" is in the backup twice`);
    this.#files++;
    this.#bytes += sizeBytes;
  }

  /** @throws IntegrityError  files are missing */
  checkComplete(backup: string): void {
    const missing = [...(this.#missing ?? [])];
    if (missing.length === 0) return;
    const shown = missing
      .slice(0, 5)
      .map((path) => `"${path}"`)
      .join(", ");
    throw new IntegrityError(`backup "${backup}" is incomplete`, {
      detail: `${missing.length} files of its manifest are in none of its parts: ${shown}${missing.length > 5 ? " …" : ""}.`,
      hint: "What was restored cannot be started. Empty the directory and restore another backup.",
    });
  }
}
