/** Writing objects to a bucket: each at most once, also when the answer of the request that made it got lost. */
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  HeadObjectCommand,
  ListPartsCommand,
  PutObjectCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import { Failure, reasonOf, UsageError } from "../errors.ts";
import type { MultipartRequests } from "./multipart-upload.ts";
import type { ObjectKey, ObjectMetadata } from "./object-store.ts";
import { delayedStop } from "./retry.ts";
import { answerOf, BadAnswerError, checkHasETag, mayHaveHappened, UPLOAD_PERMISSIONS } from "./s3-answer.ts";
import { type Abort, CLEANUP_MS, type S3Bucket } from "./s3-bucket.ts";
import { objectExists, WRITE_ID } from "./s3-read.ts";

/** How objects are written. */
export interface S3WriteOptions {
  readonly storageClass?: string | undefined;
  readonly serverSideEncryption?: "AES256" | "aws:kms" | undefined;
  readonly kmsKeyId?: string | undefined;

  /**
   * How a store decides that a key is free: by itself ("require"), or asked by HEAD first, which leaves a moment for a second
   * writer ("emulate"); "look first" does both, for a store of which it is not known whether it heeds the condition.
   */
  readonly conditionalWrites?: "require" | "emulate" | "look first" | undefined;
}

type Creation = (condition: { IfNoneMatch?: string }, abort: Abort) => Promise<{ readonly ETag?: string | undefined }>;

interface Creating {
  readonly key: ObjectKey;
  readonly writeId: string;
  readonly send: Creation;
  readonly looksFirst: boolean;
}

export class S3Writer {
  readonly #bucket: S3Bucket;
  readonly #options: S3WriteOptions;

  constructor(bucket: S3Bucket, options: S3WriteOptions) {
    this.#bucket = bucket;
    this.#options = options;
  }

