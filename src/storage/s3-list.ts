/** Listing a bucket: in order, page by page, and nothing that was not asked for. */
import {
  type _Object,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  type ListObjectsV2CommandOutput,
} from "@aws-sdk/client-s3";
import { NotFoundError, StorageError } from "../errors.ts";
import { compareKeys } from "./object-key.ts";
import type { ObjectEntry, ObjectKey, UnfinishedUpload } from "./object-store.ts";
import { BadAnswerError, UPLOAD_PERMISSIONS } from "./s3-answer.ts";
import { type Abort, type S3Bucket, sizeOf } from "./s3-bucket.ts";

export async function* listObjects(bucket: S3Bucket, prefix: string, after?: ObjectKey): AsyncIterable<ObjectEntry> {
  let last = "";
  for await (const page of pagesOf(bucket, { prefix, after })) {
    for (const entry of page.Contents ?? []) {
      const object = entryOf(bucket, entry, prefix);
      // What follows relies on the order (a directory bucket of S3 Express has none).
      if (last !== "" && compareKeys(last, object.key) >= 0) {
        throw new StorageError(`could not list "${bucket.urlOf(prefix)}"`, {
          detail: `The store does not list in order: "${object.key}" came after "${last}".`,
        });
      }
      last = object.key;
      // A store may not know StartAfter.
      if (after === undefined || compareKeys(object.key, after) > 0) yield object;
    }
  }
}

export async function listLevel(
  bucket: S3Bucket,
  prefix: string,
): Promise<{ readonly objects: readonly ObjectEntry[]; readonly folders: readonly string[] }> {
  const objects: ObjectEntry[] = [];
  const folders: string[] = [];
  for await (const page of pagesOf(bucket, { prefix, delimiter: "/" })) {
    for (const entry of page.Contents ?? []) objects.push(entryOf(bucket, entry, prefix));
    for (const { Prefix } of page.CommonPrefixes ?? []) folders.push(relativeKey(bucket, Prefix, prefix));
  }
  return { objects, folders };
}

export async function* listUnfinishedUploads(bucket: S3Bucket, prefix: string): AsyncIterable<UnfinishedUpload> {
  // MinIO lists nothing for a prefix that is not a whole key, so the whole bucket's uploads are asked for.
  const wanted = bucket.prefix + prefix;
  const action = `could not list the unfinished uploads of "${bucket.urlOf(prefix)}"`;
  let after: { KeyMarker?: string; UploadIdMarker?: string } = {};
  for (;;) {
    const work = async (abort: Abort) => {
      const answer = await bucket.client.send(
        new ListMultipartUploadsCommand({ Bucket: bucket.name, ...after }),
        abort,
      );
      checkIsList(answer, "uploads");
      return answer;
    };
    const page = await askForList(bucket, action, work, { permissionHint: UPLOAD_PERMISSIONS });
    for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
      if (!Key?.startsWith(wanted) || UploadId === undefined) continue;
      yield { key: Key.slice(bucket.prefix.length), uploadId: UploadId, initiated: Initiated ?? new Date(0) };
    }
    if (!page.IsTruncated) return;
    const next = { KeyMarker: page.NextKeyMarker ?? "", UploadIdMarker: page.NextUploadIdMarker ?? "" };
    if (next.KeyMarker === after.KeyMarker && next.UploadIdMarker === after.UploadIdMarker) throw endless(action);
    after = next;
  }
}

interface Listing {
  readonly prefix: string;
  readonly delimiter?: string;
  readonly after?: ObjectKey | undefined;
}

async function* pagesOf(
  bucket: S3Bucket,
  { prefix, delimiter, after }: Listing,
): AsyncIterable<ListObjectsV2CommandOutput> {
  const action = `could not list "${bucket.urlOf(prefix)}"`;
  let token: string | undefined;
  for (;;) {
    const request = new ListObjectsV2Command({
      Bucket: bucket.name,
      Prefix: bucket.prefix + prefix,
      ...(delimiter ? { Delimiter: delimiter } : {}),
      ...(after === undefined ? {} : { StartAfter: bucket.prefix + after }),
      ...(token === undefined ? {} : { ContinuationToken: token }),
    });
    const page = await askForList(bucket, action, async (abort) => {
      const answer = await bucket.client.send(request, abort);
      checkIsList(answer, "objects");
      for (const { Size } of answer.Contents ?? []) sizeOf(Size);
      return answer;
    });
    yield page;
    if (!page.IsTruncated) return;
    if (!page.NextContinuationToken || page.NextContinuationToken === token) throw endless(action);
    token = page.NextContinuationToken;
  }
}

/**
 * "No such key" is the answer to a request for an object: of an endpoint that has a bucket's name in it already, the name of the bucket
 * behind it is taken for a key. Everything is absent there, and nothing of that is proved.
 */
async function askForList<Answer>(
  bucket: S3Bucket,
  action: string,
  work: (abort: Abort) => Promise<Answer>,
  options?: { permissionHint: string },
): Promise<Answer> {
  try {
    return await bucket.ask(action, work, options);
  } catch (cause) {
    if (!(cause instanceof NotFoundError)) throw cause;
    throw new StorageError(action, {
      detail: cause.detail,
      hint: "That is no answer to a list. Check that the endpoint does not have the bucket's name in it already.",
      cause,
    });
  }
}

/** A page with which a proxy answers 200 would be taken for a list of nothing, and that for absence. */
function checkIsList({ IsTruncated }: { readonly IsTruncated?: boolean | undefined }, of: "objects" | "uploads"): void {
  if (IsTruncated === undefined) throw new BadAnswerError(`the answer is no list of ${of}`);
}

function entryOf(bucket: S3Bucket, { Key, Size, LastModified }: _Object, prefix: string): ObjectEntry {
  return {
    key: relativeKey(bucket, Key, prefix),
    sizeBytes: sizeOf(Size),
    lastModified: LastModified ?? new Date(0),
  };
}

/** A store that lists what was not asked for must not make us delete it. */
function relativeKey(bucket: S3Bucket, key: string | undefined, prefix: string): string {
  if (key?.startsWith(bucket.prefix + prefix)) return key.slice(bucket.prefix.length);
  throw new StorageError(`could not list "${bucket.urlOf(prefix)}"`, {
    detail: `The store answered with ${JSON.stringify(key?.slice(0, 200))}, which is not below it.`,
  });
}

function endless(action: string): StorageError {
  return new StorageError(action, { detail: "The store said that its list goes on, but not where." });
}
