/** A whole file under its name in one step: readers see the old content, or all of the new. */
import { open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DestinationError, reasonOf, systemCodeOf } from "../errors.ts";

export interface AtomicFileOptions {
  /** Permission bits of the new file. */
  readonly mode: number;
  /** "durable" fsyncs the file before it gets its name, and the directory after. */
  readonly durability: "durable" | "left to PostgreSQL";
}

/** What a killed process leaves. */
export const TEMPORARY_FILE = /^xlogtemp\.walb\./;

/**
 * Writes beside the destination and renames over it.
 *
 * The temporary name begins as PostgreSQL's own temporary files in pg_wal do: a server that starts removes what a killed
 * command left there (xlog.c, RemoveTempXlogFiles).
 *
 * @throws DestinationError  nothing is left behind, and what was under the name before is untouched
 */
export async function writeFileAtomically(
  destination: string,
  content: Uint8Array,
  { mode, durability }: AtomicFileOptions = { mode: 0o600, durability: "durable" },
): Promise<void> {
  const directory = dirname(destination);
  const temporary = join(directory, `xlogtemp.walb.${crypto.randomUUID()}`);
  try {
    const file = await open(temporary, "wx", mode);
    try {
      await file.writeFile(content);
      if (durability === "durable") await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, destination);
    if (durability === "durable") await syncDirectory(directory);
  } catch (cause) {
    // The write's own failure is what the user needs to know.
    await rm(temporary, { force: true }).catch(() => {});
    throw destinationError(`could not write "${destination}"`, cause);
  }
}

/** Makes renames and new files in a directory durable. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, "r");
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** A file system's refusal in the user's words. */
export function destinationError(message: string, cause: unknown): DestinationError {
  const hint = HINTS[systemCodeOf(cause) ?? ""];
  return new DestinationError(message, { detail: `${reasonOf(cause)}.`, ...(hint && { hint }), cause });
}

const HINTS: Readonly<Record<string, string>> = {
  ENOSPC: "The file system is full: free some space, or use another one, and run the command again.",
  EDQUOT: "The disk quota of this account is used up: raise it, and run the command again.",
  EROFS: "The file system is mounted read-only.",
  EACCES: "Run the command as the account that owns the directory, usually postgres.",
  EPERM: "Run the command as the account that owns the directory, usually postgres.",
  ENOENT: "Create the directory first.",
};
