/**
 * The WAL half of the repository: a file of pg_wal ⇄ its object.
 *
 * One request in the good case: putIfAbsent() to write, get() of the exact key to read. Content is checked before it is
 * handed out: the frames' checksums, the SHA-256 in the object's metadata where the store keeps metadata, and what the
 * file itself states.
 */
import { availableParallelism } from "node:os";
import { decodeStream, releaseContent } from "../codec/content.ts";
import { type ContentSource, encodedFrames, encodeSource, FrameBuffers } from "../codec/content-source.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, NotFoundError } from "../errors.ts";
import { LONG_HEADER_BYTES } from "../postgres/wal-page-header.ts";
import type { TimelineHistoryFile, WalFile, WalSegment } from "../postgres/wal-segment.ts";
import {
  isStored,
  type ObjectKey,
  type ObjectMetadata,
  type ObjectStore,
  type OpenedObject,
} from "../storage/object-store.ts";
import { CONTENT_SUFFIX, isSupported, parseWalKey, WAL, type WalObject, walKey } from "./keys.ts";
import { checkedPieces, checkWalContent } from "./wal-content.ts";

export interface WalArchive {
  /** For messages. */
  urlOf(name: string): string;

  /**
   * Reads and checks a file, and compresses it, a few frames at a time, whoever else does at the same time. A large one is
   * compressed while it is written; the source must last as long.
   *
   * @throws IntegrityError  damaged, cut off, or another file's content
   */
  prepare(file: WalFile, content: ContentSource): Promise<PreparedWal>;

  /**
   * @returns "created", or "exists" when the name is taken, by whatever content; durable in both cases
   * @throws StorageError  the file may be in the archive or not
   */
  putIfAbsent(wal: PreparedWal): Promise<"created" | "exists">;

  /**
   * Reads a file in pieces; each is good until the next is asked for. The first has BEGINNING_BYTES of a segment or more, the header in
   * them checked. The content as a whole is verified once the end has come, and not before.
   *
   * @throws NotFoundError   at the first piece: the store proved that the file is not there, in any form
   * @throws IntegrityError  what is there is damaged, another file, or in a form that is not supported
   */
  read(file: WalFile): AsyncIterable<Uint8Array>;

  /** The same of NAME.zst alone, the form that wal-b writes: one request, whatever the answer. */
  readOwnForm(file: WalFile): AsyncIterable<Uint8Array>;

  /** @throws as read() */
  readText(file: TimelineHistoryFile): Promise<string>;

  /** What says that a file is there, but in no form that is supported; undefined when it is not there, or can be read. */
  unsupportedForm(file: WalFile): Promise<string | undefined>;

  /** The first archived segment behind this one on its timeline; undefined when it is the last. */
  segmentAfter(segment: WalSegment): Promise<WalSegment | undefined>;

  /** Every object below wal_005/ whose name begins with `prefix`, in order of the name. */
  list(prefix?: string): AsyncIterable<ArchivedWal>;
}

/** A file of pg_wal as it will be stored. */
export interface PreparedWal {
  readonly key: ObjectKey;
  /** The object's bytes; of a large file as they are made, to be asked for once. */
  readonly body: Uint8Array | AsyncIterable<Uint8Array>;
  readonly metadata: ObjectMetadata;
  /** Of the cluster that wrote it; undefined where the file does not state it. */
  readonly systemIdentifier: bigint | undefined;
}

export interface ArchivedWal extends Partial<WalObject> {
  readonly key: string;
  readonly sizeBytes: number;
}

/** Frames that are read or compressed at once: two for each processor keep it busy while the next is read. */
const FRAMES_AT_ONCE = Math.min(16, 2 * availableParallelism());

/** At most eight: each is decompressed into new memory, and several segments are read side by side. */
const DECOMPRESSED_AT_ONCE = Math.min(8, FRAMES_AT_ONCE);

