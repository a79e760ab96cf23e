/** Reading an object of a bucket: the chunks of a broken connection go on where they ended, on the same version. */
import { GetObjectCommand, type GetObjectCommandOutput, HeadObjectCommand } from "@aws-sdk/client-s3";
import { Failure, IntegrityError, StorageError } from "../errors.ts";
import { isStored, type ObjectEntry, type ObjectKey, type ObjectMetadata, type StoredObject } from "./object-store.ts";
import { Attempts } from "./retry.ts";
import { answerOf, BadAnswerError, checkHasETag } from "./s3-answer.ts";
import { type S3Bucket, sizeOf } from "./s3-bucket.ts";

/** Our own mark on an object: tells whether an upload whose answer got lost is the one that made it. */
export const WRITE_ID = "wal-b-write-id";

export async function readObject(bucket: S3Bucket, key: ObjectKey, maxBytes: number): Promise<StoredObject> {
  const { sizeBytes, metadata, chunks } = await openObject(bucket, key);
  if (sizeBytes > maxBytes) {
    await chunks.return(undefined);
    throw new IntegrityError(`"${bucket.urlOf(key)}" is too large`, {
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

export async function headObject(
  bucket: S3Bucket,
  key: ObjectKey,
): Promise<ObjectEntry & { readonly metadata: ObjectMetadata }> {
  const where = { ...bucket.addressOf(key), ...bucket.customerKey };
  const found = await bucket.ask(`could not read "${bucket.urlOf(key)}"`, async (abort) => {
    try {
      const answer = await bucket.client.send(new HeadObjectCommand(where), abort);
      checkHasETag(answer);
      sizeOf(answer.ContentLength);
      return answer;
    } catch (error) {
      const { status, code } = answerOf(error);
      if (error instanceof BadAnswerError || status === undefined || status >= 500 || code !== undefined) throw error;
      // An answer to HEAD has no body and so no code: NoSuchKey and NoSuchBucket look the same. GET tells them apart.
      const found = await bucket.client.send(new GetObjectCommand({ ...where, Range: "bytes=0-0" }), abort);
      await discard(found.Body);
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

export async function objectExists(bucket: S3Bucket, key: ObjectKey): Promise<boolean> {
  return await isStored({ head: (each) => headObject(bucket, each) }, key);
}

/** Begins to read. */
export async function openObject(
  bucket: S3Bucket,
  key: ObjectKey,
): Promise<{
  sizeBytes: number;
  metadata: ObjectMetadata;
  chunks: AsyncGenerator<Uint8Array, void, undefined>;
}> {
  const { signal } = bucket;
  const action = `could not read "${bucket.urlOf(key)}"`;
  const where = { ...bucket.addressOf(key), ...bucket.customerKey };
  const first = await bucket.ask(action, async (abort) => {
    const answer = await bucket.client.send(new GetObjectCommand(where), abort);
    try {
      checkHasETag(answer);
      sizeOf(answer.ContentLength);
      const { httpStatusCode } = answer.$metadata;
      if (httpStatusCode !== 200) throw new BadAnswerError(`GET of the whole was answered with ${httpStatusCode}`);
    } catch (error) {
      await discard(answer.Body);
      throw error;
    }
    return answer;
  });
  const sizeBytes = sizeOf(first.ContentLength);
  const { ETag } = first;

  const resume = async (at: number): Promise<GetObjectCommandOutput> => {
    const rest = { ...where, Range: `bytes=${at}-`, IfMatch: ETag };
    const send = () => bucket.client.send(new GetObjectCommand(rest), { abortSignal: signal });
    const found = await bucket.attempt(send).catch((error) => {
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

  const read = async function* (): AsyncGenerator<Uint8Array, void, undefined> {
    const attempts = new Attempts(bucket.retryOptions(signal));
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
          throw signal.aborted ? signal.reason : bucket.failure(action, last, attempts);
        });
      }
    }
  };
  return { sizeBytes, metadata: withoutWriteId(first.Metadata), chunks: read() };
}

async function discard(body: unknown): Promise<void> {
  for await (const _ of (body ?? []) as AsyncIterable<unknown>) break;
}

function withoutWriteId(metadata: Record<string, string> | undefined): ObjectMetadata {
  const { [WRITE_ID]: _, ...own } = metadata ?? {};
  return own;
}
