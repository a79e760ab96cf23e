/**
 * Whether a repository is the one that is meant, and not a mount point at which nothing is mounted, or a prefix that is misspelt.
 *
 * In either every file is missing. What is archived at a mount point is lost from sight once the file system is mounted again.
 */
import { lstat, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { reasonOf, StorageError, systemCodeOf } from "../errors.ts";
import { BACKUPS, WAL } from "../repository/keys.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import type { HostMemory } from "../system/host-memory.ts";
import type { Prefix } from "./prefix.ts";

/**
 * A repository that this host has seen in use on one file system does not begin anew on another.
 *
 * @param location  of the repository, for the message
 * @throws StorageError  it is empty, on another file system than before
 */
export async function checkStillMounted(directory: string, location: string, memory: HostMemory): Promise<void> {
  const question = `the file system of ${location}`;
  const remembered = await memory.recall(question);
  const device = String((await found(directory))?.dev);
  if ((await found(join(directory, WAL))) ?? (await found(join(directory, BACKUPS)))) {
    if (remembered !== device) await memory.remember(question, device);
  } else if (remembered !== undefined && remembered !== device) {
    throw new StorageError(`the repository ${location} is empty, and was in use on another file system before`, {
      detail: "The file system that it was on does not seem to be mounted.",
      hint: `Mount it. To begin a new repository there all the same, make the directory "${join(directory, WAL)}".`,
    });
  }
}

/**
 * Looks for one object in the two folders that are ours. What else is there is nobody's business: at the root of a file
 * system it is a lost+found, which only root may read.
 *
 * @param prefix  of the store
 * @throws StorageError  so that absence is not taken for proved: nothing that wal-b or WAL-G wrote is there, or it is behind a
 *                       link, which may lead to where nothing is mounted; or the store did not answer
 * @throws AccessError   the store refused to list
 */
export async function checkNotEmpty(store: ObjectStore, prefix: Prefix): Promise<void> {
  if (prefix.kind === "directory")
    for (const folder of [WAL, BACKUPS]) await checkIsNoLink(resolve(prefix.directory, folder));
  // Backups first: they are few where segments are many, and a directory's list is sorted before it begins.
  for (const folder of [BACKUPS, WAL]) for await (const _ of store.list(folder)) return;
  const mounted = prefix.kind === "directory" ? "the file system is mounted, and that " : "";
  throw new StorageError(`the repository ${store.location} is empty`, {
    detail: "That proves nothing about the file that was asked for.",
    hint: `Check that ${mounted}the prefix is the one that the cluster archived to.`,
  });
}

async function checkIsNoLink(path: string): Promise<void> {
  if (!(await found(path, lstat))?.isSymbolicLink()) return;
  throw new StorageError(`could not look into "${path}"`, {
    detail: "It is a symbolic link.",
    hint: "Use a bind mount in its place, or make the link the repository itself.",
  });
}

async function found(path: string, look: typeof stat | typeof lstat = stat) {
  try {
    return await look(path);
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return undefined;
    throw new StorageError(`could not look at "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}
