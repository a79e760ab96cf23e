/** An archive in a bucket, as a test sees it: by the SDK and zstd alone, so that it does not depend on the code under test. */
import { GetObjectCommand, ListMultipartUploadsCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { type S3Server, type S3ServerDescription, s3ClientOf } from "./s3-server.ts";

/** Where archives are in the bucket, unless a test has several in one. */
export const PREFIX = "some/path";

/** Of a command that archives there, and gives up soon. */
export function s3Environment(
  server: S3ServerDescription,
  bucket: string,
  prefix = PREFIX,
): Record<string, string | undefined> {
  return {
    WALB_FILE_PREFIX: undefined,
    WALB_S3_PREFIX: `s3://${bucket}/${prefix}`,
    AWS_ENDPOINT_URL: server.endpoint,
    AWS_REGION: server.region,
    AWS_ACCESS_KEY_ID: server.accessKeyId,
    AWS_SECRET_ACCESS_KEY: server.secretAccessKey,
    WALB_RETRY_DEADLINE: "1s",
    WALB_RECOVERY_RETRY_DEADLINE: "1s",
  };
}

/** Key → ETag of everything in the bucket, uploads that are not finished included. */
export async function bucketListing(server: S3Server, bucket: string, prefix = ""): Promise<Record<string, string>> {
  const client = s3ClientOf(server);
  try {
    const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix }));
    // MinIO lists nothing for a prefix that is not a whole key.
    const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket: bucket }));
    return Object.fromEntries([
      ...Contents.map(({ Key = "", ETag = "" }) => [Key, ETag] as const),
      ...Uploads.filter(({ Key }) => Key?.startsWith(prefix)).map(
        ({ Key = "", UploadId = "" }) => [Key, `unfinished ${UploadId}`] as const,
      ),
    ]);
  } finally {
    client.destroy();
  }
}

/** What `zstd` alone makes of the archived object. */
export async function archivedInBucket(server: S3Server, bucket: string, name: string): Promise<Uint8Array> {
  const client = s3ClientOf(server);
  try {
    const { Body } = await client.send(new GetObjectCommand({ Bucket: bucket, Key: `${PREFIX}/wal_005/${name}.zst` }));
    return Bun.zstdDecompressSync((await Body?.transformToByteArray()) as Uint8Array<ArrayBuffer>);
  } finally {
    client.destroy();
  }
}
