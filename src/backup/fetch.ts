/**
 * backup-fetch: a base backup → a data directory that recovery can start from.
 *
 * choose → check the target and its space → parts, several at once, each file against the backup manifest → everything is
 * there → backup_manifest, for pg_verifybackup → fsync → pg_control gets its name. Until that last step a server refuses to
 * start on the directory.
 */
import { rename } from "node:fs/promises";
import { join } from "node:path";
import type { Zstd } from "../codec/zstd.ts";
import { DestinationError, IntegrityError, NotFoundError, systemCodeOf } from "../errors.ts";
import { BACKUP_MANIFEST } from "../postgres/backup-manifest.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import {
  type Backup,
  checkOneCluster,
  findBackup,
  readCatalog,
  type UnreadableBackup,
  whyUnreadable,
} from "../repository/backup-catalog.ts";
import { partKey } from "../repository/keys.ts";
import { damagedPagesOf } from "../repository/sentinel.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import type { StartProgress } from "../system/progress.ts";
import { formatBytes } from "../system/quantity.ts";
import { completeParts, type Manifest, type PartOfBackup, readManifest } from "./contents.ts";
import { warnOfRoot } from "./owner.ts";
import { type InterruptedRestore, namesThisProcess, RestoreMarker } from "./restore-marker.ts";
import { checkSameBackup, clearLeftOver, examineTarget, type Found, NOTHING_FOUND, partsToRead } from "./resume.ts";
import { checkSpace, type SpaceUse } from "./space.ts";
import {
  checkStillEmpty,
  checkWritable,
  finishDirectories,
  type MadeTarget,
  makeTarget,
  type PreparedTarget,
  planResumedTarget,
  planTarget,
  prepareTarget,
  syncTree,
  type TablespaceChoice,
  type TargetPlan,
} from "./target.ts";
import { PG_CONTROL_UNTIL_COMPLETE, placeFile, RestoredFiles, unpackPart } from "./unpack.ts";

export interface BackupFetchContext {
  readonly store: ObjectStore;
  readonly zstd: Zstd;
  readonly partsAtOnce: number;
  readonly tablespaces: TablespaceChoice;
  /** A restore to go on with; undefined: the target must be empty. */
  readonly interrupted: InterruptedRestore | undefined;
  readonly log: Log;
  readonly startProgress: StartProgress;
  readonly now: () => Date;
  readonly signal: AbortSignal;
  /** What else must be in the directory before a server can start on it. Made durable with the rest. */
  readonly addBeforeStart?: (prepared: PreparedTarget) => Promise<void>;
}

/** What was checked, and will be fetched. */
export interface FetchPlan {
  readonly backup: Backup;
  readonly target: TargetPlan;
  readonly space: readonly SpaceUse[];
  /** Those that must be read. */
  readonly parts: readonly PartOfBackup[];
  readonly manifest: Manifest | undefined;
  readonly found: Found;
}

/**
 * @param name    of a backup, or "LATEST": the one that finished last
 * @param target  an empty directory, or one that does not exist yet
 * @throws NotFoundError     there is no such backup
 * @throws IntegrityError    the backup is incomplete or damaged
 * @throws DestinationError  the target is not empty, in use, or cannot be written
 */
export async function fetchBackup(name: string, target: string, context: BackupFetchContext): Promise<Backup> {
  const backup = await chooseBackup(name, context);
  const plan = await planFetch(backup, target, context);
  await tellingOfResume(target, context.log, () => carryOutFetch(plan, context));
  return backup;
}

/** LATEST means the backup that was begun with, also when there is a newer one by now. */
async function chooseBackup(name: string, { store, interrupted, log }: BackupFetchContext): Promise<Backup> {
  const begun = interrupted?.identity.backup;
  if (begun === undefined || name !== "LATEST") return await selectBackup(store, name);
  const { backups } = await readCatalog(store);
  const newest = backups.at(-1)?.name;
  if (newest !== undefined && newest !== begun) {
    log.warning(`there is a newer backup than "${begun}"`, {
      detail: `It is "${newest}". The restore that was interrupted goes on with the one that it began with.`,
      hint: "To restore the newer one, begin in an empty directory.",
    });
  }
  return await findBackup(store, begun);
}

