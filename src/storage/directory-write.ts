/**
 * Writing a file of a directory store: under a temporary name, synced, then given its name without overwriting another,
 * and durable when that is told.
 */
import { constants } from "node:fs";
import { type FileHandle, link, lstat, mkdir, open, rm, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { reasonOf, StorageError, systemCodeOf } from "../errors.ts";
import { writeFully } from "../system/write-fully.ts";
import { baseName } from "./object-key.ts";
import type { ObjectKey, ObjectUpload } from "./object-store.ts";

/** Names of files that are being written. Lists leave them out, and nothing else of ours begins with a dot. */
export const TEMPORARY = /^\.wal-b\.[0-9a-f-]{36}\.(.+)$/;

/** Without hard links (some network file systems) the same promise cannot be kept. */
const NO_LINKS = new Set(["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK"]);

/** What writing a file needs of its store. */
export interface Writing {
  readonly root: string;
  readonly key: ObjectKey;
  readonly signal: AbortSignal;
  named<Result>(work: () => Promise<Result>): Promise<Result>;
  checkRoot(): Promise<void>;
}

export class DirectoryUpload implements ObjectUpload {
  readonly #file: TemporaryFile;

  constructor(file: TemporaryFile) {
    this.#file = file;
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#file.write(bytes);
  }

  async complete(): Promise<"created" | "exists"> {
    let outcome: "created" | "exists" = "created";
    await this.#file.publish(async (from, to) => {
      try {
        await link(from, to);
      } catch (error) {
        if (systemCodeOf(error) === "EEXIST") outcome = (await isSameFile(from, to)) ? "created" : "exists";
        else if (NO_LINKS.has(systemCodeOf(error) ?? "")) throw noLinks(to, error);
        else throw error;
      }
    });
    return outcome;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file[Symbol.asyncDispose]();
  }
}

/** open(2), O_EXCL: on NFS a link that was made, and whose answer got lost, is asked for again and finds itself there. */
async function isSameFile(one: string, other: string): Promise<boolean> {
  const identify = (path: string) => lstat(path, { bigint: true }).catch(() => undefined);
  const [a, b] = await Promise.all([identify(one), identify(other)]);
  return a !== undefined && a.dev === b?.dev && a.ino === b.ino;
}

/** A file on its way to a key. Disposing it before publish() removes it. */
export class TemporaryFile implements AsyncDisposable {
  readonly #to: Writing;
  readonly #path: string;
  readonly #finalPath: string;
  #file: FileHandle | undefined;
  #state: "open" | "closed" = "open";

  constructor(to: Writing) {
    const finalPath = join(to.root, to.key);
    this.#to = to;
    this.#finalPath = finalPath;
    this.#path = join(dirname(finalPath), `.wal-b.${crypto.randomUUID()}.${baseName(to.key)}`);
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#to.named(async () => {
      await writeFully(await this.#opened(), bytes);
    });
  }

  /** @param give  gives the complete and durable file its name */
  async publish(give: (from: string, to: string) => Promise<void>): Promise<void> {
    await this.#to.named(async () => {
      const file = await this.#opened();
      await file.sync();
      await file.close();
      this.#file = undefined;
      this.#to.signal.throwIfAborted();
      await give(this.#path, this.#finalPath);
      // The object is there, whatever becomes of its other name: listUnfinishedUploads() finds that, and so does "delete garbage".
      await unlink(this.#path).catch(() => {});
      this.#state = "closed";
      // A name that another writer gave may not be durable yet either.
      await syncDirectory(dirname(this.#finalPath));
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === "closed") return;
    this.#state = "closed";
    await this.#file?.close().catch(() => {});
    // What cannot be removed is found by listUnfinishedUploads().
    await rm(this.#path, { force: true }).catch(() => {});
  }

  async #opened(): Promise<FileHandle> {
    if (this.#state === "closed") throw new Error("the upload is closed");
    if (this.#file) return this.#file;
    await this.#to.checkRoot();
    await makeDirectory(this.#to.root, dirname(this.#to.key));
    this.#file = await open(this.#path, "wx", 0o666);
    return this.#file;
  }
}

/** Creates what is missing below the root, never the root, and makes each new name durable. */
async function makeDirectory(root: string, below: string): Promise<void> {
  let path = root;
  for (const step of below === "." ? [] : below.split("/")) {
    const parent = path;
    path = join(path, step);
    try {
      await mkdir(path);
    } catch (error) {
      if (systemCodeOf(error) !== "EEXIST") throw error;
      continue;
    }
    await syncDirectory(parent);
  }
}

export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await directory.sync();
  } catch (error) {
    // Some network file systems know no fsync of a directory, and are durable by their own rules.
    if (systemCodeOf(error) !== "EINVAL" && systemCodeOf(error) !== "ENOTSUP") throw error;
  } finally {
    await directory.close();
  }
}

function noLinks(path: string, cause: unknown): StorageError {
  return new StorageError(`could not write "${path}"`, {
    detail: `${reasonOf(cause)}. The file system has no hard links, which give a file its name without overwriting another.`,
    hint: "Put the repository on a file system with hard links, or use S3.",
    cause,
  });
}
