/**
 * Real S3 servers for tests, on 127.0.0.1, from whatever this machine has:
 *
 *   1. the one that WALB_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY (and _REGION) name, and then no other;
 *   2. MinIO: by Docker Compose, or on PATH, or built once by Go into .cache/;
 *   3. Ceph's RADOS gateway, from Debian's packages.
 *
 * test/run.ts starts them once and hands their descriptions to the test files in WALB_TEST_S3_SERVERS; a file that runs by
 * itself starts its own.
 */
import {
  CreateBucketCommand,
  GetBucketPolicyCommand,
  PutBucketPolicyCommand,
  PutBucketVersioningCommand,
  S3Client,
} from "@aws-sdk/client-s3";
import { AssumeRoleCommand, STSClient } from "@aws-sdk/nested-clients/sts";
import { createCephUser, startCephRgw } from "./ceph-rgw.ts";
import { startComposeMinio } from "./compose.ts";
import { startMinio } from "./minio.ts";
import { ServerUnavailableError } from "./server-process.ts";

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

/** What fits into an environment variable. */
export interface S3ServerDescription extends S3Credentials {
  readonly name: string;
  readonly endpoint: string;
  readonly region: string;
  /** For radosgw-admin. */
  readonly cephConf?: string;
}

export interface S3Server extends S3ServerDescription {
  /** A new and empty one with a name of its own. */
  createBucket(options?: { readonly versioned?: boolean }): Promise<string>;
  /** Credentials that may read and write this bucket, list it unless that is false, and not delete. */
  createRestrictedUser(bucket: string, rights?: Rights): Promise<S3Credentials>;
}

export interface Rights {
  /** s3:ListBucket. Default: true. */
  readonly mayList?: boolean;
}

/** A started server; stop() ends it and leaves nothing behind. */
export interface RunningServer {
  readonly description: S3ServerDescription;
  stop(): Promise<void>;
}

export interface RunningServers {
  readonly servers: readonly S3ServerDescription[];
  stop(): Promise<void>;
}

/**
 * Starts every server that this machine can have, and says which it cannot.
 *
 * @throws Error  there is none, or one that is there does not start
 */
export async function startS3Servers(): Promise<RunningServers> {
  const given = serverOfEnvironment();
  if (given) return { servers: [given], stop: async () => {} };

  const tried = await Promise.allSettled([startAnyMinio(), startCephRgw()]);
  const started = tried.filter((result) => result.status === "fulfilled").map(({ value }) => value);
  const reasons = tried.filter((result) => result.status === "rejected").map(({ reason }) => reason as unknown);
  const stop = async () => void (await Promise.allSettled(started.map((server) => server.stop())));

  const broken = reasons.find((reason) => !(reason instanceof ServerUnavailableError));
  if (broken) {
    await stop();
    throw broken;
  }
  const lines = reasons.map((reason) => (reason instanceof Error ? reason.message : String(reason)));
  if (started.length === 0) {
    throw new Error(`the tests need an S3 server, and there is none:\n- ${lines.join("\n- ")}\n${HOW_TO_GET_ONE}`);
  }
  for (const line of lines) process.stderr.write(`not tested: ${line}\n`);
  return { servers: started.map(({ description }) => description), stop };
}

const HOW_TO_GET_ONE =
  "Install Docker, Go or MinIO, or set WALB_TEST_S3_ENDPOINT, WALB_TEST_S3_ACCESS_KEY and WALB_TEST_S3_SECRET_KEY.";

/** Every server of this run, for a test file: those that test/run.ts has started, else its own. Call stop() in afterAll. */
export async function everyS3Server(): Promise<{ readonly servers: readonly S3Server[]; stop(): Promise<void> }> {
  const shared = process.env["WALB_TEST_S3_SERVERS"];
  const { servers, stop } = shared
    ? { servers: JSON.parse(shared) as S3ServerDescription[], stop: async () => {} }
    : await startS3Servers();
  return { servers: servers.map(serverOf), stop };
}

/** One server, for a test that needs any. */
export async function anyS3Server(): Promise<{ readonly server: S3Server; stop(): Promise<void> }> {
  const { servers, stop } = await everyS3Server();
  return { server: servers[0] as S3Server, stop };
}

export function serverOf(description: S3ServerDescription): S3Server {
  return {
    ...description,
    createBucket: (options = {}) => createBucket(description, options),
    createRestrictedUser: (bucket, rights = {}) =>
      description.cephConf === undefined
        ? assumeRestrictedRole(description, bucket, rights)
        : createRestrictedCephUser(description, bucket, rights),
  };
}

