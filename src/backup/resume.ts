/**
 * What an interrupted restore left in its target: which files are what the manifest says, and which parts need not be read
 * again. A file counts only after its size, time and SHA-256 were compared; time and mode are set last, so a file without
 * them is not complete.
 */
import { type FileHandle, lstat, open, readdir, readlink, rename, rm, stat } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { DestinationError, systemCodeOf, UsageError } from "../errors.ts";
import { AUTO_CONF } from "../postgres/auto-conf.ts";
import { BACKUP_MANIFEST } from "../postgres/backup-manifest.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
import { forEachAtOnce } from "../system/pool.ts";
import type { Progress } from "../system/progress.ts";
import { TEMPORARY_NAME } from "../system/temporary-name.ts";
import type { PartOfBackup } from "./contents.ts";
import { type InterruptedRestore, MARKER_DIRECTORY, type UnpackedPart } from "./restore-marker.ts";
import type { TargetPlan } from "./target.ts";
import { type ExpectedFile, type ExpectedFiles, PG_CONTROL_UNTIL_COMPLETE, pathInside } from "./unpack.ts";

/** What is there already. */
export interface Found {
  /** Files that need not be restored again, by path relative to the data directory. */
  readonly complete: ReadonlySet<string>;
  /** Absolute paths of files to be removed before anything is restored. */
  readonly leftOver: readonly string[];
  /** What removing them gives back, by path relative to the data directory. */
  readonly leftOverBytes: ReadonlyMap<string, number>;
}

export const NOTHING_FOUND: Found = { complete: new Set(), leftOver: [], leftOverBytes: new Map() };

const FILES_AT_ONCE = 4;
const READ_BYTES = 2 ** 20;

/** Made by a restore itself at its end, and made anew. */
const MADE_BY_RESTORE: ReadonlySet<string> = new Set([BACKUP_MANIFEST, AUTO_CONF, "recovery.signal", "standby.signal"]);

/**
 * @throws UsageError        the backup has no manifest to compare with
 * @throws DestinationError  the directory belongs to another backup
 */
export function checkSameBackup(target: string, { identity }: InterruptedRestore, backup: Backup): void {
  if (backup.walB === undefined) {
    throw new UsageError(`a restore of backup "${backup.name}" cannot be resumed`, {
      detail: "Another tool made it, and it has no checksums of its files.",
      hint: "Empty the directory, and restore from the beginning.",
    });
  }
  if (identity.backup === backup.name && identity.manifestSha256 === backup.walB.manifestSha256) return;
  throw new DestinationError(`"${target}" belongs to another backup`, {
    detail:
      identity.backup === backup.name
        ? `It holds an unfinished restore of another "${identity.backup}", from ${identity.repository}.`
        : `It holds an unfinished restore of "${identity.backup}", and not of "${backup.name}".`,
    hint: `Name "${identity.backup}" to go on with it, or restore into an empty directory.`,
  });
}

