/** Repositories of every kind that this machine can have, as the environment in which wal-b finds them. */
import { ListMultipartUploadsCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { everyS3Server, type S3Credentials, type S3Server, s3ClientOf } from "./s3-server.ts";

export interface TestRepository {
  readonly name: string;
  /** With every right. */
  readonly env: Readonly<Record<string, string>>;
  /** With the rights that suit a database host: list, read, write, and not delete. The same for a directory. */
  readonly hostEnv: Readonly<Record<string, string>>;
  /** Those without the right to list: on S3, what is not there is answered like what may not be read. */
  blindEnv(): Promise<Readonly<Record<string, string>>>;
  /** Every key below the prefix, in order. */
  keys(): Promise<readonly string[]>;
}

/** A new prefix in a new versioned bucket. */
export async function s3Repository(server: S3Server): Promise<TestRepository> {
  const bucket = await server.createBucket({ versioned: true });
  const prefix = "databases/main";
  const environment = ({ accessKeyId, secretAccessKey, sessionToken }: S3Credentials) => ({
    WALE_S3_PREFIX: `s3://${bucket}/${prefix}`,
    AWS_ENDPOINT_URL_S3: server.endpoint,
    AWS_REGION: server.region,
    AWS_ACCESS_KEY_ID: accessKeyId,
    AWS_SECRET_ACCESS_KEY: secretAccessKey,
    ...(sessionToken && { AWS_SESSION_TOKEN: sessionToken }),
  });
  return {
    name: server.name,
    env: environment(server),
    hostEnv: environment(await server.createRestrictedUser(bucket)),
    blindEnv: async () => environment(await server.createRestrictedUser(bucket, { mayList: false })),
    keys: () => keysBelow(server, bucket, `${prefix}/`),
  };
}

/** In a directory that exists and belongs to the account that archives. */
export function directoryRepository(directory: string): TestRepository {
  const env = { WALB_FILE_PREFIX: directory };
  const keys = async () => [...new Bun.Glob("**/*").scanSync({ cwd: directory, dot: true })].sort();
  return { name: "directory", env, hostEnv: env, blindEnv: async () => env, keys };
}

/** One repository on each S3 server there is; stop() ends servers that were started for this. */
export async function everyS3Repository(): Promise<{
  readonly repositories: readonly TestRepository[];
  stop(): Promise<void>;
}> {
  const { servers, stop } = await everyS3Server();
  return { repositories: await Promise.all(servers.map(s3Repository)), stop };
}

/** Keys of uploads in the repository's bucket that were begun and neither completed nor aborted. */
export async function unfinishedUploads(server: S3Server, repository: TestRepository): Promise<readonly string[]> {
  const client = s3ClientOf(server);
  const [, Bucket] = /^s3:\/\/([^/]+)/.exec(repository.env["WALE_S3_PREFIX"] ?? "") ?? [];
  const { Uploads = [] } = await client.send(new ListMultipartUploadsCommand({ Bucket }));
  client.destroy();
  return Uploads.map(({ Key = "" }) => Key);
}

async function keysBelow(server: S3Server, bucket: string, prefix: string): Promise<readonly string[]> {
  const client = s3ClientOf(server);
  const keys: string[] = [];
  let ContinuationToken: string | undefined;
  do {
    const page = await client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix, ContinuationToken }));
    keys.push(...(page.Contents ?? []).map(({ Key = "" }) => Key.slice(prefix.length)));
    ContinuationToken = page.NextContinuationToken;
  } while (ContinuationToken);
  client.destroy();
  return keys.sort();
}