/** A client of the SDK itself: what a test sets up or looks at must not depend on the code under test. */
export function s3ClientOf(server: S3ServerDescription, credentials: S3Credentials = server): S3Client {
  const { accessKeyId, secretAccessKey, sessionToken } = credentials;
  return new S3Client({
    endpoint: server.endpoint,
    region: server.region,
    forcePathStyle: true,
    credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) },
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
  });
}

function serverOfEnvironment(): S3ServerDescription | undefined {
  const { env } = process;
  const endpoint = env["WALB_TEST_S3_ENDPOINT"];
  if (!endpoint) return undefined;
  const accessKeyId = env["WALB_TEST_S3_ACCESS_KEY"];
  const secretAccessKey = env["WALB_TEST_S3_SECRET_KEY"];
  if (!accessKeyId || !secretAccessKey) {
    throw new Error("WALB_TEST_S3_ENDPOINT needs WALB_TEST_S3_ACCESS_KEY and WALB_TEST_S3_SECRET_KEY beside it");
  }
  return {
    name: "endpoint",
    endpoint,
    region: env["WALB_TEST_S3_REGION"] ?? "us-east-1",
    accessKeyId,
    secretAccessKey,
  };
}

async function startAnyMinio(): Promise<RunningServer> {
  const compose = await startComposeMinio();
  return compose ?? (await startMinio());
}

async function createBucket(
  server: S3ServerDescription,
  { versioned = false }: { readonly versioned?: boolean },
): Promise<string> {
  const Bucket = `wal-b-test-${crypto.randomUUID().slice(0, 18)}`;
  const client = s3ClientOf(server);
  try {
    await client.send(new CreateBucketCommand({ Bucket }));
    if (versioned) {
      const VersioningConfiguration = { Status: "Enabled" } as const;
      await client.send(new PutBucketVersioningCommand({ Bucket, VersioningConfiguration }));
    }
    return Bucket;
  } finally {
    client.destroy();
  }
}

interface Policy {
  readonly Version: string;
  readonly Statement: readonly object[];
}

/** What WAL-E's documentation gives to a database host: no s3:DeleteObject, and no right to abort an upload. */
function policyWithoutDelete(bucket: string, { mayList = true }: Rights, principal?: string): Policy {
  const who = principal === undefined ? {} : { Principal: { AWS: [principal] } };
  const allow = (actions: string[], resource: string) => ({
    Effect: "Allow",
    ...who,
    Action: actions,
    Resource: [resource],
  });
  return {
    Version: "2012-10-17",
    Statement: [
      ...(mayList ? [allow(["s3:ListBucket"], `arn:aws:s3:::${bucket}`)] : []),
      allow(["s3:GetObject", "s3:PutObject"], `arn:aws:s3:::${bucket}/*`),
    ],
  };
}

/** MinIO's security token service gives its own credentials a policy that takes rights away. */
async function assumeRestrictedRole(
  server: S3ServerDescription,
  bucket: string,
  rights: Rights,
): Promise<S3Credentials> {
  const { endpoint, region, accessKeyId, secretAccessKey } = server;
  const sts = new STSClient({ endpoint, region, credentials: { accessKeyId, secretAccessKey } });
  try {
    const RoleArn = "arn:aws:iam::000000000000:role/wal-b-test";
    const Policy = JSON.stringify(policyWithoutDelete(bucket, rights));
    const { Credentials } = await sts.send(new AssumeRoleCommand({ RoleArn, RoleSessionName: "wal-b-test", Policy }));
    if (!Credentials?.AccessKeyId || !Credentials.SecretAccessKey || !Credentials.SessionToken) {
      throw new Error(`${server.name} gave no temporary credentials`);
    }
    return {
      accessKeyId: Credentials.AccessKeyId,
      secretAccessKey: Credentials.SecretAccessKey,
      sessionToken: Credentials.SessionToken,
    };
  } finally {
    sts.destroy();
  }
}

async function createRestrictedCephUser(
  server: S3ServerDescription,
  bucket: string,
  rights: Rights,
): Promise<S3Credentials> {
  const user = await createCephUser(server.cephConf as string);
  const client = s3ClientOf(server);
  try {
    const policy = policyWithoutDelete(bucket, rights, `arn:aws:iam:::user/${user.name}`);
    // A bucket has one policy: what other users have in it stays.
    const before = await client.send(new GetBucketPolicyCommand({ Bucket: bucket })).catch((error: Error) => {
      if (error.name !== "NoSuchBucketPolicy") throw error;
      return { Policy: undefined };
    });
    const others = before.Policy === undefined ? [] : (JSON.parse(before.Policy) as Policy).Statement;
    const Policy = JSON.stringify({ ...policy, Statement: [...others, ...policy.Statement] });
    await client.send(new PutBucketPolicyCommand({ Bucket: bucket, Policy }));
    return { accessKeyId: user.accessKeyId, secretAccessKey: user.secretAccessKey };
  } finally {
    client.destroy();
  }
}