export interface ExamineContext {
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/**
 * Reads everything that is there, and changes nothing.
 *
 * @throws DestinationError  a file is there that the restore did not make, or a server has run on it
 */
export async function examineTarget(
  plan: TargetPlan,
  expected: ExpectedFiles,
  { progress, signal }: ExamineContext,
): Promise<Found> {
  const foreign: string[] = [];
  const toCompare: { readonly path: string; readonly place: string; readonly wanted: ExpectedFile }[] = [];
  const leftOver: string[] = [];
  const leftOverBytes = new Map<string, number>();
  for await (const { path, place, kind } of filesOf(plan)) {
    const wanted = expected.get(path === PG_CONTROL_UNTIL_COMPLETE ? PG_CONTROL_PATH : path);
    if (kind === "file" && wanted !== undefined) toCompare.push({ path, place, wanted });
    else if (kind === "file" && (MADE_BY_RESTORE.has(path) || path.startsWith(TEMPORARY_NAME))) leftOver.push(place);
    else foreign.push(path);
  }
  if (foreign.length > 0) throw foreignFiles(plan.target, foreign);

  const complete = new Set<string>();
  progress.expect(toCompare.reduce((sum, { wanted }) => sum + wanted.sizeBytes, 0));
  await forEachAtOnce(FILES_AT_ONCE, toCompare, async ({ path, place, wanted }, othersFailed) => {
    const same = await isComplete(place, wanted, { progress, signal: AbortSignal.any([signal, othersFailed]) });
    if (path === PG_CONTROL_PATH && !same) throw serverHasRun(plan.target);
    if (same) {
      complete.add(path === PG_CONTROL_UNTIL_COMPLETE ? PG_CONTROL_PATH : path);
    } else {
      leftOver.push(place);
      leftOverBytes.set(path, (await stat(place)).size);
    }
  });
  return { complete, leftOver, leftOverBytes };
}

interface FoundFile {
  /** Relative to the data directory. */
  readonly path: string;
  readonly place: string;
  readonly kind: "file" | "other";
}

/** Below the target and its tablespaces, each once. */
async function* filesOf({ target, tablespaces }: TargetPlan): AsyncGenerator<FoundFile> {
  const linked = new Map(tablespaces.map(({ oid, place }) => [`pg_tblspc/${oid}`, resolve(place)]));
  const places = new Set(linked.values());
  const seen = new Set<string>();
  yield* filesBelow("", target);
  // It may have been interrupted before it made the link.
  for (const [path, place] of linked) if (!seen.has(path)) yield* filesBelow(path, place);

  async function* filesBelow(path: string, place: string): AsyncGenerator<FoundFile> {
    for (const entry of await entriesOf(place)) {
      const here = { path: path === "" ? entry.name : `${path}/${entry.name}`, place: join(place, entry.name) };
      if (path === "" && entry.name === MARKER_DIRECTORY) continue;
      if (entry.name === "lost+found") continue;
      const linkedTo = linked.get(here.path);
      if (entry.isSymbolicLink() && linkedTo !== undefined) {
        seen.add(here.path);
        const leadsTo = resolve(place, await readlink(here.place));
        if (leadsTo === linkedTo) yield* filesBelow(here.path, linkedTo);
        else yield { ...here, kind: "other" };
      } else if (entry.isDirectory()) {
        // One of --blind-restore is reached by its link.
        if (!places.has(resolve(here.place))) yield* filesBelow(here.path, here.place);
      } else {
        yield { ...here, kind: entry.isFile() ? "file" : "other" };
      }
    }
  }
}

async function entriesOf(directory: string) {
  try {
    return await readdir(directory, { withFileTypes: true });
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return [];
    throw destinationError(`could not read "${directory}"`, cause);
  }
}

async function isComplete(
  place: string,
  { sizeBytes, sha256, modifiedAt }: ExpectedFile,
  { progress, signal }: ExamineContext,
): Promise<boolean> {
  try {
    const file = await open(place, "r");
    try {
      const found = await file.stat();
      if (found.size !== sizeBytes || Math.floor(found.mtimeMs / 1000) !== Math.floor(modifiedAt.getTime() / 1000)) {
        progress.advance(sizeBytes);
        return false;
      }
      return (await hashOf(file, { progress, signal })) === sha256;
    } finally {
      await file.close();
    }
  } catch (cause) {
    if (systemCodeOf(cause) === undefined) throw cause;
    throw destinationError(`could not read "${place}"`, cause);
  }
}

async function hashOf(file: FileHandle, { progress, signal }: ExamineContext): Promise<string> {
  const hash = new Bun.CryptoHasher("sha256");
  const buffer = new Uint8Array(READ_BYTES);
  for (;;) {
    signal.throwIfAborted();
    const { bytesRead } = await file.read(buffer, 0, buffer.byteLength, null);
    if (bytesRead === 0) return hash.digest("hex");
    hash.update(buffer.subarray(0, bytesRead));
    progress.advance(bytesRead);
  }
}

/** @returns the parts that must be read: those that were not unpacked, or of which a file or directory is not as it was */
export async function partsToRead(
  parts: readonly PartOfBackup[],
  { unpacked }: InterruptedRestore,
  { complete }: Found,
  target: string,
): Promise<readonly PartOfBackup[]> {
  const needed: PartOfBackup[] = [];
  for (const part of parts) {
    const before = unpacked.get(part.name);
    const isWhole =
      before !== undefined &&
      part.members?.map(pathInside).every((path) => complete.has(path) || path === TABLESPACE_MAP) &&
      (await hasDirectories(target, before));
    if (!isWhole) needed.push(part);
  }
  return needed;
}

async function hasDirectories(target: string, { directories }: UnpackedPart): Promise<boolean> {
  for (const path of directories) {
    const found = await lstat(join(target, path)).catch(() => undefined);
    // A tablespace is a directory in the part and a link here.
    if (!found?.isDirectory() && !found?.isSymbolicLink()) return false;
  }
  return true;
}

/**
 * Removes what is not complete: it is restored again, and nothing is ever written over. A pg_control that was in place when
 * the restore was interrupted loses its name first, until the end: without the signal file a server would start as a primary.
 */
export async function clearLeftOver(target: string, { leftOver }: Found): Promise<void> {
  try {
    await rename(join(target, PG_CONTROL_PATH), join(target, PG_CONTROL_UNTIL_COMPLETE)).catch(ignoreAbsence);
    // Also where it has lost its name before: that may not be on the disk yet.
    await syncDirectory(join(target, dirname(PG_CONTROL_PATH))).catch(ignoreAbsence);
    for (const place of leftOver) await rm(place, { force: true });
  } catch (cause) {
    throw destinationError(`could not clear "${target}"`, cause);
  }
}

function ignoreAbsence(cause: unknown): void {
  if (systemCodeOf(cause) !== "ENOENT") throw cause;
}

function foreignFiles(target: string, paths: readonly string[]): DestinationError {
  const shown = paths
    .toSorted()
    .slice(0, 3)
    .map((path) => `"${path}"`)
    .join(", ");
  return new DestinationError(`"${target}" has what no restore of this backup put there`, {
    detail: `It contains ${shown}${paths.length > 3 ? ` and ${paths.length - 3} more` : ""}.`,
    hint: "Move that away and run the command again, or restore into an empty directory.",
  });
}

function serverHasRun(target: string): DestinationError {
  return new DestinationError(`"${target}" was restored completely, and a server has run on it`, {
    detail: `Its "${PG_CONTROL_PATH}" is not that of the backup any more.`,
    hint: `Nothing is left to resume: remove "${join(target, MARKER_DIRECTORY)}".`,
  });
}
