/** A store whose n-th call fails, stalls or is cut off, so that a flow can be tested under every single fault. */
import { StorageError } from "../../src/errors.ts";
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

export interface Fault {
  /** Counted from 1 over all calls of the store and its uploads; an object that is opened counts once. */
  readonly atCall: number;
  /**
   * "before": the call fails and nothing happened. "after": it happened and its answer got lost. "cut": the chunks of an object or a list
   * fail after the first item, any other call as "before".
   */
  readonly when: "before" | "after" | "cut";
  readonly error?: Error;
}

export class FaultStore implements ObjectStore {
  readonly #store: ObjectStore;
  readonly #fault: Fault | undefined;
  readonly #calls: string[] = [];

  /** @param fault  without one, the store only counts */
  constructor(store: ObjectStore, fault?: Fault) {
    this.#store = store;
    this.#fault = fault;
  }

  get location(): string {
    return this.#store.location;
  }

  get metadata(): ObjectStore["metadata"] {
    return this.#store.metadata;
  }

  /** Each call so far, as `name key`: how many faults there are to try. */
  get calls(): readonly string[] {
    return this.#calls;
  }

  urlOf(key: ObjectKey): string {
    return this.#store.urlOf(key);
  }

  putIfAbsent(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<"created" | "exists"> {
    return this.#call(`putIfAbsent ${key}`, () => this.#store.putIfAbsent(key, body, metadata));
  }

  replace(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<void> {
    return this.#call(`replace ${key}`, () => this.#store.replace(key, body, metadata));
  }

  get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    return this.#call(`get ${key}`, () => this.#store.get(key, maxBytes));
  }

  async open(key: ObjectKey): Promise<OpenedObject> {
    const name = `open ${key}`;
    const fault = this.#faultOf(name);
    if (fault?.when === "before") throw this.#errorOf(fault, name);
    const { metadata, chunks } = await this.#store.open(key);
    return { metadata, chunks: this.#faulty(name, fault, chunks) };
  }

  head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    return this.#call(`head ${key}`, () => this.#store.head(key));
  }

  upload(key: ObjectKey, metadata?: ObjectMetadata): ObjectUpload {
    const upload = this.#store.upload(key, metadata);
    return {
      write: (bytes) => this.#call(`upload.write ${key}`, () => upload.write(bytes)),
      complete: () => this.#call(`upload.complete ${key}`, () => upload.complete()),
      [Symbol.asyncDispose]: () => upload[Symbol.asyncDispose](),
    };
  }

  list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
    return this.#items(`list ${prefix}`, () => this.#store.list(prefix, after));
  }

  listLevel(
    prefix: string,
  ): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
    return this.#call(`listLevel ${prefix}`, () => this.#store.listLevel(prefix));
  }

  delete(keys: readonly ObjectKey[]): Promise<void> {
    return this.#call(`delete ${keys.join(" ")}`, () => this.#store.delete(keys));
  }

  listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    return this.#items(`listUnfinishedUploads ${prefix}`, () => this.#store.listUnfinishedUploads(prefix));
  }

  abortUpload(upload: UnfinishedUpload): Promise<void> {
    return this.#call(`abortUpload ${upload.key}`, () => this.#store.abortUpload(upload));
  }

  forCleanup(): ObjectStore {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#store[Symbol.asyncDispose]();
  }

  #faultOf(name: string): Fault | undefined {
    const number = this.#calls.push(name);
    return number === this.#fault?.atCall ? this.#fault : undefined;
  }

  #errorOf(fault: Fault, name: string): Error {
    return fault.error ?? new StorageError(`planned fault at call ${fault.atCall}: ${name}`);
  }

  async #call<Result>(name: string, work: () => Promise<Result>): Promise<Result> {
    const fault = this.#faultOf(name);
    if (!fault) return await work();
    if (fault.when === "after") await work();
    throw this.#errorOf(fault, name);
  }

  async *#items<Item>(name: string, work: () => AsyncIterable<Item>): AsyncIterable<Item> {
    const fault = this.#faultOf(name);
    if (fault?.when === "before") throw this.#errorOf(fault, name);
    yield* this.#faulty(name, fault, work());
  }

  async *#faulty<Item>(name: string, fault: Fault | undefined, items: AsyncIterable<Item>): AsyncIterable<Item> {
    for await (const item of items) {
      yield item;
      if (fault?.when === "cut") break;
    }
    if (fault) throw this.#errorOf(fault, name);
  }
}
