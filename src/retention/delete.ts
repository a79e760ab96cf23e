/**
 * Carries a plan out: sentinels first, so that nothing is listed that cannot be restored; then contents; then WAL.
 *
 * An interrupted run leaves contents without a sentinel, and WAL. Running it again deletes the backups that are still listed; the
 * rest is for `delete garbage`: a retention by which no backup goes deletes no WAL, and such contents look like a running backup.
 */
import { isStored, type ObjectStore, type UnfinishedUpload } from "../storage/object-store.ts";
import type { Log } from "../system/log.ts";
import { keysOfBackup, type Leftovers, type UnfinishedBackup } from "./inventory.ts";
import { type Inventory, planGarbage, type RetentionPlan } from "./plan.ts";

export interface DeleteContext {
  readonly store: ObjectStore;
  readonly log: Log;
}

/** @throws StorageError  some objects are still there; the message names them */
export async function carryOut(plan: RetentionPlan, { store, log }: DeleteContext): Promise<void> {
  const contents: (readonly string[])[] = [];
  for (const { name } of plan.removeBackups) {
    const [sentinel, ...rest] = await keysOfBackup(store, name);
    if (sentinel !== undefined) await store.delete([sentinel]);
    contents.push(rest);
    log.info(`deleted the sentinel of backup "${name}": it is not listed any more`);
  }
  for (const keys of contents) await store.delete(keys);
  await store.delete(plan.removeWal.map(({ key }) => key));
  if (plan.removeBackups.length > 0) log.info(`deleted ${plan.removeBackups.length} backups`);
  if (plan.removeWal.length > 0) log.info(`deleted ${plan.removeWal.length} objects of the WAL archive`);
}

/** Leftovers first, and then the WAL that nothing needs any more: not even a backup that was finished since its folder was found. */
export async function carryOutGarbage(
  inventory: Inventory,
  { backups, uploads }: Leftovers,
  context: DeleteContext,
): Promise<void> {
  const removed = await deleteLeftovers(backups, uploads, context);
  await carryOut(planGarbage(inventory, removed), context);
}

/**
 * Spares a backup that was finished since it was found: it was still running.
 *
 * @returns the names of those that were removed
 */
export async function deleteLeftovers(
  backups: readonly UnfinishedBackup[],
  uploads: readonly UnfinishedUpload[],
  { store, log }: DeleteContext,
): Promise<readonly string[]> {
  const removed: string[] = [];
  for (const upload of uploads) await store.abortUpload(upload);
  for (const { name } of backups) {
    const [sentinel, ...keys] = await keysOfBackup(store, name);
    // As late as can be.
    if (sentinel !== undefined && (await isStored(store, sentinel))) {
      log.info(`backup "${name}" has been finished meanwhile: it is kept`);
      continue;
    }
    await store.delete(keys);
    removed.push(name);
    log.info(`deleted what was left of the unfinished backup "${name}"`);
  }
  if (uploads.length > 0) log.info(`aborted ${uploads.length} unfinished uploads`);
  return removed;
}