/** A larger file is an upload in parts: compressed as a whole it would take as much memory as it has bytes. */
const MAX_WHOLE_BYTES = 32 * 2 ** 20;

export function openWalArchive(store: ObjectStore, zstd: () => Promise<Zstd>): WalArchive {
  const buffers = new FrameBuffers(FRAMES_AT_ONCE);
  const newHash = () => (store.metadata === "kept" ? new Bun.CryptoHasher("sha256") : undefined);
  const metadataOf = (hash: Bun.CryptoHasher | undefined, sizeBytes: number) =>
    hash ? { sha256: hash.digest("hex"), size: String(sizeBytes) } : {};

  const prepareWhole = async (file: WalFile, content: ContentSource): Promise<PreparedWal> => {
    const { sizeBytes } = content;
    const hash = newHash();
    let systemIdentifier: bigint | undefined;
    const read = (buffer: Uint8Array, position: number) => {
      content.read(buffer, position);
      if (position === 0) ({ systemIdentifier } = checkWalContent(file, buffer, sizeBytes));
      hash?.update(buffer);
    };
    const body = await encodeSource({ sizeBytes, read }, await zstd(), buffers);
    return { key: walKey(file.name), metadata: metadataOf(hash, sizeBytes), body, systemIdentifier };
  };

  /** An upload in parts is begun with its metadata, so the content is read once more before, for its hash. */
  const prepareLarge = async (file: WalFile, content: ContentSource): Promise<PreparedWal> => {
    const { sizeBytes } = content;
    const header = new Uint8Array(LONG_HEADER_BYTES);
    content.read(header, 0);
    const { systemIdentifier } = checkWalContent(file, header, sizeBytes);
    const hash = newHash();
    if (hash) await updateFrom(content, hash, buffers);
    const metadata = metadataOf(hash, sizeBytes);
    return { key: walKey(file.name), metadata, body: framesOf(file, content, metadata), systemIdentifier };
  };

  async function* framesOf(file: WalFile, content: ContentSource, { sha256 }: ObjectMetadata) {
    const hash = newHash();
    const read = (buffer: Uint8Array, position: number) => {
      content.read(buffer, position);
      hash?.update(buffer);
    };
    yield* encodedFrames({ sizeBytes: content.sizeBytes, read }, await zstd(), buffers);
    if (hash && hash.digest("hex") !== sha256)
      throw new IntegrityError(`"${file.name}" changed while it was archived`, { detail: "It was not archived." });
  }

  async function* readForm(file: WalFile, key: ObjectKey): AsyncGenerator<Uint8Array, void, undefined> {
    const opened = await store.open(key);
    try {
      yield* checkedPieces(file, checkedHash(opened, contentOf(key, opened, zstd)));
    } catch (cause) {
      if (!(cause instanceof IntegrityError)) throw cause;
      throw new IntegrityError(`archived "${file.name}" is damaged`, {
        detail: [`${store.urlOf(key)}: ${cause.message}.`, cause.detail].filter(Boolean).join(" "),
        hint: 'The object was left as it is. If pg_wal of any server has this file, move the object out of the way, with credentials that may delete, and archive that file with "wal-b wal-push". In a versioned bucket, an older version of the object may be good.',
        cause,
      });
    }
  }

  /** One LIST finds any form of the file; one that is supported, if there is one. */
  const findForm = async (file: WalFile): Promise<(WalObject & { readonly key: ObjectKey }) | undefined> => {
    let unsupported: (WalObject & { readonly key: ObjectKey }) | undefined;
    for await (const { key } of store.list(`${WAL}${file.name}`)) {
      const found = parseWalKey(key);
      if (found?.file.name !== file.name) continue;
      if (isSupported(found)) return { ...found, key };
      unsupported ??= { ...found, key };
    }
    return unsupported;
  };

  const describeForm = ({ key, compression }: WalObject & { readonly key: ObjectKey }) =>
    `${store.urlOf(key)} is compressed with ${compression}.`;

  async function* read(file: WalFile): AsyncGenerator<Uint8Array, void, undefined> {
    try {
      yield* readForm(file, walKey(file.name));
    } catch (error) {
      if (!(error instanceof NotFoundError)) throw error;
      // Only after the store proved that there is no NAME.zst.
      const found = await findForm(file);
      if (found === undefined) {
        throw new NotFoundError(`"${file.name}" is not in the archive`, {
          detail: `There is no ${store.urlOf(walKey(file.name))}.`,
        });
      }
      if (!isSupported(found)) {
        throw new IntegrityError(`archived "${file.name}" is in a format that is not supported`, {
          detail: describeForm(found),
          hint: "Restore it with the tool that wrote it.",
        });
      }
      yield* readForm(file, found.key);
    }
  }

  return {
    urlOf: (name) => store.urlOf(walKey(name)),

    prepare: (file, content) =>
      content.sizeBytes > MAX_WHOLE_BYTES ? prepareLarge(file, content) : prepareWhole(file, content),

    async putIfAbsent({ key, body, metadata }) {
      if (body instanceof Uint8Array) return await store.putIfAbsent(key, body, metadata);
      // An upload learns at its end that the name is taken, after all parts were sent. A directory has to be told all the same: what it
      // has may be there by name, and not on the disk yet, since a crash.
      if (store.metadata === "kept" && (await isStored(store, key))) return "exists";
      await using upload = store.upload(key, metadata);
      for await (const frame of body) {
        await upload.write(frame);
        releaseContent(frame);
      }
      return await upload.complete();
    },

    read,

    readOwnForm: (file) => readForm(file, walKey(file.name)),

    async readText(file) {
      const decoder = new TextDecoder();
      let text = "";
      for await (const piece of read(file)) text += decoder.decode(piece, { stream: true });
      return text + decoder.decode();
    },

    async unsupportedForm(file) {
      const found = await findForm(file);
      return found && !isSupported(found) ? describeForm(found) : undefined;
    },

    async segmentAfter({ name }) {
      for await (const { key } of store.list(`${WAL}${name.slice(0, 8)}`, walKey(name))) {
        const file = parseWalKey(key)?.file;
        if (file?.kind === "segment" && file.name > name) return file;
      }
      return undefined;
    },

    async *list(prefix = "") {
      for await (const { key, sizeBytes } of store.list(`${WAL}${prefix}`))
        yield { key, sizeBytes, ...parseWalKey(key) };
    },
  };
}

