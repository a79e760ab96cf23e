/** A whole file under its name in one step: readers see the old content, or all of the new. */
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DestinationError, reasonOf, systemCodeOf } from "../errors.ts";
import { TEMPORARY_NAME } from "./temporary-name.ts";
import { writeFully } from "./write-fully.ts";

export interface AtomicFileOptions {
  /** Permission bits of the new file. */
  readonly mode: number;
  /** "durable" fsyncs the file before it gets its name, and the directory after. */
  readonly durability: "durable" | "left to PostgreSQL";
}

/**
 * Writes beside the destination and renames over it.
 *
 * @param content  whole, or in pieces; why it could not be had is passed on as it is thrown
 * @throws DestinationError  nothing is left behind, and what was under the name before is untouched
 */
export async function writeFileAtomically(
  destination: string,
  content: Uint8Array | AsyncIterable<Uint8Array>,
  { mode, durability }: AtomicFileOptions = { mode: 0o600, durability: "durable" },
): Promise<void> {
  await using file = new AtomicFile(dirname(destination), mode);
  const told = <Result>(work: Promise<Result>) =>
    work.catch((cause: unknown) => {
      throw destinationError(`could not write "${destination}"`, cause);
    });
  if (content instanceof Uint8Array) await told(file.write(content));
  else for await (const piece of content) await told(file.write(piece));
  await told(file.publish(destination, durability));
}

/** A file on its way to its name. There is none before the first write; disposing it before publish() removes it. */
export class AtomicFile implements AsyncDisposable {
  readonly #path: string;
  readonly #mode: number;
  #file: FileHandle | undefined;
  /** Under its temporary name. */
  #isThere = false;

  /** @param directory  on the file system of the destination */
  constructor(directory: string, mode: number) {
    this.#path = join(directory, TEMPORARY_NAME + crypto.randomUUID());
    this.#mode = mode;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await writeFully(await this.#opened(), bytes);
  }

  async publish(destination: string, durability: AtomicFileOptions["durability"]): Promise<void> {
    const file = await this.#opened();
    if (durability === "durable") await file.sync();
    await this.#close();
    await rename(this.#path, destination);
    this.#isThere = false;
    if (durability === "durable") await syncDirectory(dirname(destination));
  }

  /** What cannot be removed is less than the failure that it is removed for. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#isThere) return;
    await this.#close().catch(() => {});
    await rm(this.#path, { force: true }).catch(() => {});
  }

  async #opened(): Promise<FileHandle> {
    this.#file ??= await open(this.#path, "wx", this.#mode);
    this.#isThere = true;
    return this.#file;
  }

  async #close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close();
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

/** @throws DestinationError  naming the path */
export async function madeDurable<Result>(path: string, sync: () => Promise<Result>): Promise<Result> {
  try {
    return await sync();
  } catch (cause) {
    throw destinationError(`could not make "${path}" durable`, cause);
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
