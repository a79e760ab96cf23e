/** backup-mark: exempts a backup from retention, or takes that back. */
import { IntegrityError, NotFoundError, StorageError } from "../errors.ts";
import { readJsonObject } from "../repository/backup-catalog.ts";
import { backupKeys } from "../repository/keys.ts";
import { withPermanence } from "../repository/sentinel.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import type { Log } from "../system/log.ts";
import { selectBackup } from "./fetch.ts";

/**
 * Rewrites the backup's metadata.json, the only object that is ever replaced.
 *
 * @throws NotFoundError  there is no such backup
 * @throws StorageError   the store kept failing; when that was the write, the mark may be there or not
 */
export async function markBackup(
  nameOrLatest: string,
  permanence: "permanent" | "impermanent",
  { store, log }: { readonly store: ObjectStore; readonly log: Log },
): Promise<void> {
  const backup = await selectBackup(store, nameOrLatest);
  const { name } = backup;
  if (backup.isPermanent === (permanence === "permanent")) {
    log.info(`backup "${name}" is ${permanence} already`);
    return;
  }
  const key = backupKeys(name).metadata;
  try {
    const metadata = await readJsonObject(store, key);
    const marked = withPermanence(metadata, store.urlOf(key), permanence === "permanent");
    await store.replace(key, marked).catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
      // Lost with the answer: which of the two it is, only the store knows.
      throw new StorageError(error.message, {
        detail: `${error.detail ?? ""} Backup "${name}" may be ${permanence} already, or as it was.`.trimStart(),
        hint: `${error.hint ?? ""} Then run the same command again.`.trimStart(),
        cause: error,
      });
    });
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    throw new IntegrityError(`backup "${name}" has no metadata to mark`, {
      detail: `${store.urlOf(key)} is missing.`,
      cause: error,
    });
  }
  log.info(`backup "${name}" is ${permanence} from now on`);
}
