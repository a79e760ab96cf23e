/**
 * An ObjectStore in an S3 bucket: AWS and the services that speak like it.
 *
 * What the store promises stands in object-store.ts; what is known about S3 stands here. Requests are retried by
 * retry.ts and judged by s3-answer.ts, never by the SDK.
 *
 * Memory: (uploads open + partsInFlight) × partSizeBytes for writing; one network buffer for each stream being read.
 */
import { readFile } from "node:fs/promises";
import { rootCertificates } from "node:tls";
import {
  type _Object,
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  type GetObjectCommandOutput,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  type ListObjectsV2CommandOutput,
  PutObjectCommand,
  S3Client,
  type S3ClientConfig,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { AccessError, Failure, IntegrityError, NotFoundError, reasonOf, StorageError, UsageError } from "../errors.ts";
import { abortableDelay } from "../system/delay.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { HttpHandler } from "./http-handler.ts";
import { type MultipartRequests, MultipartUpload, PartSlots } from "./multipart-upload.ts";
import { checkKey, compareKeys } from "./object-key.ts";
import type {
  ObjectEntry,
  ObjectKey,
  ObjectMetadata,
  ObjectStore,
  ObjectUpload,
  StoredObject,
  UnfinishedUpload,
} from "./object-store.ts";
import { Attempts, delayedStop, retrying } from "./retry.ts";
import { answerOf, BadAnswerError, EXPIRED_CODES, failureOf, mayHaveHappened, verdictOf } from "./s3-answer.ts";
import { needsPathStyle } from "./s3-endpoint.ts";

const MiB = 1024 * 1024;

export interface S3StoreOptions {
  readonly bucket: string;
  /** Without slashes at its ends; empty for the whole bucket. */
  readonly prefix: string;
  readonly signal: AbortSignal;
  readonly log: Log;

  /** Default: the SDK's chain, then us-east-1. */
  readonly region?: string | undefined;
  /** A URL. Default: the SDK's chain, then AWS. */
  readonly endpoint?: string | undefined;
  /** Default: where a bucket's name cannot be part of a host's (see s3-endpoint.ts). */
  readonly forcePathStyle?: boolean | undefined;
  /** PEM, trusted besides the built-in authorities. */
  readonly caCertFile?: string | undefined;

  /** Default: the SDK's chain. */
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly sessionToken?: string | undefined;

  readonly storageClass?: string | undefined;
  readonly serverSideEncryption?: "AES256" | "aws:kms" | undefined;
  readonly kmsKeyId?: string | undefined;
  /** SSE-C: 32 bytes, needed for reading too. */
  readonly customerKey?: Uint8Array | undefined;

  /**
   * How a store decides that a key is free: by itself ("require"), or asked by HEAD first, which leaves a moment for a second
   * writer ("emulate"); "look first" does both, for a store of which it is not known whether it heeds the condition.
   */
  readonly conditionalWrites?: "require" | "emulate" | "look first" | undefined;

  /** Default 5 minutes. */
  readonly retryDeadlineMs?: number | undefined;
  /** Default 10 seconds. */
  readonly connectTimeoutMs?: number | undefined;
  /** Default 60 seconds. */
  readonly idleTimeoutMs?: number | undefined;
  /** At least 5 MiB. Default 16 MiB. */
  readonly partSizeBytes?: number | undefined;
  /** Default 4. */
  readonly partsInFlight?: number | undefined;

  readonly now?: (() => number) | undefined;
  readonly random?: (() => number) | undefined;
  readonly delay?: ((ms: number, signal: AbortSignal) => Promise<void>) | undefined;
}

/** S3's limits: "Amazon S3 multipart upload limits" and DeleteObjects in its API Reference. */
const MIN_PART_BYTES = 5 * MiB;
const MAX_KEYS_PER_DELETE = 1000;
/** A page of 1,000 of the longest keys, every byte of them escaped, is smaller. */
const MAX_XML_BYTES = 32 * MiB;
/** What a stop by signal still gets for taking back what was begun. */
const CLEANUP_MS = 5000;
const DELETES_AT_ONCE = 8;
/** Our own mark on an object: tells whether an upload whose answer got lost is the one that made it. */
const WRITE_ID = "wal-b-write-id";

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
  return new S3Store(options, authorities);
}

