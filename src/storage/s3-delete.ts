/** Deleting objects of a bucket: in batches where the store knows them, and what was refused is told key by key. */
import { type Delete, DeleteObjectCommand, DeleteObjectsCommand } from "@aws-sdk/client-s3";
import { AccessError, Failure, NotFoundError, StorageError } from "../errors.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { checkKey } from "./object-key.ts";
import type { ObjectKey } from "./object-store.ts";
import { answerOf, BadAnswerError } from "./s3-answer.ts";
import type { S3Bucket } from "./s3-bucket.ts";
import { objectExists } from "./s3-read.ts";

/** DeleteObjects in S3's API Reference. */
const MAX_KEYS_PER_DELETE = 1000;
const DELETES_AT_ONCE = 8;
/** "204 No Content" of DeleteObject; another good status may be a proxy's page. */
const DELETED = 204;

interface Refusal {
  readonly key: ObjectKey;
  readonly code: string;
  readonly text: string;
}

export async function deleteObjects(bucket: S3Bucket, keys: readonly ObjectKey[]): Promise<void> {
  keys.forEach(checkKey);
  const refused: Refusal[] = [];
  for (let at = 0; at < keys.length; at += MAX_KEYS_PER_DELETE) {
    refused.push(...(await deleteBatch(bucket, keys.slice(at, at + MAX_KEYS_PER_DELETE))));
  }
  if (refused.length === 0) return;
  const shown = refused
    .slice(0, 5)
    .map(({ key, code, text }) => `"${bucket.urlOf(key)}" (${[code, text].filter(Boolean).join(": ")})`);
  const more = refused.length > shown.length ? ` and ${refused.length - shown.length} more` : "";
  const Kind = refused.every(({ code }) => code === "AccessDenied") ? AccessError : StorageError;
  throw new Kind(`could not delete ${refused.length} of ${keys.length} objects`, {
    detail: `Still there: ${shown.join(", ")}${more}.`,
    hint:
      Kind === AccessError
        ? "Deleting needs credentials that may s3:DeleteObject, and no retention rule on the bucket."
        : 'Run the command again; "wal-b delete garbage" finds what is left of backups that are not listed any more.',
  });
}

/**
 * A DeleteObjects that removed nothing still answers 200; each refusal is listed in Errors. So each key has to be named, as
 * deleted or as refused: what names none may be a proxy's page, and a sentinel that it leaves lists what is deleted next.
 */
async function deleteBatch(bucket: S3Bucket, keys: readonly ObjectKey[]): Promise<readonly Refusal[]> {
  const action = `could not delete ${keys.length} objects below "${bucket.location}"`;
  const Delete = { Quiet: false, Objects: keys.map((key) => ({ Key: bucket.prefix + key })) };
  try {
    const { Errors = [] } = await bucket.ask(action, async (abort) => {
      const answer = await bucket.client.send(batchCommand(bucket.name, Delete), abort);
      const passing = answer.Errors?.find(({ Code }) => Code === "InternalError" || Code === "SlowDown");
      if (passing) throw new BadAnswerError(`${passing.Code} for "${passing.Key}"`);
      const named = new Set([...(answer.Deleted ?? []), ...(answer.Errors ?? [])].map(({ Key }) => Key));
      const unnamed = Delete.Objects.find(({ Key }) => !named.has(Key));
      if (unnamed) throw new BadAnswerError(`the answer does not say what became of "${unnamed.Key}"`);
      return answer;
    });
    return Errors.filter(({ Code }) => Code !== "NoSuchKey").map(({ Key = "", Code = "", Message = "" }) => ({
      key: Key.slice(bucket.prefix.length),
      code: Code,
      text: Message,
    }));
  } catch (error) {
    // MinIO refuses key by key, Ceph RGW the whole batch (measured).
    if (answerOf(causeOf(error)).code === "AccessDenied")
      return keys.map((key) => ({ key, code: "AccessDenied", text: "" }));
    if (!isNoBatchKnown(error)) throw error;
    return await deleteOneByOne(bucket, keys);
  }
}

/** The SDK names the checksum's algorithm here; S3 refuses that name where only Content-MD5 comes with it. */
const ALGORITHM_HEADER = "x-amz-sdk-checksum-algorithm";

function batchCommand(Bucket: string, Delete: Delete): DeleteObjectsCommand {
  // MD5 is what S3 asked for before it knew other checksums; every service understands it.
  const command = new DeleteObjectsCommand({ Bucket, Delete, ChecksumAlgorithm: "MD5" });
  // At the end of the step "build": the checksum is there, and the signature is not.
  command.middlewareStack.add(
    (next) => async (args) => {
      const { headers } = args.request as { readonly headers: Record<string, string> };
      delete headers[ALGORITHM_HEADER];
      return await next(args);
    },
    { step: "build", priority: "low", name: "withoutChecksumAlgorithm" },
  );
  return command;
}

async function deleteOneByOne(bucket: S3Bucket, keys: readonly ObjectKey[]): Promise<readonly Refusal[]> {
  const refused: Refusal[] = [];
  await forEachAtOnce(DELETES_AT_ONCE, keys, async (key) => {
    try {
      await bucket.ask(`could not delete "${bucket.urlOf(key)}"`, async (abort) => {
        const { $metadata } = await bucket.client.send(new DeleteObjectCommand(bucket.addressOf(key)), abort);
        if ($metadata.httpStatusCode === DELETED || !(await objectExists(bucket, key))) return;
        throw new BadAnswerError(`DELETE was answered with ${$metadata.httpStatusCode}, and the object is still there`);
      });
    } catch (error) {
      if (error instanceof NotFoundError) return;
      if (!(error instanceof AccessError)) throw error;
      refused.push({ key, code: "AccessDenied", text: "" });
    }
  });
  return refused;
}

/** What the SDK threw, below the Failure that ask() made of it. */
function causeOf(error: unknown): unknown {
  return error instanceof Failure ? error.cause : error;
}

/** Neither carried out nor refused for lack of a permission: each key is then asked for by itself, and has its own answer. */
function isNoBatchKnown(error: unknown): boolean {
  const { status, code } = answerOf(causeOf(error));
  if (status === 400 && (code === "InvalidRequest" || code === "InvalidArgument")) return true;
  return status === 501 || status === 405 || code === "NotImplemented" || code === "MethodNotAllowed";
}