  async putIfAbsent(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<"created" | "exists"> {
    const bucket = this.#bucket;
    const writeId = crypto.randomUUID();
    const put = { ...this.#object(key, metadata, writeId), Body: body };
    if (this.#looksFirst && (await objectExists(bucket, key))) return "exists";
    const send: Creation = (condition, abort) =>
      bucket.client.send(new PutObjectCommand({ ...put, ...bucket.checksumOf(body), ...condition }), abort);
    return await this.#createOnce({ key, writeId, send, looksFirst: this.#looksFirst });
  }

  async replace(key: ObjectKey, body: Uint8Array, metadata: ObjectMetadata = {}): Promise<void> {
    const bucket = this.#bucket;
    const put = { ...this.#object(key, metadata, undefined), Body: body };
    await bucket.ask(`could not write "${bucket.urlOf(key)}"`, async (abort) =>
      checkHasETag(await bucket.client.send(new PutObjectCommand({ ...put, ...bucket.checksumOf(body) }), abort)),
    );
  }

  multipartRequests(key: ObjectKey, metadata: ObjectMetadata): MultipartRequests<{ PartNumber: number; ETag: string }> {
    const bucket = this.#bucket;
    const writeId = crypto.randomUUID();
    const where = bucket.addressOf(key);
    const action = `could not write "${bucket.urlOf(key)}"`;
    return {
      putWhole: (body) => this.putIfAbsent(key, body, metadata),

      begin: async () => {
        // An upload whose name never arrives cannot be aborted, so a stop waits a moment for this answer.
        using stop = delayedStop(bucket.signal, CLEANUP_MS);
        let answerIsLost = false;
        const begin = async (abort: Abort) => {
          const request = new CreateMultipartUploadCommand(this.#object(key, metadata, writeId));
          const { UploadId } = await bucket.client.send(request, abort).catch((error: unknown) => {
            answerIsLost ||= answerOf(error).status === undefined;
            throw error;
          });
          if (!UploadId) throw new BadAnswerError("the store began an upload without a name");
          return UploadId;
        };
        try {
          return await bucket.ask(action, begin, { signal: stop.signal });
        } finally {
          if (answerIsLost) {
            bucket.log.warning(`an upload of "${bucket.urlOf(key)}" may have been begun and lost`, {
              detail: "The store was asked to begin it, and no answer came.",
              hint: 'If so, "wal-b delete garbage --confirm" finds and removes it, with credentials that may delete.',
            });
          }
        }
      },

      sendPart: (uploadId, PartNumber, Body, signal) =>
        bucket.ask(
          action,
          async (abort) => {
            const address = { ...where, ...bucket.customerKey, UploadId: uploadId, PartNumber };
            const part = { ...address, Body, ...bucket.checksumOf(Body) };
            const { ETag } = await bucket.client.send(new UploadPartCommand(part), abort);
            if (!ETag) throw new BadAnswerError("the store took a part without an ETag");
            return { PartNumber, ETag };
          },
          { signal },
        ),

      complete: async (UploadId, Parts) => {
        // Ceph RGW 16.2 ignores If-None-Match here and overwrites (measured): asking first keeps what is there.
        if (await objectExists(bucket, key)) return "exists";
        const all = { ...where, ...bucket.customerKey, UploadId, MultipartUpload: { Parts: [...Parts] } };
        const send: Creation = (condition, abort) =>
          bucket.client.send(new CompleteMultipartUploadCommand({ ...all, ...condition }), abort);
        return await this.#createOnce({ key, writeId, send, looksFirst: true });
      },

      abort: async (uploadId) => {
        const cleanup = bucket.forCleanup();
        try {
          await cleanup.ask("could not abort", (abort) => sendAbort(cleanup, key, uploadId, abort));
        } catch (error) {
          bucket.log.warning(`could not abort the upload of "${bucket.urlOf(key)}"`, {
            detail: error instanceof Failure && error.detail ? error.detail : `${reasonOf(error)}.`,
            hint: 'Its parts take up space until "wal-b delete garbage --confirm" removes them, with credentials that may delete.',
          });
        }
      },
    };
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
   *
   * @param looksFirst  the store may not heed the condition. The caller has looked; before the request is sent again, minutes later
   *                    perhaps, it is looked again, because another writer may have been faster
   */
  async #createOnce({ key, writeId, send, looksFirst }: Creating): Promise<"created" | "exists"> {
    const condition = this.#isEmulated ? {} : { IfNoneMatch: "*" };
    const action = `could not write "${this.#bucket.urlOf(key)}"`;
    let isUncertain = false;
    let isRepeated = false;
    return await this.#bucket.ask(action, async (abort) => {
      if (looksFirst && isRepeated && (await objectExists(this.#bucket, key)))
        return (await this.#isOurs(key, writeId)) ? "created" : "exists";
      isRepeated = true;
      try {
        checkHasETag(await send(condition, abort));
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
    const { client, signal, customerKey } = this.#bucket;
    const where = { ...this.#bucket.addressOf(key), ...customerKey };
    const found = await client.send(new HeadObjectCommand(where), { abortSignal: signal });
    checkHasETag(found);
    return found.Metadata?.[WRITE_ID] === writeId;
  }

  #object(key: ObjectKey, metadata: ObjectMetadata, writeId: string | undefined) {
    const { storageClass, serverSideEncryption, kmsKeyId } = this.#options;
    return {
      ...this.#bucket.addressOf(key),
      Metadata: { ...metadata, ...(writeId ? { [WRITE_ID]: writeId } : {}) },
      ...(storageClass ? { StorageClass: storageClass as "STANDARD" } : {}),
      ...(serverSideEncryption ? { ServerSideEncryption: serverSideEncryption } : {}),
      ...(kmsKeyId ? { SSEKMSKeyId: kmsKeyId } : {}),
      ...this.#bucket.customerKey,
    };
  }
}

/** "204 No Content" of AbortMultipartUpload. */
const ABORTED = 204;

export async function abortUpload(bucket: S3Bucket, key: ObjectKey, uploadId: string): Promise<void> {
  const action = `could not abort the upload of "${bucket.urlOf(key)}"`;
  const send = (abort: Abort) => sendAbort(bucket, key, uploadId, abort);
  await bucket.ask(action, send, { permissionHint: UPLOAD_PERMISSIONS });
}

async function sendAbort(bucket: S3Bucket, key: ObjectKey, UploadId: string, abort: Abort): Promise<void> {
  const upload = { ...bucket.addressOf(key), UploadId };
  try {
    const { $metadata } = await bucket.client.send(new AbortMultipartUploadCommand(upload), abort);
    if ($metadata.httpStatusCode === ABORTED) return;
    // Another good status may be a proxy's page: only NoSuchUpload shows that the upload is gone.
    await bucket.client.send(new ListPartsCommand(upload), abort);
  } catch (error) {
    if (answerOf(error).code !== "NoSuchUpload") throw error;
    return;
  }
  throw new BadAnswerError("the upload was to be aborted, and is still there");
}

function noConditionalWrites(action: string, cause: unknown): UsageError {
  return new UsageError(action, {
    detail: "The store does not implement If-None-Match, which keeps one writer from overwriting another.",
    hint: "Set WALB_S3_CONDITIONAL_WRITES=emulate to ask by HEAD first; two writers at the same moment then go unnoticed.",
    cause,
  });
}