async function readCertificates(path: string): Promise<string> {
  try {
    const text = await readFile(path, "utf8");
    if (!text.includes("-----BEGIN CERTIFICATE-----")) throw new Error("it holds no PEM certificate");
    return text;
  } catch (cause) {
    throw new UsageError(`cannot use certificate file "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}

interface Listing {
  readonly prefix: string;
  readonly delimiter?: string;
  readonly after?: ObjectKey | undefined;
}

type Encryption = { SSECustomerAlgorithm?: string; SSECustomerKey?: string };

class S3Store implements ObjectStore {
  readonly location: string;
  readonly #options: S3StoreOptions;
  readonly #authorities: readonly string[];
  readonly #client: S3Client;
  readonly #bucket: string;
  /** Empty, or ending in "/". */
  readonly #prefix: string;
  readonly #slots: PartSlots;
  /** Needed to read as well as to write. */
  readonly #customerKey: Encryption;

  constructor(
    options: S3StoreOptions,
    authorities: readonly string[],
    client = new S3Client(clientConfig(options, authorities)),
  ) {
    const { bucket, prefix, customerKey, partsInFlight = 4 } = options;
    this.#options = options;
    this.#bucket = bucket;
    this.#prefix = prefix === "" ? "" : `${prefix}/`;
    this.location = `s3://${bucket}${prefix && `/${prefix}`}`;
    this.#authorities = authorities;
    this.#client = client;
    this.#slots = new PartSlots(Math.max(1, partsInFlight));
    this.#customerKey = customerKey
      ? { SSECustomerAlgorithm: "AES256", SSECustomerKey: Buffer.from(customerKey).toString("base64") }
      : {};
  }

  urlOf(key: ObjectKey): string {
    return `s3://${this.#bucket}/${this.#prefix}${key}`;
  }

  async putIfAbsent(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<"created" | "exists"> {
    const writeId = crypto.randomUUID();
    const put = { ...this.#object(key, metadata, writeId), Body: body };
    if (this.#looksFirst && (await this.#exists(key))) return "exists";
    return await this.#createOnce(key, writeId, (condition) =>
      this.#client.send(new PutObjectCommand({ ...put, ...condition })),
    );
  }

  async replace(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<void> {
    const put = { ...this.#object(key, metadata, undefined), Body: body };
    await this.#ask(`could not write "${this.urlOf(key)}"`, (abort) =>
      this.#client.send(new PutObjectCommand(put), abort),
    );
  }

  async get(key: ObjectKey, maxBytes: number): Promise<StoredObject> {
    const { sizeBytes, metadata, chunks } = await this.#open(key);
    if (sizeBytes > maxBytes) {
      await chunks.return(undefined);
      throw new IntegrityError(`"${this.urlOf(key)}" is too large`, {
        detail: `It has ${sizeBytes} bytes; at most ${maxBytes} are expected.`,
      });
    }
    const body = new Uint8Array(sizeBytes);
    let at = 0;
    for await (const chunk of chunks) {
      body.set(chunk, at);
      at += chunk.byteLength;
    }
    return { body, metadata };
  }

  async *stream(key: ObjectKey): AsyncIterable<Uint8Array> {
    const { chunks } = await this.#open(key);
    yield* chunks;
  }

  async head(key: ObjectKey): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
    checkKey(key);
    const action = `could not read "${this.urlOf(key)}"`;
    const where = { Bucket: this.#bucket, Key: this.#prefix + key, ...this.#customerKey };
    const found = await this.#ask(action, async (abort) => {
      try {
        return await this.#client.send(new HeadObjectCommand(where), abort);
      } catch (error) {
        const { status, code } = answerOf(error);
        if (status === undefined || status >= 500 || code !== undefined) throw error;
        // An answer to HEAD has no body and so no code: NoSuchKey and NoSuchBucket look the same. GET tells them apart.
        const { Body } = await this.#client.send(new GetObjectCommand({ ...where, Range: "bytes=0-0" }), abort);
        await discard(Body);
        throw new BadAnswerError(`HEAD was answered with ${status}, but the object can be read`);
      }
    });
    return {
      key,
      sizeBytes: sizeOf(found.ContentLength),
      lastModified: found.LastModified ?? new Date(0),
      metadata: withoutWriteId(found.Metadata),
    };
  }

  upload(key: ObjectKey, metadata: ObjectMetadata = {}): ObjectUpload {
    checkKey(key);
    const { partSizeBytes = 16 * MiB, signal } = this.#options;
    const requests = this.#multipartRequests(key, metadata);
    return new MultipartUpload(requests, { partSizeBytes, slots: this.#slots, signal });
  }

  async *list(prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
    let last = "";
    for await (const page of this.#pages({ prefix, after })) {
      for (const entry of page.Contents ?? []) {
        const object = this.#entryOf(entry, prefix);
        // What follows relies on the order (a directory bucket of S3 Express has none).
        if (last !== "" && compareKeys(last, object.key) >= 0) {
          throw new StorageError(`could not list "${this.urlOf(prefix)}"`, {
            detail: `The store does not list in order: "${object.key}" came after "${last}".`,
          });
        }
        last = object.key;
        // A store may not know StartAfter.
        if (after === undefined || compareKeys(object.key, after) > 0) yield object;
      }
    }
  }

  async listLevel(
    prefix: string,
  ): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
    const objects: ObjectEntry[] = [];
    const folders: string[] = [];
    for await (const page of this.#pages({ prefix, delimiter: "/" })) {
      for (const entry of page.Contents ?? []) objects.push(this.#entryOf(entry, prefix));
      for (const { Prefix } of page.CommonPrefixes ?? []) folders.push(this.#relative(Prefix, prefix));
    }
    return { objects, folders };
  }

  async delete(keys: readonly ObjectKey[]): Promise<void> {
    keys.forEach(checkKey);
    const refused: Refusal[] = [];
    for (let at = 0; at < keys.length; at += MAX_KEYS_PER_DELETE) {
      refused.push(...(await this.#deleteBatch(keys.slice(at, at + MAX_KEYS_PER_DELETE))));
    }
    if (refused.length === 0) return;
    const shown = refused
      .slice(0, 5)
      .map(({ key, code, text }) => `"${this.urlOf(key)}" (${[code, text].filter(Boolean).join(": ")})`);
    const more = refused.length > shown.length ? ` and ${refused.length - shown.length} more` : "";
    const Kind = refused.every(({ code }) => code === "AccessDenied") ? AccessError : StorageError;
    throw new Kind(`could not delete ${refused.length} of ${keys.length} objects`, {
      detail: `Still there: ${shown.join(", ")}${more}.`,
      hint:
        Kind === AccessError
          ? "Deleting needs credentials that may s3:DeleteObject, and no retention rule on the bucket."
          : "Run the command again; objects that are already gone are skipped.",
    });
  }

  async *listUnfinishedUploads(prefix: string): AsyncIterable<UnfinishedUpload> {
    // MinIO lists nothing for a prefix that is not a whole key, so the whole bucket's uploads are asked for.
    const wanted = this.#prefix + prefix;
    const action = `could not list the unfinished uploads of "${this.urlOf(prefix)}"`;
    let after: { KeyMarker?: string; UploadIdMarker?: string } = {};
    for (;;) {
      const page = await this.#ask(action, (abort) =>
        this.#client.send(new ListMultipartUploadsCommand({ Bucket: this.#bucket, ...after }), abort),
      );
      for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
        if (!Key?.startsWith(wanted) || UploadId === undefined) continue;
        yield { key: Key.slice(this.#prefix.length), uploadId: UploadId, initiated: Initiated ?? new Date(0) };
      }
      if (!page.IsTruncated) return;
      const next = { KeyMarker: page.NextKeyMarker ?? "", UploadIdMarker: page.NextUploadIdMarker ?? "" };
      if (next.KeyMarker === after.KeyMarker && next.UploadIdMarker === after.UploadIdMarker) throw endless(action);
      after = next;
    }
  }

  async abortUpload({ key, uploadId }: UnfinishedUpload): Promise<void> {
    await this.#ask(`could not abort the upload of "${this.urlOf(key)}"`, (abort) =>
      this.#sendAbort(key, uploadId, abort),
    );
  }

  forCleanup(): ObjectStore {
    const options = { ...this.#options, signal: AbortSignal.timeout(CLEANUP_MS), retryDeadlineMs: CLEANUP_MS };
    return new S3Store(options, this.#authorities, this.#client);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#client.destroy();
  }

  get #looksFirst(): boolean {
    return (this.#options.conditionalWrites ?? "require") !== "require";
  }

  get #isEmulated(): boolean {
    return this.#options.conditionalWrites === "emulate";
  }

  /**
   * Sends a request with the condition that the key is free, until its outcome is known.
   *
   * A request whose answer got lost may have made the object: the next one is then told that the key is taken, by ourselves.
   */
  async #createOnce(
    key: ObjectKey,
    writeId: string,
    send: (condition: { IfNoneMatch?: string }, abort: { abortSignal: AbortSignal }) => Promise<unknown>,
  ): Promise<"created" | "exists"> {
    const condition = this.#isEmulated ? {} : { IfNoneMatch: "*" };
    const action = `could not write "${this.urlOf(key)}"`;
    let isUncertain = false;
    return await this.#ask(action, async (abort) => {
      try {
        await send(condition, abort);
        return "created";
      } catch (error) {
        const { status, code } = answerOf(error);
        if (status === 412 || (code === "NoSuchUpload" && isUncertain)) {
          if (isUncertain && (await this.#isOurs(key, writeId))) return "created";
          if (status === 412) return "exists";
        }
        if (status === 501) throw noConditionalWrites(action, error);
        isUncertain ||= mayHaveHappened(error);
        throw error;
      }
    });
  }

  async #isOurs(key: ObjectKey, writeId: string): Promise<boolean> {
    const where = { Bucket: this.#bucket, Key: this.#prefix + key, ...this.#customerKey };
    const abort = { abortSignal: this.#options.signal };
    const { Metadata } = await this.#client.send(new HeadObjectCommand(where), abort);
    return Metadata?.[WRITE_ID] === writeId;
  }

  async #exists(key: ObjectKey): Promise<boolean> {
    try {
      await this.head(key);
      return true;
    } catch (error) {
      if (error instanceof NotFoundError) return false;
      throw error;
    }
  }

  #object(key: ObjectKey, metadata: ObjectMetadata, writeId: string | undefined) {
    checkKey(key);
    const { storageClass, serverSideEncryption, kmsKeyId } = this.#options;
    return {
      Bucket: this.#bucket,
      Key: this.#prefix + key,
      Metadata: { ...metadata, ...(writeId ? { [WRITE_ID]: writeId } : {}) },
      ...(storageClass ? { StorageClass: storageClass as "STANDARD" } : {}),
      ...(serverSideEncryption ? { ServerSideEncryption: serverSideEncryption } : {}),
      ...(kmsKeyId ? { SSEKMSKeyId: kmsKeyId } : {}),
      ...this.#customerKey,
    };
  }

  #multipartRequests(
    key: ObjectKey,
    metadata: ObjectMetadata,
  ): MultipartRequests<{ PartNumber: number; ETag: string }> {
    const writeId = crypto.randomUUID();
    const where = { Bucket: this.#bucket, Key: this.#prefix + key };
    const action = `could not write "${this.urlOf(key)}"`;
    return {
      putWhole: (body) => this.putIfAbsent(key, body, metadata),

      begin: async () => {
        // An upload whose name never arrives cannot be aborted, so a stop waits a moment for this answer.
        using stop = delayedStop(this.#options.signal, CLEANUP_MS);
        const begin = async (abort: { abortSignal: AbortSignal }) => {
          const request = new CreateMultipartUploadCommand(this.#object(key, metadata, writeId));
          const { UploadId } = await this.#client.send(request, abort);
          if (!UploadId) throw new BadAnswerError("the store began an upload without a name");
          return UploadId;
        };
        return await this.#ask(action, begin, stop.signal);
      },

      sendPart: (uploadId, PartNumber, Body, signal) =>
        this.#ask(
          action,
          async (abort) => {
            const part = { ...where, ...this.#customerKey, UploadId: uploadId, PartNumber, Body };
            const { ETag } = await this.#client.send(new UploadPartCommand(part), abort);
            if (!ETag) throw new BadAnswerError("the store took a part without an ETag");
            return { PartNumber, ETag };
          },
          signal,
        ),

      complete: async (UploadId, Parts) => {
        // Ceph RGW 16.2 ignores If-None-Match here and overwrites (measured): asking first keeps what is there.
        if (await this.#exists(key)) return "exists";
        const all = { ...where, ...this.#customerKey, UploadId, MultipartUpload: { Parts: [...Parts] } };
        return await this.#createOnce(key, writeId, (condition, abort) =>
          this.#client.send(new CompleteMultipartUploadCommand({ ...all, ...condition }), abort),
        );
      },

      abort: async (uploadId) => {
        const signal = AbortSignal.timeout(CLEANUP_MS);
        try {
          await this.#ask("could not abort", (abort) => this.#sendAbort(key, uploadId, abort), signal, CLEANUP_MS);
        } catch (error) {
          this.#options.log.warning(`could not abort the upload of "${this.urlOf(key)}"`, {
            detail: error instanceof Failure && error.detail ? error.detail : `${reasonOf(error)}.`,
            hint: 'Its parts take up space until "wal-b delete garbage --confirm" removes them, with credentials that may delete.',
          });
        }
      },
    };
  }

  async #sendAbort(key: ObjectKey, UploadId: string, abort: { abortSignal: AbortSignal }): Promise<void> {
    try {
      await this.#client.send(
        new AbortMultipartUploadCommand({ Bucket: this.#bucket, Key: this.#prefix + key, UploadId }),
        abort,
      );
    } catch (error) {
      if (answerOf(error).code !== "NoSuchUpload") throw error;
    }
  }

  /** Begins to read; the chunks resume by range, on the same version of the object. */
  async #open(key: ObjectKey): Promise<{
    sizeBytes: number;
    metadata: ObjectMetadata;
    chunks: AsyncGenerator<Uint8Array, void, undefined>;
  }> {
    checkKey(key);
    const { signal } = this.#options;
    const action = `could not read "${this.urlOf(key)}"`;
    const where = { Bucket: this.#bucket, Key: this.#prefix + key, ...this.#customerKey };
    const first = await this.#ask(action, (abort) => this.#client.send(new GetObjectCommand(where), abort));
    const sizeBytes = sizeOf(first.ContentLength);
    const { ETag } = first;

    const resume = async (at: number): Promise<GetObjectCommandOutput> => {
      const rest = { ...where, Range: `bytes=${at}-`, ...(ETag ? { IfMatch: ETag } : {}) };
      const found = await this.#client.send(new GetObjectCommand(rest), { abortSignal: signal }).catch((error) => {
        if (answerOf(error).code !== "NoSuchKey") throw error;
        // It was there, so this is no proof that it never existed.
        throw new StorageError(action, { detail: "The object was deleted while it was being read.", cause: error });
      });
      const range = /^bytes (\d+)-/.exec(found.ContentRange ?? "");
      // A server that ignores Range sends everything again.
      if (range?.[1] !== String(at)) {
        await discard(found.Body);
        throw new BadAnswerError(`asked for the bytes from ${at} on, got "${found.ContentRange ?? "everything"}"`);
      }
      return found;
    };

    const read = async function* (this: S3Store): AsyncGenerator<Uint8Array, void, undefined> {
      const attempts = new Attempts(this.#retryOptions(signal));
      let body: unknown = first.Body;
      let at = 0;
      for (;;) {
        try {
          body ??= (await resume(at)).Body;
          for await (const chunk of body as AsyncIterable<Uint8Array>) {
            at += chunk.byteLength;
            if (at > sizeBytes)
              throw new StorageError(action, {
                detail: `The store sent more than the ${sizeBytes} bytes it announced.`,
              });
            attempts.progress();
            yield chunk;
          }
          if (at === sizeBytes) return;
          throw new BadAnswerError(`the object has ${sizeBytes} bytes, the store sent ${at}`);
        } catch (error) {
          body = undefined;
          if (at === sizeBytes && !(error instanceof Failure)) return;
          await attempts.again(error).catch((last) => {
            throw signal.aborted ? signal.reason : this.#failure(action, last, attempts);
          });
        }
      }
    };
    return { sizeBytes, metadata: withoutWriteId(first.Metadata), chunks: read.call(this) };
  }

  async *#pages({ prefix, delimiter, after }: Listing): AsyncIterable<ListObjectsV2CommandOutput> {
    const action = `could not list "${this.urlOf(prefix)}"`;
    let token: string | undefined;
    for (;;) {
      const page: ListObjectsV2CommandOutput = await this.#ask(action, (abort) =>
        this.#client.send(
          new ListObjectsV2Command({
            Bucket: this.#bucket,
            Prefix: this.#prefix + prefix,
            ...(delimiter ? { Delimiter: delimiter } : {}),
            ...(after === undefined ? {} : { StartAfter: this.#prefix + after }),
            ...(token === undefined ? {} : { ContinuationToken: token }),
          }),
          abort,
        ),
      );
      yield page;
      if (!page.IsTruncated) return;
      if (!page.NextContinuationToken || page.NextContinuationToken === token) throw endless(action);
      token = page.NextContinuationToken;
    }
  }

  #entryOf({ Key, Size, LastModified }: _Object, prefix: string): ObjectEntry {
    return { key: this.#relative(Key, prefix), sizeBytes: sizeOf(Size), lastModified: LastModified ?? new Date(0) };
  }

  /** A store that lists what was not asked for must not make us delete it. */
  #relative(key: string | undefined, prefix: string): string {
    if (key?.startsWith(this.#prefix + prefix)) return key.slice(this.#prefix.length);
    throw new StorageError(`could not list "${this.urlOf(prefix)}"`, {
      detail: `The store answered with ${JSON.stringify(key?.slice(0, 200))}, which is not below it.`,
    });
  }

  /** A DeleteObjects that removed nothing still answers 200; each refusal is listed in Errors. */
  async #deleteBatch(keys: readonly ObjectKey[]): Promise<readonly Refusal[]> {
    const action = `could not delete ${keys.length} objects below "${this.location}"`;
    // MD5 is what S3 asked for before it knew other checksums; every service understands it.
    const Delete = { Quiet: true, Objects: keys.map((key) => ({ Key: this.#prefix + key })) };
    const batch = { Bucket: this.#bucket, Delete, ChecksumAlgorithm: "MD5" as const };
    try {
      const { Errors = [] } = await this.#ask(action, async (abort) => {
        const answer = await this.#client.send(new DeleteObjectsCommand(batch), abort);
        const passing = answer.Errors?.find(({ Code }) => Code === "InternalError" || Code === "SlowDown");
        if (passing) throw new BadAnswerError(`${passing.Code} for "${passing.Key}"`);
        return answer;
      });
      return Errors.filter(({ Code }) => Code !== "NoSuchKey").map(({ Key = "", Code = "", Message = "" }) => ({
        key: Key.slice(this.#prefix.length),
        code: Code,
        text: Message,
      }));
    } catch (error) {
      // MinIO refuses key by key, Ceph RGW the whole batch (measured).
      if (answerOf(causeOf(error)).code === "AccessDenied")
        return keys.map((key) => ({ key, code: "AccessDenied", text: "" }));
      if (!isNotImplemented(error)) throw error;
      return await this.#deleteOneByOne(keys);
    }
  }

  async #deleteOneByOne(keys: readonly ObjectKey[]): Promise<readonly Refusal[]> {
    const refused: Refusal[] = [];
    await forEachAtOnce(DELETES_AT_ONCE, keys, async (key) => {
      const where = { Bucket: this.#bucket, Key: this.#prefix + key };
      try {
        await this.#ask(`could not delete "${this.urlOf(key)}"`, (abort) =>
          this.#client.send(new DeleteObjectCommand(where), abort),
        );
      } catch (error) {
        if (error instanceof NotFoundError) return;
        if (!(error instanceof AccessError)) throw error;
        refused.push({ key, code: "AccessDenied", text: "" });
      }
    });
    return refused;
  }

  /**
   * Sends until it succeeds or trying makes no more sense. @throws a Failure, or the reason of the signal.
   * @param signal  in place of the store's
   */
  async #ask<Answer>(
    action: string,
    work: (abort: { abortSignal: AbortSignal }) => Promise<Answer>,
    signal: AbortSignal = this.#options.signal,
    deadlineMs?: number,
  ): Promise<Answer> {
    let attempts: Attempts | undefined;
    let isRenewed = false;
    try {
      return await retrying(this.#retryOptions(signal, deadlineMs), async (all) => {
        attempts = all;
        try {
          return await work({ abortSignal: signal });
        } catch (error) {
          if (isRenewed || !EXPIRED_CODES.has(answerOf(error).code ?? "") || !(await this.#renewCredentials()))
            throw error;
          isRenewed = true;
          return await work({ abortSignal: signal });
        }
      });
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw this.#failure(action, error, attempts);
    }
  }

  /** @returns whether there are others now */
  async #renewCredentials(): Promise<boolean> {
    const provider = this.#client.config.credentials as (options?: {
      forceRefresh?: boolean;
    }) => Promise<{ sessionToken?: string }>;
    const old = await provider();
    const renewed = await provider({ forceRefresh: true });
    return renewed.sessionToken !== old.sessionToken;
  }

  #retryOptions(signal: AbortSignal, deadlineMs?: number) {
    const {
      log,
      retryDeadlineMs = 300_000,
      now = () => performance.now(),
      random = Math.random,
      delay = abortableDelay,
    } = this.#options;
    return {
      deadlineMs: deadlineMs ?? retryDeadlineMs,
      signal,
      now,
      random,
      delay,
      verdictOf,
      onRetry: (error: unknown, waitMs: number) => {
        const { status, code } = answerOf(error);
        log.debug(
          `asking ${this.location} again in ${Math.round(waitMs)} ms: ${[status, code].filter(Boolean).join(" ") || "no answer"}`,
        );
      },
    };
  }

  #failure(action: string, error: unknown, attempts: Attempts | undefined): unknown {
    const { endpoint, secretAccessKey, sessionToken } = this.#options;
    return failureOf(error, {
      action,
      bucket: this.#bucket,
      endpoint: endpoint === undefined ? undefined : new URL(endpoint).origin,
      attempts: attempts?.failures ?? 1,
      elapsedMs: attempts?.failingForMs ?? 0,
      secrets: [secretAccessKey, sessionToken, this.#customerKey.SSECustomerKey].filter((text) => text !== undefined),
    });
  }
}

interface Refusal {
  readonly key: ObjectKey;
  readonly code: string;
  readonly text: string;
}

function clientConfig(options: S3StoreOptions, trustedCertificates: readonly string[]): S3ClientConfig {
  const { bucket, region, endpoint, accessKeyId, secretAccessKey, sessionToken } = options;
  const { connectTimeoutMs = 10_000, idleTimeoutMs = 60_000 } = options;
  const requestHandler = new HttpHandler({ connectTimeoutMs, idleTimeoutMs, trustedCertificates });
  return {
    region: region ?? regionOfChain,
    ...(endpoint === undefined ? {} : { endpoint }),
    forcePathStyle: options.forcePathStyle ?? needsPathStyle(bucket, endpoint),
    ...(accessKeyId !== undefined && secretAccessKey !== undefined
      ? { credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) } }
      : {}),
    ...(accessKeyId === undefined && sessionToken !== undefined ? { credentials: chainWithToken(sessionToken) } : {}),
    // What the SDK's type wants beyond this (HTTP/2 and the like) is not called.
    requestHandler: requestHandler as unknown as NonNullable<S3ClientConfig["requestHandler"]>,
    maxAttempts: 1,
    // Older services refuse the checksums that the SDK adds by itself. The body's SHA-256 is part of the signature anyway.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    expectContinueHeader: false,
    streamCollector: collect,
  };
}

async function regionOfChain(): Promise<string> {
  try {
    return await new S3Client({}).config.region();
  } catch {
    return "us-east-1";
  }
}

/** AWS_SECURITY_TOKEN, WAL-E's name for the token, belongs to keys that the chain finds. */
function chainWithToken(sessionToken: string) {
  const chain = new S3Client({}).config.credentials;
  return async () => ({ ...(await chain()), sessionToken });
}

/** Collects the body of an answer that is no object. */
async function collect(body: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body) {
    size += chunk.byteLength;
    if (size > MAX_XML_BYTES) throw new BadAnswerError(`the answer is larger than ${MAX_XML_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function discard(body: unknown): Promise<void> {
  for await (const _ of (body ?? []) as AsyncIterable<unknown>) break;
}

function sizeOf(size: number | undefined): number {
  if (size !== undefined && Number.isSafeInteger(size) && size >= 0) return size;
  throw new BadAnswerError(`the store gave ${size} as the size of an object`);
}

function withoutWriteId(metadata: Record<string, string> | undefined): ObjectMetadata {
  const { [WRITE_ID]: _, ...own } = metadata ?? {};
  return own;
}

/** What the SDK threw, below the Failure that #ask() made of it. */
function causeOf(error: unknown): unknown {
  return error instanceof Failure ? error.cause : error;
}

function isNotImplemented(error: unknown): boolean {
  const { status, code } = answerOf(causeOf(error));
  return status === 501 || status === 405 || code === "NotImplemented" || code === "MethodNotAllowed";
}

function noConditionalWrites(action: string, cause: unknown): UsageError {
  return new UsageError(action, {
    detail: "The store does not implement If-None-Match, which keeps one writer from overwriting another.",
    hint: "Set WALB_S3_CONDITIONAL_WRITES=emulate to ask by HEAD first; two writers at the same moment then go unnoticed.",
    cause,
  });
}

function endless(action: string): StorageError {
  return new StorageError(action, { detail: "The store said that its list goes on, but not where." });
}
