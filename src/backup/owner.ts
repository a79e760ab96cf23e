/** Whose the restored files are, and files and directories made for that account. */
import { chmod, chown, mkdir, stat, writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { destinationError, writeFileAtomically } from "../system/atomic-file.ts";

export interface Owner {
  readonly uid: number;
  readonly gid: number;
}

/** root restores for the owner of the directory, or of the one it is made in: a server does not run as root. */
export async function ownerOf(target: string): Promise<Owner | undefined> {
  if (process.geteuid?.() !== 0) return undefined;
  for (let directory = resolve(target); ; directory = resolve(directory, "..")) {
    const found = await stat(directory).catch(() => undefined);
    if (found) return found.uid === 0 ? undefined : { uid: found.uid, gid: found.gid };
    if (directory === "/") return undefined;
  }
}

/** @returns the directories that were not there, the innermost last; for nobody but the owner */
export async function makeDirectories(path: string, owner: Owner | undefined): Promise<readonly string[]> {
  const first = await mkdir(path, { recursive: true, mode: 0o700 });
  if (first === undefined) return [];
  const made = [path];
  for (let at = path; at !== first && at !== dirname(at); at = dirname(at)) made.unshift(dirname(at));
  if (owner) for (const directory of made) await chown(directory, owner.uid, owner.gid);
  return made;
}

/** @throws DestinationError  the file system refuses */
export async function writeOwned(
  path: string,
  content: string | Uint8Array,
  mode: number,
  owner: Owner | undefined,
): Promise<void> {
  try {
    if (content.length === 0) await writeFile(path, "", { mode });
    else await writeFileAtomically(path, Buffer.from(content), { mode, durability: "durable" });
    await chmod(path, mode);
    if (owner) await chown(path, owner.uid, owner.gid);
  } catch (cause) {
    throw destinationError(`could not write "${path}"`, cause);
  }
}
