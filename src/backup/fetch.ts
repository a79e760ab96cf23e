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
import { Failure, IntegrityError, NotFoundError, systemCodeOf } from "../errors.ts";
import { BACKUP_MANIFEST } from "../postgres/backup-manifest.ts";
import { PG_CONTROL_PATH } from "../postgres/pg-control.ts";
import { type Backup, findBackup, readCatalog } from "../repository/backup-catalog.ts";
import { partKey } from "../repository/keys.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { completeParts, type Manifest, readManifest } from "./contents.ts";
import { checkSpace, type SpaceUse } from "./space.ts";
import {
  checkWritable,
  finishDirectories,
  type PreparedTarget,
  planTarget,
  prepareTarget,
  syncTree,
  type TablespaceChoice,
  type TargetPlan,
} from "./target.ts";
import { placeFile, RestoredFiles, unpackPart } from "./unpack.ts";

export interface BackupFetchContext {
  readonly store: ObjectStore;
  readonly zstd: Zstd;
  readonly partsAtOnce: number;
  readonly tablespaces: TablespaceChoice;
  readonly log: Log;
  readonly signal: AbortSignal;
  /** What else must be in the directory before a server can start on it. Made durable with the rest. */
  readonly addBeforeStart?: (prepared: PreparedTarget) => Promise<void>;
}

/** What pg_control is called until everything else is in place. */
const PG_CONTROL_UNTIL_COMPLETE = `${PG_CONTROL_PATH}.walb-incomplete`;

/** What was checked, and will be fetched. */
export interface FetchPlan {
  readonly backup: Backup;
  readonly target: TargetPlan;
  readonly space: readonly SpaceUse[];
  readonly parts: readonly string[];
  readonly manifest: Manifest | undefined;
}

/**
 * @param name    of a backup, or "LATEST": the one that finished last
 * @param target  an empty directory, or one that does not exist yet
 * @throws NotFoundError     there is no such backup
 * @throws IntegrityError    the backup is incomplete or damaged
 * @throws DestinationError  the target is not empty, in use, or cannot be written
 */
export async function fetchBackup(name: string, target: string, context: BackupFetchContext): Promise<Backup> {
  const backup = await selectBackup(context.store, name);
  await carryOutFetch(await planFetch(backup, target, context), context);
  return backup;
}

/** Everything that can be found out before anything is written. Throws as fetchBackup() does. */
export async function planFetch(backup: Backup, target: string, context: BackupFetchContext): Promise<FetchPlan> {
  const { store, log } = context;
  const parts = await completeParts(store, backup);
  const manifest = await readManifest(backup, context);
  if (manifest === undefined) {
    log.warning(`backup "${backup.name}" has no checksums of its files`, {
      detail: "Another tool made it. What is restored can only be checked as far as its compression does.",
    });
  }

  const plan = await planTarget(target, backup.tablespaces, context.tablespaces);
  await checkWritable(plan);
  const space = await checkSpace(plan, { totalBytes: backup.uncompressedBytes, files: manifest?.files, log });
  return { backup, target: plan, space, parts, manifest };
}

/** @returns what was written */
export async function carryOutFetch(
  plan: FetchPlan,
  context: BackupFetchContext,
): Promise<Pick<RestoredFiles, "files" | "bytes">> {
  const { backup, parts, manifest } = plan;
  const { store, log, partsAtOnce, signal } = context;
  const { target } = plan.target;
  const prepared = await prepareTarget(plan.target);
  log.info(`restoring backup "${backup.name}" into "${target}"`);

  const expected = manifest?.files;
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
  await context.addBeforeStart?.(prepared);

  await syncTree(target, prepared.tablespaceDirectories, signal);
  await putControlInPlace(target, backup.name);
  log.info(`restored backup "${backup.name}": ${restored.files} files, ${(restored.bytes / 2 ** 20).toFixed(1)} MiB`);
  return restored;
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
