/** Whose the restored files are, and files and directories made for that account. */
import { chmod, chown, mkdir, stat, writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { DestinationError } from "../errors.ts";
import { destinationError, writeFileAtomically } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";

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

/**
 * The mode of a directory is set, which only the owner may; and a server starts on nothing that is another account's (checkDataDir
 * in miscinit.c).
 *
 * @throws DestinationError  it is another account's
 */
export async function refuseOfOthers(directory: string): Promise<void> {
  const account = process.geteuid?.();
  const owner = (await stat(directory).catch(() => undefined))?.uid;
  if (account === undefined || account === 0 || owner === undefined || owner === account) return;
  throw new DestinationError(`"${directory}" belongs to another account`, {
    detail: `Its owner is account ${owner}, and this one is ${account}. Only the owner can set its mode, and PostgreSQL does not start on another account's directory.`,
    hint: `Run "chown ${account} '${directory}'" as root, or this command as the account that is to run the server.`,
  });
}

/**
 * root restores for the owner of the directory. Where that is root itself, nobody can start a server on it.
 *
 * @param places  the target, and those of its tablespaces
 */
export async function warnOfRoot(places: readonly [string, ...string[]], log: Log): Promise<void> {
  const [target] = places;
  if (process.geteuid?.() !== 0 || (await ownerOf(target)) !== undefined) return;
  log.warning(`what is restored into "${target}" will belong to root`, {
    detail:
      "So does that directory, or the one that it is made in. PostgreSQL does not run as root, and does not start on another account's directory.",
    hint: `Before the server is started, run "chown -R postgres: ${places.map((place) => `'${place}'`).join(" ")}", with the account of the server.`,
  });
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
