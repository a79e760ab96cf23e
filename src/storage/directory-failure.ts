/** What the system says of a directory store's files → a failure that says what to do. */
import { AccessError, Failure, reasonOf, StorageError, systemCodeOf } from "../errors.ts";

/** @param action  "could not …", for the message */
export function failureOf(action: string, error: unknown): unknown {
  const code = systemCodeOf(error);
  if (error instanceof Failure || code === undefined || !/^E[A-Z0-9]+$/.test(code)) return error;
  const detail = `${reasonOf(error)}.`;
  switch (code) {
    case "EDQUOT":
      return new StorageError(action, {
        detail,
        hint: "The quota of the account that runs wal-b is used up there: raise it, or delete old backups.",
        cause: error,
      });
    case "ENOSPC":
      return new StorageError(action, {
        detail,
        hint: "The disk of the repository is full: free space, or delete old backups.",
        cause: error,
      });
    case "EROFS":
      return new StorageError(action, { detail, hint: "The repository is mounted read-only.", cause: error });
    case "EACCES":
    case "EPERM":
      return new AccessError(action, {
        detail,
        hint: "Check the owner and the mode of the repository's directories.",
        cause: error,
      });
    default:
      return new StorageError(action, { detail, cause: error });
  }
}

/** Of a file; whether the whole repository is gone must be asked too. */
export function isAbsence(error: unknown): boolean {
  const code = systemCodeOf(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

export function ignoreAbsence(error: unknown): undefined {
  if (!isAbsence(error)) throw error;
  return undefined;
}
