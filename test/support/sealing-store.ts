/**
 * A store whose content is sealed: what encryption by the client needs of the program, see docs/decisions/0011-encryption.md.
 * A real cipher, but not a safe use of it: the nonce comes from the key's name, so that sizes stay what they are.
 */
import { createCipheriv, createHash } from "node:crypto";
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

/** Content, and not what describes it: lists of backups are readable without a key. */
export const isSealed = (key: ObjectKey) => key.endsWith(".zst");

export class SealingStore implements ObjectStore {
  readonly #store: ObjectStore;
  readonly #secret: Uint8Array;

  constructor(store: ObjectStore, secret: Uint8Array) {
    this.#store = store;
    this.#secret = secret;
  }

  get location(): string {
    return this.#store.location;
  }

  get metadata(): ObjectStore["metadata"] {
    return this.#store.metadata;
  }

  urlOf(key: ObjectKey): string {
    return this.#store.urlOf(key);
  }

  putIfAbsent(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<"created" | "exists"> {
    return this.#store.putIfAbsent(key, this.#transformOf(key)(body), metadata);
  }

  replace(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<void> {
    return this.#store.replace(key, this.#transformOf(key)(body), metadata);
  }

  async get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    const { body, metadata } = await this.#store.get(key, maxBytes);
    return { body: this.#transformOf(key)(body), metadata };
  }

  async open(key: ObjectKey): Promise<OpenedObject> {
    const { metadata, chunks } = await this.#store.open(key);
    return { metadata, chunks: transformed(chunks, this.#transformOf(key)) };
  }

  upload(key: ObjectKey, metadata?: ObjectMetadata): ObjectUpload {
    const upload = this.#store.upload(key, metadata);
    const transform = this.#transformOf(key);
    return {
      write: (bytes) => upload.write(transform(bytes)),
      complete: () => upload.complete(),
      [Symbol.asyncDispose]: () => upload[Symbol.asyncDispose](),
    };
  }

  head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    return this.#store.head(key);
  }

  list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
    return this.#store.list(prefix, after);
  }

  listLevel(prefix: string): ReturnType<ObjectStore["listLevel"]> {
    return this.#store.listLevel(prefix);
  }

  delete(keys: readonly ObjectKey[]): Promise<void> {
    return this.#store.delete(keys);
  }

  listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    return this.#store.listUnfinishedUploads(prefix);
  }

  abortUpload(upload: UnfinishedUpload): Promise<void> {
    return this.#store.abortUpload(upload);
  }

  forCleanup(): ObjectStore {
    return new SealingStore(this.#store.forCleanup(), this.#secret);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  /** Seals or opens, which is the same in counter mode; of one object's bytes in order. */
  #transformOf(key: ObjectKey): (bytes: Uint8Array) => Uint8Array {
    if (!isSealed(key)) return (bytes) => bytes;
    const cipher = createCipheriv(
      "aes-256-ctr",
      this.#secret,
      createHash("sha256").update(key).digest().subarray(0, 16),
    );
    return (bytes) => cipher.update(bytes);
  }
}

async function* transformed(
  chunks: AsyncIterable<Uint8Array>,
  transform: (bytes: Uint8Array) => Uint8Array,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) yield transform(chunk);
}
