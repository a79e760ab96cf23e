/** How much lies in a bucket. */
import { paginateListObjectsV2 } from "@aws-sdk/client-s3";
import { type S3ServerDescription, s3ClientOf } from "../../test/support/s3-server.ts";

/** Sum of the sizes of all objects whose key begins with `prefix`. */
export async function storedBelow(server: S3ServerDescription, bucket: string, prefix: string): Promise<number> {
  const client = s3ClientOf(server);
  let sum = 0;
  for await (const { Contents = [] } of paginateListObjectsV2({ client }, { Bucket: bucket, Prefix: prefix }))
    for (const { Size = 0 } of Contents) sum += Size;
  client.destroy();
  return sum;
}
