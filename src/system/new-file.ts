/**
 * A new file, written from its beginning to its end, and a large one past the page cache, as far as its file system can do that.
 *
 * A restore writes more than memory holds. In the page cache it would push out what other programs need, and copying it there
 * is most of what writing costs (docs/decisions/0013-direct-writes.md). A direct write must begin and end at whole sectors, in
 * the file and in memory. The pieces of our own parts do: members of a tar archive begin at multiples of 512 bytes.
 */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { systemCodeOf } from "../errors.ts";

/** Not followed if it is a link: what is there is never written over. */
const CREATE = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
/** macOS has none. */
const DIRECT = constants.O_DIRECT ?? 0;

/** "direct" is a wish: the file is the same where it cannot be met. */
export type WriteMode = "cached" | "direct";

export class NewFile implements AsyncDisposable {
  readonly #path: string;
  #handle: FileHandle;
  #mode: WriteMode = "cached";
  #written = 0;

  /** Use createNewFile(). */
  constructor(path: string, handle: FileHandle) {
    this.#path = path;
    this.#handle = handle;
  }

  /** Valid until more is written. */
  get handle(): FileHandle {
    return this.#handle;
  }

  /** Behind what was written before. `bytes` are in use until it resolves. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.byteLength; ) {
      try {
        const { bytesWritten } = await this.#handle.write(bytes, at, bytes.byteLength - at, this.#written);
        at += bytesWritten;
        this.#written += bytesWritten;
      } catch (error) {
        if (this.#mode === "cached" || !isRefusal(error)) throw error;
        await this.reopen("cached");
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#handle.close();
  }

  /** @throws Error  as open(2): it is written as before */
  async reopen(mode: WriteMode): Promise<void> {
    const flags = constants.O_WRONLY | constants.O_NOFOLLOW | (mode === "direct" ? DIRECT : 0);
    const handle = await open(this.#path, flags);
    const before = this.#handle;
    [this.#handle, this.#mode] = [handle, mode];
    await before.close();
  }
}

/**
 * Readable and writable for its owner alone.
 *
 * @throws Error  as open(2): the directory is missing, or something is there already
 */
export async function createNewFile(path: string, mode: WriteMode): Promise<NewFile> {
  const file = new NewFile(path, await open(path, CREATE, 0o600));
  if (mode === "direct") {
    // Not at once: a file system that refuses has made the file by then. Whatever it says, what is open is good for writing.
    await file.reopen("direct").catch(() => {});
  }
  return file;
}

/** Of a direct write, by a file system that has none, or because it is not at whole sectors. */
const isRefusal = (error: unknown) => systemCodeOf(error) === "EINVAL" || systemCodeOf(error) === "ENOTSUP";