/** Everything that can be found out before anything is written. Throws as fetchBackup() does. */
export async function planFetch(backup: Backup, target: string, context: BackupFetchContext): Promise<FetchPlan> {
  const { store, tablespaces, interrupted, log } = context;
  if (interrupted) checkSameBackup(target, interrupted, backup);
  const parts = await completeParts(store, backup);
  const manifest = await readManifest(backup, context);
  if (manifest === undefined) {
    log.warning(`backup "${backup.name}" has no checksums of its files`, {
      detail: "Another tool made it. What is restored can only be checked as far as its compression does.",
    });
  }

  const damagedPages = damagedPagesOf(backup) ?? 0;
  if (damagedPages > 0) {
    log.warning(`backup "${backup.name}" holds pages that were damaged when it was taken: ${damagedPages}`, {
      detail: "They are restored as they are, and the server will refuse to read them.",
      hint: 'Column damaged_pages of "wal-b backup-list --detail" tells which backups hold none.',
    });
  }

  const plan = interrupted
    ? planResumedTarget(target, backup.tablespaces, { choice: tablespaces, identity: interrupted.identity })
    : await planTarget(target, backup.tablespaces, tablespaces);
  await checkWritable(plan);
  await warnOfRoot([plan.target, ...plan.tablespaces.map(({ place }) => place)], log);
  const found = interrupted && manifest ? await examine(plan, manifest, context) : NOTHING_FOUND;
  const space = await checkSpace(plan, { totalBytes: backup.uncompressedBytes, files: manifest?.files, found, log });
  const needed = interrupted ? await partsToRead(parts, interrupted, found, target) : parts;
  return { backup, target: plan, space, parts: needed, manifest, found };
}

async function examine(plan: TargetPlan, { files }: Manifest, context: BackupFetchContext): Promise<Found> {
  using progress = context.startProgress("compared");
  return await examineTarget(plan, files, { progress, signal: context.signal });
}

/** @returns what was written */
export async function carryOutFetch(
  plan: FetchPlan,
  context: BackupFetchContext,
): Promise<Pick<RestoredFiles, "files" | "bytes">> {
  const made = await makeTarget(plan.target);
  await using marker = await markTarget(plan, made, context);
  const restored = await restoreBehind(marker, made, plan, context).catch(async (error: unknown) => {
    // Of what is gone or in the way, that the directory is not this process's any more is the reason.
    if (error instanceof DestinationError) await marker.checkOurs();
    throw error;
  });
  await marker.remove();
  context.log.info(`restored backup "${plan.backup.name}": ${restored.files} files, ${formatBytes(restored.bytes)}`);
  return restored;
}

/** Everything but the marker. */
async function restoreBehind(
  marker: RestoreMarker,
  made: MadeTarget,
  plan: FetchPlan,
  context: BackupFetchContext,
): Promise<RestoredFiles> {
  const { backup, found, manifest } = plan;
  const { interrupted, log, signal } = context;
  const { target } = plan.target;
  // Only behind the marker, which is this process's now: what was found is true only then.
  if (interrupted) await clearLeftOver(target, found);
  const prepared = await prepareTarget(plan.target, made);
  await marker.madeDirectories(prepared.madeDirectories);
  log.info(`restoring backup "${backup.name}" into "${target}"${interrupted ? `, where ${describeFound(plan)}` : ""}`);

  const restored = new RestoredFiles(manifest?.files, found.complete);
  await unpackParts(plan, { prepared, restored, marker }, context);
  restored.checkComplete(backup.name);
  if (manifest) await placeFile(BACKUP_MANIFEST, manifest.text, prepared);
  const madeDirectories = [...(interrupted?.madeDirectories ?? []), ...prepared.madeDirectories];
  const finished = { ...prepared, madeDirectories };
  await finishDirectories(finished);
  await context.addBeforeStart?.(prepared);

  await syncTree(finished, signal);
  await marker.checkOurs();
  await putControlInPlace(target, backup.name);
  return restored;
}

