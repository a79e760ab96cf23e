/**
 * What we need from a store of objects: the interface, and the promises every implementation keeps.
 *
 * test/contract/object-store.contract.ts runs the promises against S3, the local directory and the in-memory store.
 * Keys are relative to the prefix the store was opened with and never begin with "/".
 */

import { NotFoundError, StorageError } from "../errors.ts";

export type ObjectKey = string;

/**
 * Small texts kept beside an object: lower-case keys, ASCII values, 2 KB in all. A directory keeps none, because a file
 * beside a WAL segment would look like one to WAL-G: there it reads back empty, and callers must do without.
 */
export type ObjectMetadata = Readonly<Record<string, string>>;

export interface ObjectEntry {
  readonly key: ObjectKey;
  readonly sizeBytes: number;
  readonly lastModified: Date;
}

export interface StoredObject {
  readonly body: Uint8Array;
  readonly metadata: ObjectMetadata;
}

export interface OpenedObject {
  readonly metadata: ObjectMetadata;
  /** Its bytes, in order, to be read once; resumed by range at the byte where a connection broke. */
  readonly chunks: AsyncIterable<Uint8Array>;
}

/** A multipart upload (or a temporary file) that was begun and neither completed nor aborted. */
export interface UnfinishedUpload {
  readonly key: ObjectKey;
  readonly uploadId: string;
  readonly initiated: Date;
}

/**
 * A large object being written. Nothing is visible under its key before complete(). Disposing it without complete()
 * aborts it; an abort that fails is reported as a warning, because it happens on the way out of another failure.
 */
export interface ObjectUpload extends AsyncDisposable {
  /**
   * Appends bytes, in order. Resolves when more may be given, so that the store's bound on memory holds, and when the memory of
   * these bytes may be used again.
   */
  write(bytes: Uint8Array): Promise<void>;

  /**
   * Makes the object visible unless the key is taken; the same atomic condition as putIfAbsent().
   *
   * @throws UploadLostError  here or in write(): the upload is gone, and may be made again
   */
  complete(): Promise<"created" | "exists">;
}

/** The store knows nothing any more of an upload that was begun: somebody has aborted it. There is no object of it. */
export class UploadLostError extends StorageError {}

export interface ObjectStore extends AsyncDisposable {
  /** Where the repository is, for messages: "s3://bucket/prefix" or "file:///directory". Never holds a secret. */
  readonly location: string;

  /** Whether it keeps the metadata that it is given: what it drops need not be computed. */
  readonly metadata: "kept" | "dropped";

  /** The full name of an object, for messages. */
  urlOf(key: ObjectKey): string;

  /**
   * Creates the object unless the key is taken. One atomic request (If-None-Match: *), so two writers cannot both
   * get "created". Durable when it returns. "exists" says that the key is taken, not by what: callers compare the content.
   * After a lost answer it may be the content of this very call.
   *
   * @throws StorageError  the request did not complete; the object may exist or not
   * @throws AccessError   the store refused it
   */
  putIfAbsent(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<"created" | "exists">;

  /** Creates or overwrites. Only for objects that describe a backup and may change (metadata.json), never for content. */
  replace(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<void>;

  /**
   * Reads a whole object into memory.
   *
   * @param maxBytes  an object larger than this is refused with IntegrityError before it is read: memory stays bounded
   *                  even when the archive is hostile
   * @throws NotFoundError  the store proved that the key is not there; never thrown for a timeout, a 403 or a missing bucket
   * @throws AccessError    the store refused it; without ListBucket S3 answers so for a missing key too
   * @throws StorageError   anything else that outlived the retries
   */
  get(key: ObjectKey, maxBytes: number): Promise<StoredObject>;

  /** Begins to read an object of any size, in one request. @throws as get(), also while its chunks are read */
  open(key: ObjectKey): Promise<OpenedObject>;

  /** Size, date and metadata without the content. @throws as get() */
  head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }>;

  /** Begins a large object. Several may be written at once. */
  upload(key: ObjectKey, metadata?: ObjectMetadata): ObjectUpload;

  /**
   * Every object whose key begins with `prefix`, in ascending order of the key's bytes. Empty when there is none.
   *
   * @param after  only keys behind this one; not looked at one by one where the store can begin there
   */
  list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry>;

  /**
   * One level below `prefix`, which ends with "/" (or is empty): its objects, and the "folders" (common prefixes, ending in "/").
   */
  listLevel(prefix: string): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }>;

  /**
   * Deletes objects; keys that are already gone count as deleted.
   *
   * @throws StorageError  some are still there; the message names them
   */
  delete(keys: readonly ObjectKey[]): Promise<void>;

  /** Uploads under `prefix` that were begun and never finished. */
  listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload>;

  abortUpload(upload: UnfinishedUpload): Promise<void>;

  /**
   * The same store for taking back what a failed or interrupted command began: deaf to the stop signal, and with little time.
   * Disposed with this one.
   */
  forCleanup(): ObjectStore;
}

/** Whether there is such an object. @throws AccessError, StorageError  as head(): nobody knows */
export async function isStored(store: Pick<ObjectStore, "head">, key: ObjectKey): Promise<boolean> {
  try {
    await store.head(key);
    return true;
  } catch (error) {
    if (error instanceof NotFoundError) return false;
    throw error;
  }
}
