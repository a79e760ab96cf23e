/** One thing that a base backup contains, and how it is looked up while others come and go. */
import type { BigIntStats } from "node:fs";
import { lstat, readdir } from "node:fs/promises";
import { join } from "node:path";
import { reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";

export type DataEntry = DataFile | DataFolder;

interface EntryFacts {
  /** Relative to the data directory, "base/1/1259"; of a tablespace's content "pg_tblspc/OID/…". */
  readonly path: string;
  /** Where it can be read now. */
  readonly absolutePath: string;
  /** Permission bits only. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeNs: bigint;
}

export interface DataFile extends EntryFacts {
  readonly kind: "file";
  /** When it was found: it may grow, shrink and vanish before it is read. */
  readonly sizeBytes: number;
}

export interface DataFolder extends EntryFacts {
  readonly kind: "directory";
}

/** Something in the file system that may become an entry. */
export interface Found {
  readonly path: string;
  readonly absolutePath: string;
  readonly stats: BigIntStats;
}

/** For lstat() and stat(): a number of milliseconds cannot hold the nanoseconds of a modification time. */
export const EXACT = { bigint: true } as const;

function factsOf({ path, absolutePath, stats }: Found): EntryFacts {
  const { uid, gid, mtimeNs } = stats;
  return { path, absolutePath, mode: Number(stats.mode & 0o7777n), uid: Number(uid), gid: Number(gid), mtimeNs };
}

export const fileEntry = (found: Found): DataFile => ({
  kind: "file",
  ...factsOf(found),
  sizeBytes: Number(found.stats.size),
});

export const folderEntry = (found: Found): DataFolder => ({ kind: "directory", ...factsOf(found) });

/**
 * Asks node:fs about a path; undefined when it is gone.
 *
 * @throws SourceMissingError  it is there and cannot be read
 */
export async function ifThere<Value>(path: string, ask: (path: string) => Promise<Value>): Promise<Value | undefined> {
  try {
    return await ask(path);
  } catch (cause) {
    const code = systemCodeOf(cause);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    const denied = code === "EACCES" || code === "EPERM";
    throw new SourceMissingError(`could not read "${path}"`, {
      detail: `${reasonOf(cause)}.`,
      hint: denied ? "Run wal-b as the account that owns the data directory, usually postgres." : undefined,
      cause,
    });
  }
}

/**
 * Looks at one name of a directory without following a link.
 *
 * @throws SourceMissingError  it cannot be read, or its name cannot be text
 */
export async function lookAt(
  directory: Pick<Found, "path" | "absolutePath">,
  name: string,
): Promise<Found | undefined> {
  const path = directory.path === "" ? name : `${directory.path}/${name}`;
  const absolutePath = join(directory.absolutePath, name);
  const stats = await ifThere(absolutePath, (asked) => lstat(asked, EXACT));
  if (stats) return { path, absolutePath, stats };
  // A name that is not UTF-8 arrives with this character in it, and then names nothing.
  if (name.includes("\uFFFD")) await refuseUndecodable(directory.absolutePath, name);
  return undefined;
}

async function refuseUndecodable(directory: string, name: string): Promise<void> {
  const names = await readdir(directory, { encoding: "buffer" });
  const found = names.find((bytes) => bytes.toString("utf8") === name && !bytes.equals(Buffer.from(name)));
  if (!found) return;
  throw new SourceMissingError(`a file in "${directory}" has a name that is not UTF-8`, {
    detail: `In Latin-1 it reads "${found.toString("latin1")}".`,
    hint: "Rename or remove it; PostgreSQL itself makes no such names.",
  });
}