/** Has the user told, when it fails, that nothing of it is lost. */
export async function tellingOfResume<Result>(
  target: string,
  log: Log,
  restore: () => Promise<Result>,
): Promise<Result> {
  try {
    return await restore();
  } catch (error) {
    // What is damaged stays so.
    if (!(error instanceof IntegrityError) && (await namesThisProcess(target)))
      log.info(`"${target}" keeps what was restored; --resume goes on from there`);
    throw error;
  }
}

async function markTarget(
  { backup, target: plan }: FetchPlan,
  { owner }: MadeTarget,
  context: BackupFetchContext,
): Promise<RestoreMarker> {
  const { store, interrupted, now } = context;
  if (interrupted) return await RestoreMarker.resume(plan.target);
  const identity = {
    backup: backup.name,
    manifestSha256: backup.walB?.manifestSha256,
    repository: store.location,
    tablespaces: plan.tablespaces.map(({ oid, place }) => ({ oid, place })),
  };
  const marker = await RestoreMarker.begin(plan.target, identity, { now: now(), owner });
  try {
    await checkStillEmpty(plan.target);
    return marker;
  } catch (error) {
    await marker.remove();
    await marker[Symbol.asyncDispose]();
    throw error;
  }
}

const describeFound = ({ found, manifest, parts }: FetchPlan) =>
  `${found.complete.size} of ${manifest?.files.size} files are complete and ${parts.length} parts are to be read`;

interface Unpacking {
  readonly prepared: PreparedTarget;
  readonly restored: RestoredFiles;
  readonly marker: RestoreMarker;
}

async function unpackParts(
  { backup, parts, manifest, found }: FetchPlan,
  { prepared, restored, marker }: Unpacking,
  context: BackupFetchContext,
): Promise<void> {
  const { store, partsAtOnce, signal } = context;
  using progress = context.startProgress("restored");
  progress.expect(backup.uncompressedBytes - restored.bytes);
  const expected = manifest?.files;
  const { target, owner } = prepared;
  const unpack = { ...context, target, owner, restored, expected, complete: found.complete, progress };
  await forEachAtOnce(partsAtOnce, parts, async ({ name: part }, othersFailed) => {
    const key = partKey(backup.name, part);
    try {
      const stopped = AbortSignal.any([signal, othersFailed]);
      const directories = await unpackPart((await store.open(key)).chunks, { ...unpack, signal: stopped });
      await marker.unpacked({ part, directories });
    } catch (error) {
      throw partFailure(store.urlOf(key), error);
    }
  });
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

export class NewestUnreadableError extends IntegrityError {
  readonly backup: UnreadableBackup;

  /** @param readable  the newest that can be read, if there is one */
  constructor(backup: UnreadableBackup, readable: Backup | undefined) {
    const { detail, hint } = whyUnreadable(backup);
    const other = readable && `The newest one that can be read is "${readable.name}": name it to restore it.`;
    const hints = [hint, other].filter(Boolean).join(" ");
    super(`the newest backup, "${backup.name}", cannot be read`, {
      detail,
      hint: hints || undefined,
      cause: backup.failure,
    });
    this.backup = backup;
  }
}

/**
 * @throws UsageError             LATEST of more than one cluster
 * @throws NewestUnreadableError  for LATEST
 */
export async function selectBackup(store: ObjectStore, name: string): Promise<Backup> {
  if (name !== "LATEST") return findBackup(store, name);
  const { backups, unreadable } = await readCatalog(store);
  const newest = backups.at(-1);
  const newestUnreadable = unreadable.toSorted((a, b) => a.lastModified.getTime() - b.lastModified.getTime()).at(-1);
  if (newestUnreadable && (newest === undefined || newestUnreadable.lastModified > newest.lastModified)) {
    // Restoring an older one without a word could lose what the user expects to get.
    throw new NewestUnreadableError(newestUnreadable, newest);
  }
  if (newest === undefined) throw new NotFoundError("there is no backup", { detail: `Looked in ${store.location}.` });
  checkOneCluster(backups, { location: store.location, hint: "Name a backup instead of LATEST." });
  return newest;
}

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
