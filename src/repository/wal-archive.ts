/**
 * The WAL half of the repository: a file of pg_wal ⇄ its object.
 *
 * One request in the good case: putIfAbsent() to write, get() of the exact key to read. Content is checked before it is
 * handed out: the frames' checksums, the SHA-256 in the object's metadata where the store keeps metadata, and what the
 * file itself states.
 */
import { availableParallelism } from "node:os";
import { decodeContent } from "../codec/content.ts";
import { type ContentSource, encodeSource, FrameBuffers } from "../codec/content-source.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, NotFoundError } from "../errors.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import { checkSegment } from "../postgres/wal-page-header.ts";
import { MAX_SEGMENT_SIZE, type WalFile, type WalSegment } from "../postgres/wal-segment.ts";
import type { ObjectKey, ObjectMetadata, ObjectStore, StoredObject } from "../storage/object-store.ts";
import { CONTENT_SUFFIX, parseWalKey, WAL, type WalObject, walKey } from "./keys.ts";

/** zstd adds at most a few bytes to a block of 128 KiB that cannot be compressed. */
const MAX_OBJECT_BYTES = MAX_SEGMENT_SIZE + MAX_SEGMENT_SIZE / 256;

export interface WalArchive {
  /** For messages. */
  urlOf(name: string): string;

  /**
   * Reads, checks and compresses a file, a few frames at a time, whoever else does at the same time.
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
   * @throws NotFoundError   the store proved that the file is not there, in any form
   * @throws IntegrityError  what is there is damaged, another file, or in a form that is not supported
   */
  get(file: WalFile): Promise<Uint8Array>;

  /** The same of NAME.zst alone, the form that wal-b writes: one request, whatever the answer. */
  getOwnForm(file: WalFile): Promise<Uint8Array>;

  /** The first archived segment behind this one on its timeline; undefined when it is the last. */
  segmentAfter(segment: WalSegment): Promise<WalSegment | undefined>;

  /** Every object below wal_005/ whose name begins with `prefix`, in order of the name. */
  list(prefix?: string): AsyncIterable<ArchivedWal>;
}

/** A file of pg_wal as it will be stored. */
export interface PreparedWal {
  readonly key: ObjectKey;
  readonly body: Uint8Array;
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

export function openWalArchive(store: ObjectStore, zstd: () => Promise<Zstd>): WalArchive {
  const buffers = new FrameBuffers(FRAMES_AT_ONCE);
  const getExactly = async (file: WalFile, key: string): Promise<Uint8Array> => {
    const stored = await store.get(key, MAX_OBJECT_BYTES);
    try {
      const content = key.endsWith(CONTENT_SUFFIX)
        ? await decodeContent(stored.body, await zstd(), MAX_SEGMENT_SIZE)
        : stored.body;
      checkHash(stored, content);
      checkWalContent(file, content);
      return content;
    } catch (cause) {
      if (!(cause instanceof IntegrityError)) throw cause;
      throw new IntegrityError(`archived "${file.name}" is damaged`, {
        detail: [`${store.urlOf(key)}: ${cause.message}.`, cause.detail].filter(Boolean).join(" "),
        hint: "The object was left as it is. If another copy of this file exists, in pg_wal of any server or in a version of the object, put it aside.",
        cause,
      });
    }
  };

  /** Only after the store proved that there is no NAME.zst: one LIST finds any other form of the file. */
  const otherForm = async (file: WalFile): Promise<string | undefined> => {
    for await (const { key } of store.list(`${WAL}${file.name}`)) {
      const found = parseWalKey(key);
      if (found?.file.name !== file.name) continue;
      if (found.compression === "" || found.compression === "zst") return key;
      throw new IntegrityError(`archived "${file.name}" is in a format that is not supported`, {
        detail: `${store.urlOf(key)} is compressed with ${found.compression}.`,
        hint: "Restore it with the tool that wrote it.",
      });
    }
    return undefined;
  };

  return {
    urlOf: (name) => store.urlOf(walKey(name)),

    async prepare(file, content) {
      const { sizeBytes } = content;
      const hash = store.metadata === "kept" ? new Bun.CryptoHasher("sha256") : undefined;
      let systemIdentifier: bigint | undefined;
      let isFirst = true;
      const read = (buffer: Uint8Array) => {
        content.read(buffer);
        if (isFirst) systemIdentifier = checkWalContent(file, buffer, sizeBytes);
        isFirst = false;
        hash?.update(buffer);
      };
      const body = await encodeSource({ sizeBytes, read }, await zstd(), buffers);
      const metadata = hash ? { sha256: hash.digest("hex"), size: String(sizeBytes) } : {};
      return { key: walKey(file.name), metadata, body, systemIdentifier };
    },

    putIfAbsent: ({ key, body, metadata }) => store.putIfAbsent(key, body, metadata),

    getOwnForm: (file) => getExactly(file, walKey(file.name)),

    async get(file) {
      try {
        return await getExactly(file, walKey(file.name));
      } catch (error) {
        if (!(error instanceof NotFoundError)) throw error;
        const key = await otherForm(file);
        if (key !== undefined) return getExactly(file, key);
        throw new NotFoundError(`"${file.name}" is not in the archive`, {
          detail: `There is no ${store.urlOf(walKey(file.name))}.`,
        });
      }
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

/**
 * What a file of pg_wal states about itself, against its name.
 *
 * @param content    the whole file, or the first frame's content of it
 * @param sizeBytes  of the whole file
 * @returns the system identifier, where the file states one
 * @throws IntegrityError  damaged, cut off, or another file's content
 */
export function checkWalContent(
  file: WalFile,
  content: Uint8Array,
  sizeBytes: number = content.byteLength,
): bigint | undefined {
  switch (file.kind) {
    case "segment":
    case "partial":
      return checkSegment(file.name, file, content, sizeBytes).systemIdentifier;
    case "history":
      if (parseTimelineHistory(file.timeline, new TextDecoder().decode(content)).length > 0) return undefined;
      throw new IntegrityError(`"${file.name}" is not a timeline history`, { detail: "It names no parent timeline." });
    case "backup":
      if (new TextDecoder().decode(content).startsWith("START WAL LOCATION: ")) return undefined;
      throw new IntegrityError(`"${file.name}" is not a backup history`, {
        detail: 'It does not begin with "START WAL LOCATION".',
      });
  }
}

function checkHash({ metadata }: StoredObject, content: Uint8Array): void {
  const expected = metadata["sha256"];
  if (expected !== undefined && expected !== sha256(content)) {
    throw new IntegrityError("the content is not what was archived", {
      detail: `Its SHA-256 is ${sha256(content)}, archived was ${expected}.`,
    });
  }
}

const sha256 = (content: Uint8Array) => new Bun.CryptoHasher("sha256").update(content).digest("hex");
