/**
 * An ObjectStore in an S3 bucket: AWS and the services that speak like it.
 *
 * What the store promises stands in object-store.ts; what is known about S3 stands in the files s3-*.ts. Requests are
 * retried by retry.ts and judged by s3-answer.ts, never by the SDK.
 *
 * Memory: (uploads open + partsInFlight) × partSizeBytes for writing; one network buffer for each stream being read.
 */
import { rootCertificates } from "node:tls";
import { UsageError } from "../errors.ts";
import { MultipartUpload, PartSlots } from "./multipart-upload.ts";
import { checkKey } from "./object-key.ts";
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
import { S3Bucket, type S3BucketOptions } from "./s3-bucket.ts";
import { clientFor, readCertificates } from "./s3-client.ts";
import { deleteObjects } from "./s3-delete.ts";
import { listLevel, listObjects, listUnfinishedUploads } from "./s3-list.ts";
import { headObject, openObject, readObject } from "./s3-read.ts";
import { abortUpload, type S3WriteOptions, S3Writer } from "./s3-write.ts";

const MiB = 1024 * 1024;
/** "Amazon S3 multipart upload limits". */
const MIN_PART_BYTES = 5 * MiB;

export interface S3StoreOptions extends S3BucketOptions, S3WriteOptions {
  /** PEM, trusted besides the built-in authorities. */
  readonly caCertFile?: string | undefined;
  /** At least 5 MiB. Default 16 MiB. */
  readonly partSizeBytes?: number | undefined;
  /** Default 4. */
  readonly partsInFlight?: number | undefined;
}

/**
 * Asks nothing of the store yet: the first request does.
 *
 * @throws UsageError  the options contradict each other, or the certificate file cannot be read
 */
export async function openS3Store(options: S3StoreOptions): Promise<ObjectStore> {
  const { partSizeBytes, customerKey, caCertFile, accessKeyId, secretAccessKey } = options;
  if (partSizeBytes !== undefined && partSizeBytes < MIN_PART_BYTES) {
    throw new UsageError(`a part of ${partSizeBytes} bytes is too small`, {
      detail: "S3 takes parts of 5 MiB or more.",
    });
  }
  if (customerKey !== undefined && customerKey.byteLength !== 32) {
    throw new UsageError(`the key for SSE-C has ${customerKey.byteLength} bytes`, { detail: "It must have 32." });
  }
  if ((accessKeyId === undefined) !== (secretAccessKey === undefined)) {
    throw new UsageError("an access key and its secret must be given together");
  }
  if (options.prefix !== "") checkKey(options.prefix);
  const authorities = caCertFile === undefined ? [] : [...rootCertificates, await readCertificates(caCertFile)];
  return new S3Store(options, new S3Bucket(options, clientFor(options, authorities)));
}

class S3Store implements ObjectStore {
  readonly location: string;
  readonly metadata = "kept";
  readonly #options: S3StoreOptions;
  readonly #bucket: S3Bucket;
  readonly #writer: S3Writer;
  readonly #slots: PartSlots;

  constructor(options: S3StoreOptions, bucket: S3Bucket) {
    this.#options = options;
    this.#bucket = bucket;
    this.#writer = new S3Writer(bucket, options);
    this.#slots = new PartSlots(Math.max(1, options.partsInFlight ?? 4));
    this.location = bucket.location;
  }

  urlOf(key: ObjectKey): string {
    return this.#bucket.urlOf(key);
  }

  putIfAbsent(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<"created" | "exists"> {
    return this.#writer.putIfAbsent(key, body, metadata);
  }

  replace(key: ObjectKey, body: Uint8Array, metadata?: ObjectMetadata): Promise<void> {
    return this.#writer.replace(key, body, metadata);
  }

  get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    return readObject(this.#bucket, key, maxBytes);
  }

  open(key: ObjectKey): Promise<OpenedObject> {
    return openObject(this.#bucket, key);
  }

  head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    return headObject(this.#bucket, key);
  }

  upload(key: ObjectKey, metadata: ObjectMetadata = {}): ObjectUpload {
    const { partSizeBytes = 16 * MiB } = this.#options;
    const requests = this.#writer.multipartRequests(key, metadata);
    return new MultipartUpload(requests, { partSizeBytes, slots: this.#slots, signal: this.#bucket.signal });
  }

  list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
    return listObjects(this.#bucket, prefix, after);
  }

  listLevel(
    prefix: string,
  ): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
    return listLevel(this.#bucket, prefix);
  }

  delete(keys: readonly ObjectKey[]): Promise<void> {
    return deleteObjects(this.#bucket, keys);
  }

  listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    return listUnfinishedUploads(this.#bucket, prefix);
  }

  abortUpload({ key, uploadId }: UnfinishedUpload): Promise<void> {
    return abortUpload(this.#bucket, key, uploadId);
  }

  forCleanup(): ObjectStore {
    return new S3Store(this.#options, this.#bucket.forCleanup());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#bucket.client.destroy();
  }
}
