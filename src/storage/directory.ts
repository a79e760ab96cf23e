/**
 * An ObjectStore in a directory: for trying wal-b out, and for network mounts.
 *
 * An object is a file that is written under a temporary name in the directory of its key, synced, given its name by
 * link(2), which fails if the name is taken, and made durable by syncing the directory. Files keep no metadata, because a
 * file beside a WAL segment would look like one to WAL-G. Modes are left to the umask, so that whoever runs wal-b decides
 * whether another user may read the archive on a shared mount. Memory: what the caller hands over, and one buffer for each stream.
 */
import { constants, type Dirent } from "node:fs";
import { type FileHandle, lstat, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { type Failure, IntegrityError, NotFoundError, reasonOf, StorageError, UsageError } from "../errors.ts";
import { failureOf, ignoreAbsence, isAbsence } from "./directory-failure.ts";
import { DirectoryUpload, syncDirectory, TEMPORARY, TemporaryFile, type Writing } from "./directory-write.ts";
import { baseName, checkKey, compareKeys } from "./object-key.ts";
import type {
  ObjectEntry,
  ObjectKey,
  ObjectMetadata,
  ObjectStore,
  ObjectUpload,
  OpenedObject,
  StoredObject,
  UnfinishedUpload,
} from "./object-store.ts";

export interface DirectoryStoreOptions {
  /** Absolute, and there already. */
  readonly directory: string;
  /** Ends what is under way with its reason. */
  readonly signal: AbortSignal;
}

const READ_BYTES = 1024 * 1024;

interface OpenFile extends AsyncDisposable {
  readonly file: FileHandle;
  readonly sizeBytes: number;
  readonly lastModified: Date;
}

/**
 * Opens the store.
 *
 * @throws UsageError  the directory is not there: a mistyped name or an unmounted disk must not become a new repository
 */
export async function openDirectoryStore({ directory, signal }: DirectoryStoreOptions): Promise<ObjectStore> {
  const store = new DirectoryStore(directory, signal);
  await store.checkRoot(
    (detail) =>
      new UsageError(`cannot use directory "${directory}" as a repository`, {
        detail,
        hint: "Mount it, correct the prefix, or create the directory; it is never created by itself.",
      }),
  );
  return store;
}

class DirectoryStore implements ObjectStore {
  readonly location: string;
  readonly metadata = "dropped";
  readonly #root: string;
  readonly #signal: AbortSignal;
  /** What the root was when it was first looked at: a file system that is unmounted uncovers another directory. */
  #identity: string | undefined;

  constructor(directory: string, signal: AbortSignal, identity?: string) {
    this.#root = directory;
    this.#signal = signal;
    this.#identity = identity;
    this.location = pathToFileURL(directory).href.replace(/\/$/, "");
  }

  urlOf(key: ObjectKey): string {
    return `${this.location}/${key}`;
  }

  async putIfAbsent(key: ObjectKey, body: Uint8Array, _metadata?: ObjectMetadata): Promise<"created" | "exists"> {
    await using upload = this.upload(key);
    await upload.write(body);
    return await upload.complete();
  }

  async replace(key: ObjectKey, body: Uint8Array, _metadata?: ObjectMetadata): Promise<void> {
    checkKey(key);
    await using file = new TemporaryFile(this.#writing(key));
    await file.write(body);
    await file.publish((from, to) => rename(from, to));
  }

  async get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    return await this.#reading(key, async (file, sizeBytes) => {
      if (sizeBytes > maxBytes) {
        throw new IntegrityError(`"${this.urlOf(key)}" is too large`, {
          detail: `It has ${sizeBytes} bytes; at most ${maxBytes} are expected.`,
        });
      }
      const body = new Uint8Array(sizeBytes);
      let at = 0;
      while (at < sizeBytes) {
        const { bytesRead } = await file.read(body, at, sizeBytes - at, at);
        if (bytesRead === 0) throw this.#shrank(key, sizeBytes, at);
        at += bytesRead;
      }
      return { body, metadata: {} };
    });
  }

  async open(key: ObjectKey): Promise<OpenedObject> {
    return { metadata: {}, chunks: this.#chunks(key, await this.#open(key)) };
  }

  async *#chunks(key: ObjectKey, from: OpenFile): AsyncIterable<Uint8Array> {
    await using opened = from;
    const { file, sizeBytes } = opened;
    for (let at = 0; at < sizeBytes; ) {
      this.#signal.throwIfAborted();
      const buffer = new Uint8Array(Math.min(READ_BYTES, sizeBytes - at));
      const { bytesRead } = await this.#named(`could not read "${this.urlOf(key)}"`, () =>
        file.read(buffer, 0, buffer.length, at),
      );
      if (bytesRead === 0) throw this.#shrank(key, sizeBytes, at);
      at += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  }

  async head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    return await this.#reading(key, async (_file, sizeBytes, lastModified) => ({
      key,
      sizeBytes,
      lastModified,
      metadata: {},
    }));
  }

  upload(key: ObjectKey, _metadata?: ObjectMetadata): ObjectUpload {
    checkKey(key);
    return new DirectoryUpload(new TemporaryFile(this.#writing(key)));
  }

  async *list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
    for await (const name of this.#walk(prefix, after)) {
      if (TEMPORARY.test(baseName(name)) || !isBehind(name, after)) continue;
      const entry = await this.#entryOf(name);
      if (entry) yield entry;
    }
  }

  async listLevel(
    prefix: string,
  ): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
    const objects: ObjectEntry[] = [];
    const folders: string[] = [];
    const { directory } = split(prefix);
    for (const { name, kind } of await this.#readDirectory(prefix)) {
      if (TEMPORARY.test(name)) continue;
      if (kind === "directory") {
        // An empty directory is no folder: S3 knows none.
        const first = await this.list(`${directory}${name}/`)[Symbol.asyncIterator]().next();
        if (!first.done) folders.push(`${directory}${name}/`);
      } else {
        const entry = await this.#entryOf(directory + name);
        if (entry) objects.push(entry);
      }
    }
    return { objects, folders };
  }

  async delete(keys: readonly ObjectKey[]): Promise<void> {
    keys.forEach(checkKey);
    const refused: string[] = [];
    const directories = new Set<string>();
    for (const key of keys) {
      this.#signal.throwIfAborted();
      try {
        await unlink(join(this.#root, key));
        directories.add(dirname(key));
      } catch (error) {
        if (isAbsence(error)) await this.checkRoot((detail) => this.#rootIsGone("could not delete", detail));
        else refused.push(`"${this.urlOf(key)}" (${reasonOf(error)})`);
      }
    }
    for (const directory of directories) await syncDirectory(join(this.#root, directory)).catch(ignoreAbsence);
    if (refused.length > 0) {
      throw new StorageError(`could not delete ${refused.length} of ${keys.length} objects`, {
        detail: `Still there: ${refused.slice(0, 5).join(", ")}${refused.length > 5 ? ` and ${refused.length - 5} more` : ""}.`,
        hint: 'Run the command again; "wal-b delete garbage" finds what is left of backups that are not listed any more.',
      });
    }
  }

  async *listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    // A temporary name begins with none of its key's, but is in the same directory.
    for await (const path of this.#walk(split(prefix).directory)) {
      const name = baseName(path);
      const original = TEMPORARY.exec(name)?.[1];
      if (original === undefined) continue;
      const key = path.slice(0, path.length - name.length) + original;
      const entry = await this.#entryOf(path);
      if (entry && key.startsWith(prefix)) yield { key, uploadId: name, initiated: entry.lastModified };
    }
  }

  async abortUpload({ key, uploadId }: UnfinishedUpload): Promise<void> {
    checkKey(key);
    if (!TEMPORARY.test(uploadId) || uploadId.includes("/"))
      throw new UsageError(`"${uploadId}" is no unfinished upload`);
    const path = join(this.#root, dirname(key), uploadId);
    await this.#named(`could not remove "${path}"`, () => unlink(path).catch(ignoreAbsence));
  }

  forCleanup(): ObjectStore {
    return new DirectoryStore(this.#root, new AbortController().signal, this.#identity);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** @throws what `failure` makes of the finding, if the directory is not there, or another one than before */
  async checkRoot(failure: (detail: string) => Failure): Promise<void> {
    const found = await stat(this.#root).catch((error: unknown) => reasonOf(error));
    if (typeof found === "string") throw failure(`${found}.`);
    if (!found.isDirectory()) throw failure("It is not a directory.");
    const identity = `${found.dev} ${found.ino}`;
    this.#identity ??= identity;
    if (this.#identity !== identity) throw failure("Its file system was unmounted, or another one mounted over it.");
  }

  #rootIsGone(action: string, detail: string): StorageError {
    return new StorageError(`${action}: the repository "${this.location}" is gone`, {
      detail,
      hint: "Mount it again. A missing repository proves nothing about what it holds.",
    });
  }

  #shrank(key: ObjectKey, sizeBytes: number, at: number): StorageError {
    return new StorageError(`could not read "${this.urlOf(key)}"`, {
      detail: `The file had ${sizeBytes} bytes and ended after ${at}.`,
    });
  }

  #writing(key: ObjectKey): Writing {
    return {
      root: this.#root,
      key,
      signal: this.#signal,
      named: (work) => this.#named(`could not write "${this.urlOf(key)}"`, work),
      checkRoot: () => this.checkRoot((detail) => this.#rootIsGone("could not write", detail)),
    };
  }

  async #open(key: ObjectKey): Promise<OpenFile> {
    checkKey(key);
    this.#signal.throwIfAborted();
    const action = `could not read "${this.urlOf(key)}"`;
    try {
      const file = await open(join(this.#root, key), constants.O_RDONLY | constants.O_NONBLOCK);
      const found = await file.stat();
      if (found.isFile()) {
        return { file, sizeBytes: found.size, lastModified: found.mtime, [Symbol.asyncDispose]: () => file.close() };
      }
      await file.close();
      if (!found.isDirectory()) throw new StorageError(action, { detail: "It is not a regular file." });
      throw new NotFoundError(action, { detail: "There is a directory of this name, and no object." });
    } catch (error) {
      if (isAbsence(error)) {
        // ENOENT proves absence only as long as the repository itself is there.
        await this.checkRoot((detail) => this.#rootIsGone(action, detail));
        throw new NotFoundError(action, { detail: `${reasonOf(error)}.`, cause: error });
      }
      throw failureOf(action, error);
    }
  }

  async #reading<Result>(
    key: ObjectKey,
    work: (file: FileHandle, sizeBytes: number, lastModified: Date) => Promise<Result>,
  ): Promise<Result> {
    await using opened = await this.#open(key);
    return await this.#named(`could not read "${this.urlOf(key)}"`, () =>
      work(opened.file, opened.sizeBytes, opened.lastModified),
    );
  }

  async #named<Result>(action: string, work: () => Promise<Result>): Promise<Result> {
    this.#signal.throwIfAborted();
    try {
      return await work();
    } catch (error) {
      throw failureOf(action, error);
    }
  }

  /**
   * Files whose path begins with `prefix`, in the order of S3: "a/b" sorts by its bytes, the "/" included. Those up to `after` may
   * be left out.
   */
  async *#walk(prefix: string, after?: ObjectKey): AsyncGenerator<string> {
    const { directory } = split(prefix);
    for (const { name, kind } of await this.#readDirectory(prefix, after)) {
      if (kind === "directory") yield* this.#walk(`${directory}${name}/`, after);
      else yield directory + name;
    }
  }

  /**
   * What is in the directory of `prefix` and begins with it. The rest is left out before it is looked at and sorted: an archive
   * has hundreds of thousands of segments where one is asked for, and what is not ours may be unreadable.
   */
  async #readDirectory(
    prefix: string,
    after?: ObjectKey,
  ): Promise<readonly { name: string; kind: "file" | "directory" }[]> {
    this.#signal.throwIfAborted();
    const { directory, namePrefix } = split(prefix);
    const action = `could not list "${this.urlOf(directory)}"`;
    const isWanted = (entry: Dirent) =>
      entry.name.startsWith(namePrefix) && (!entry.isFile() || isBehind(directory + entry.name, after));
    try {
      const found = (await readdir(join(this.#root, directory), { withFileTypes: true })).filter(isWanted);
      await this.checkRoot((detail) => this.#rootIsGone(action, detail));
      const entries = await Promise.all(found.map((entry) => this.#kindOf(directory, entry)));
      const sortName = ({ name, kind }: { name: string; kind: string }) => (kind === "directory" ? `${name}/` : name);
      return entries.filter((entry) => entry !== undefined).sort((a, b) => compareKeys(sortName(a), sortName(b)));
    } catch (error) {
      if (!isAbsence(error)) throw failureOf(action, error);
      await this.checkRoot((detail) => this.#rootIsGone(action, detail));
      return [];
    }
  }

  /** A symbolic link is an error: following it could leave the root, and skipping it could hide what a delete must know. */
  async #kindOf(directory: string, entry: Dirent): Promise<{ name: string; kind: "file" | "directory" } | undefined> {
    const { name } = entry;
    if (entry.isDirectory()) return { name, kind: "directory" };
    if (entry.isFile()) return { name, kind: "file" };
    if (entry.isSymbolicLink()) {
      throw new StorageError(`could not list "${this.urlOf(directory)}"`, {
        detail: `"${name}" is a symbolic link.`,
        hint: "Use a bind mount in its place, or make the link the repository itself.",
      });
    }
    // Some file systems do not tell the type with the name.
    const found = await lstat(join(this.#root, directory, name)).catch(ignoreAbsence);
    if (found?.isDirectory()) return { name, kind: "directory" };
    return found?.isFile() ? { name, kind: "file" } : undefined;
  }

  /** Undefined if it was deleted meanwhile. */
  async #entryOf(key: ObjectKey): Promise<ObjectEntry | undefined> {
    const found = await this.#named(`could not list "${this.urlOf(key)}"`, () =>
      stat(join(this.#root, key)).catch(ignoreAbsence),
    );
    return found && { key, sizeBytes: found.size, lastModified: found.mtime };
  }
}

function split(prefix: string): { directory: string; namePrefix: string } {
  const at = prefix.lastIndexOf("/") + 1;
  const directory = prefix.slice(0, at);
  if (directory !== "") checkKey(directory.slice(0, -1));
  return { directory, namePrefix: prefix.slice(at) };
}

const isBehind = (key: ObjectKey, after: ObjectKey | undefined) => after === undefined || compareKeys(key, after) > 0;