async function updateFrom(content: ContentSource, hash: Bun.CryptoHasher, buffers: FrameBuffers): Promise<void> {
  using buffer = await buffers.take();
  for (let at = 0; at < content.sizeBytes; ) {
    const piece = buffer.bytes.subarray(0, content.sizeBytes - at);
    content.read(piece, at);
    hash.update(piece);
    at += piece.byteLength;
  }
}

async function* contentOf(
  key: ObjectKey,
  { chunks }: OpenedObject,
  zstd: () => Promise<Zstd>,
): AsyncGenerator<Uint8Array, void, undefined> {
  if (!key.endsWith(CONTENT_SUFFIX)) return yield* chunks;
  for await (const piece of decodeStream(chunks, await zstd(), { framesInFlight: DECOMPRESSED_AT_ONCE })) {
    yield piece;
    releaseContent(piece);
  }
}

async function* checkedHash(
  { metadata }: OpenedObject,
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  const expected = metadata["sha256"];
  if (expected === undefined) return yield* pieces;
  const hash = new Bun.CryptoHasher("sha256");
  for await (const piece of pieces) {
    hash.update(piece);
    yield piece;
  }
  const found = hash.digest("hex");
  if (found === expected) return;
  throw new IntegrityError("the content is not what was archived", {
    detail: `Its SHA-256 is ${found}, archived was ${expected}.`,
  });
}
