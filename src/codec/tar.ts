/** tar archives, written and read as streams; entries have exactly the size that was promised. */
import { extract, pack } from "tar-stream";
import { IntegrityError, reasonOf } from "../errors.ts";
import { drainedOrClosed } from "./drained.ts";

/** destroy() without an error; the declared type of tar-stream demands one. */
const NO_ERROR = undefined as unknown as Error;

export interface TarHeader {
  /** As it stands in the archive; a leading "/" is kept. */
  readonly name: string;
  readonly type: "file" | "directory";
  readonly sizeBytes: number;
  /** Permission bits. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly modifiedAt: Date;
}

export interface ReleaseOption {
  /** Takes each piece of what was given once nothing of it is needed any more; a few may be left out. */
  readonly release?: (piece: Uint8Array) => void;
}

/** Writes one archive. Its bytes go to `sink` in order; nothing is buffered beyond the piece being written. */
export class TarWriter {
  readonly #pack = pack();
  readonly #draining: Promise<void>;
  /** Who wants to hear that a piece is written, by its memory. */
  readonly #releases = new WeakMap<ArrayBufferLike, (piece: Uint8Array) => void>();

  constructor(sink: (bytes: Uint8Array) => Promise<void>) {
    this.#draining = this.#drain(sink);
    // Observed by add() and end(); until then a failure must not count as unhandled.
    this.#draining.catch(() => {});
  }

  async #drain(sink: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    try {
      for await (const bytes of this.#pack as AsyncIterable<Uint8Array>) {
        await sink(bytes);
        this.#releases.get(bytes.buffer)?.(bytes);
      }
    } catch (error) {
      this.#pack.destroy(error instanceof Error ? error : new Error(String(error)));
      throw error;
    }
  }

  /** @param content  exactly `header.sizeBytes` bytes; a RangeError if not */
  async add(
    header: TarHeader,
    content: Iterable<Uint8Array> | AsyncIterable<Uint8Array> = [],
    { release }: ReleaseOption = {},
  ): Promise<void> {
    const { name, type, sizeBytes: size, mode, uid, gid, modifiedAt: mtime } = header;
    // Where the sink has failed, that is the reason, and not that the pack takes no entries any more.
    if (this.#pack.destroyed) await this.#draining;
    // An error of the pack ends up in #draining, which tells why.
    const entry = this.#pack.entry({ name, type, size, mode, uid, gid, mtime, ...extendedIfLong(name) });
    const done = new Promise<void>((resolve, reject) => entry.once("close", resolve).once("error", reject));
    done.catch(() => {});

    let written = 0;
    for await (const bytes of content) {
      written += bytes.byteLength;
      if (written > size || this.#pack.destroyed) break;
      if (release) this.#releases.set(bytes.buffer, release);
      if (!entry.write(bytes)) await drainedOrClosed(entry);
    }
    if (this.#pack.destroyed) await this.#draining;
    if (written !== size) {
      const error = new RangeError(`tar entry "${name}" was promised ${size} bytes and got ${written}`);
      this.#pack.destroy(error);
      throw error;
    }
    entry.end(undefined);
    await Promise.race([done, this.#draining]);
  }

  async end(): Promise<void> {
    this.#pack.finalize();
    await this.#draining;
  }

  /** Gives up the archive; to be called when end() will not be. */
  async abandon(): Promise<void> {
    this.#pack.destroy(NO_ERROR);
    await this.#draining.catch(() => {});
  }
}

/** A name that tar-stream would divide over two fields of a plain header loses its leading "/" there. */
const extendedIfLong = (name: string) =>
  name.startsWith("/") && Buffer.byteLength(name) > PLAIN_NAME_BYTES ? { pax: {} } : {};

const PLAIN_NAME_BYTES = 100;

export interface TarEntry {
  readonly name: string;
  /** tar-stream's word for the type: "file", "directory", "symlink" … */
  readonly type: string;
  readonly linkTarget: string | undefined;
  readonly sizeBytes: number;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly modifiedAt: Date;
  /** To be read before the next entry is taken; what is left unread is passed over. */
  readonly content: AsyncIterable<Uint8Array>;
}

/**
 * @returns entries whose content is valid until more of it is asked for
 * @throws IntegrityError  not a tar archive, or it is cut off inside an entry
 */
export async function* readTar(
  source: AsyncIterable<Uint8Array>,
  { release }: ReleaseOption = {},
): AsyncGenerator<TarEntry> {
  const archive = extract();
  const given: Uint8Array[] = [];
  const feeding = feed(source, archive, (piece) => {
    given.push(piece);
    if (given.length > MAX_GIVEN) given.shift();
  });
  /** Bytes come in order: with the first ones of a piece, those before it have had their time. */
  const releaseBefore = (bytes: Uint8Array) => {
    const at = given.findIndex((piece) => piece.buffer === bytes.buffer);
    for (const piece of given.splice(0, Math.max(at, 0))) release?.(piece);
  };
  /** Where the source failed, that is the reason; otherwise the archive itself is bad. */
  const explain = async (cause: unknown): Promise<never> => {
    await feeding;
    throw new IntegrityError("the tar archive is damaged", { detail: `${reasonOf(cause)}.`, cause });
  };
  const readable = async function* (entry: AsyncIterable<unknown>): AsyncGenerator<Uint8Array> {
    try {
      for await (const bytes of entry as AsyncIterable<Uint8Array>) {
        releaseBefore(bytes);
        yield bytes;
      }
    } catch (cause) {
      await explain(cause);
    }
  };
  feeding.catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))));
  try {
    for await (const entry of archive) {
      const { name, type, linkname, size, mode, uid, gid, mtime } = entry.header;
      if (!Number.isSafeInteger(size) || Number.isNaN(mtime?.getTime()))
        throw new IntegrityError("the tar archive is damaged", {
          detail: `The header of "${name}" has no valid size or time.`,
        });
      yield {
        name,
        type: type ?? "file",
        linkTarget: linkname ?? undefined,
        sizeBytes: size ?? 0,
        mode: (mode ?? 0) & 0o7777,
        uid: uid ?? 0,
        gid: gid ?? 0,
        modifiedAt: mtime ?? new Date(0),
        content: readable(entry),
      };
      entry.resume();
    }
  } catch (cause) {
    if (cause instanceof IntegrityError) throw cause;
    await explain(cause);
  } finally {
    archive.destroy(NO_ERROR);
  }
  await feeding;
}

/** Entries without content use up pieces, too, and nobody sees those: they are left to the garbage collector. */
const MAX_GIVEN = 4;

async function feed(
  source: AsyncIterable<Uint8Array>,
  archive: ReturnType<typeof extract>,
  onPiece: (piece: Uint8Array) => void,
): Promise<void> {
  for await (const bytes of source) {
    if (archive.destroyed) return;
    onPiece(bytes);
    if (!archive.write(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))) {
      await drainedOrClosed(archive);
    }
  }
  archive.end(undefined);
}
