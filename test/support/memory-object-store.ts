/** An ObjectStore in memory: no mock but a real implementation, which passes the contract suite. */
import { IntegrityError, NotFoundError } from "../../src/errors.ts";
import { checkKey, compareKeys } from "../../src/storage/object-key.ts";
import type {
  ObjectEntry,
  ObjectKey,
  ObjectMetadata,
  ObjectStore,
  ObjectUpload,
  OpenedObject,
  StoredObject,
  UnfinishedUpload,
} from "../../src/storage/object-store.ts";

interface KeptObject extends StoredObject {
  readonly lastModified: Date;
}

export interface MemoryObjectStoreOptions {
  readonly now?: () => Date;
  /** How many bytes the chunks of open() have. */
  readonly chunkBytes?: number;
}

export class MemoryObjectStore implements ObjectStore {
  readonly location = "memory://test";
  readonly metadata = "kept";
  readonly #objects = new Map<ObjectKey, KeptObject>();
  readonly #unfinished = new Map<string, UnfinishedUpload>();
  readonly #now: () => Date;
  readonly #chunkBytes: number;

  constructor({ now = () => new Date(), chunkBytes = 64 * 1024 }: MemoryObjectStoreOptions = {}) {
    this.#now = now;
    this.#chunkBytes = chunkBytes;
  }

  /** Every key, in order: what a test asks after the fact. */
  get keys(): readonly ObjectKey[] {
    return [...this.#objects.keys()].sort(compareKeys);
  }

  urlOf(key: ObjectKey): string {
    return `${this.location}/${key}`;
  }

  async putIfAbsent(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<"created" | "exists"> {
    checkKey(key);
    if (this.#objects.has(key)) return "exists";
    this.#keep(key, body, metadata);
    return "created";
  }

  async replace(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<void> {
    checkKey(key);
    this.#keep(key, body, metadata);
  }

  async get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    const { body, metadata } = this.#find(key);
    if (body.byteLength > maxBytes) throw new IntegrityError(`"${this.urlOf(key)}" is too large`);
    return { body: body.slice(), metadata };
  }

  async open(key: ObjectKey): Promise<OpenedObject> {
    const { body, metadata } = this.#find(key);
    return { metadata, chunks: this.#chunksOf(body) };
  }

  async *#chunksOf(body: Uint8Array): AsyncIterable<Uint8Array> {
    for (let at = 0; at < body.byteLength; at += this.#chunkBytes) yield body.slice(at, at + this.#chunkBytes);
  }

  async head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    const { body, metadata, lastModified } = this.#find(key);
    return { key, sizeBytes: body.byteLength, lastModified, metadata };
  }

  upload(key: ObjectKey, metadata: ObjectMetadata = {}): ObjectUpload {
    checkKey(key);
    const uploadId = crypto.randomUUID();
    this.#unfinished.set(uploadId, { key, uploadId, initiated: this.#now() });
    const chunks: Uint8Array[] = [];
    const checkOpen = () => {
      if (!this.#unfinished.has(uploadId)) throw new Error("the upload is closed");
    };
    return {
      write: async (bytes) => {
        checkOpen();
        chunks.push(bytes.slice());
      },
      complete: async () => {
        checkOpen();
        this.#unfinished.delete(uploadId);
        return await this.putIfAbsent(key, Buffer.concat(chunks), metadata);
      },
      [Symbol.asyncDispose]: async () => {
        this.#unfinished.delete(uploadId);
      },
    };
  }

  async *list(prefix: string, after = ""): AsyncIterable<ObjectEntry> {
    for (const key of this.keys) {
      const kept = this.#objects.get(key);
      if (kept && key.startsWith(prefix) && compareKeys(key, after) > 0)
        yield { key, sizeBytes: kept.body.byteLength, lastModified: kept.lastModified };
    }
  }

  async listLevel(
    prefix: string,
  ): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
    const objects: ObjectEntry[] = [];
    const folders = new Set<string>();
    for await (const entry of this.list(prefix)) {
      const slash = entry.key.indexOf("/", prefix.length);
      if (slash < 0) objects.push(entry);
      else folders.add(entry.key.slice(0, slash + 1));
    }
    return { objects, folders: [...folders] };
  }

  async delete(keys: readonly ObjectKey[]): Promise<void> {
    for (const key of keys) this.#objects.delete(key);
  }

  async *listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    for (const upload of [...this.#unfinished.values()]) if (upload.key.startsWith(prefix)) yield upload;
  }

  async abortUpload({ uploadId }: UnfinishedUpload): Promise<void> {
    this.#unfinished.delete(uploadId);
  }

  forCleanup(): ObjectStore {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  #keep(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata): void {
    // A copy in any case: slice() of a Buffer is a view of it.
    this.#objects.set(key, { body: new Uint8Array(body), metadata: { ...metadata }, lastModified: this.#now() });
  }

  #find(key: ObjectKey): KeptObject {
    checkKey(key);
    const kept = this.#objects.get(key);
    if (!kept) throw new NotFoundError(`could not read "${this.urlOf(key)}"`, { detail: "There is no such object." });
    return kept;
  }
}
