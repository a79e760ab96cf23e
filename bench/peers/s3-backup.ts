/** Base backups in S3, on a server of this machine: wal-b, and barman-cloud-backup, which knows no other place. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { ListObjectsV2Command } from "@aws-sdk/client-s3";
import { type S3ServerDescription, s3ClientOf, serverOf, startS3Servers } from "../../test/support/s3-server.ts";
import type { Workload } from "../workload.ts";
import type { Missing, Peer } from "./peer.ts";
import { expectRestored, runOrThrow } from "./place.ts";
import { keepCopy } from "./wal-b.ts";

const ARCHIVE_TIMEOUT = "1min";
const JOBS = 2;

export interface S3Peers extends AsyncDisposable {
  readonly found: readonly (Peer | Missing)[];
}

/** @param built  the wal-b that is measured */
export async function openS3Peers(built: string, workload: Workload): Promise<S3Peers> {
  const started = await startS3Servers().catch((error: unknown) => String(error));
  const s3 = typeof started === "string" ? undefined : started.servers[0];
  if (typeof started === "string" || s3 === undefined) {
    const why = typeof started === "string" ? started : "there is no S3 server";
    return { found: [{ name: "in S3", why }], [Symbol.asyncDispose]: async () => {} };
  }
  return {
    found: [await openWalB(built, s3, workload), await openBarman(s3, workload)],
    [Symbol.asyncDispose]: () => started.stop(),
  };
}

async function openWalB(built: string, s3: S3ServerDescription, workload: Workload): Promise<Peer> {
  const { server } = workload;
  const place = await emptyPlace(s3);
  const binary = await keepCopy(built, await server.makeDirectory("program for S3"));
  const restored = join(server.directory, "restored from S3");
  /** As it was set last. The prefix changes, and with it what a command finds. */
  const env: Record<string, string> = {
    ...server.env,
    ...credentials(s3),
    AWS_ENDPOINT_URL_S3: s3.endpoint,
    WALB_ARCHIVE_TIMEOUT: ARCHIVE_TIMEOUT,
  };
  return {
    name: `wal-b, S3 (${s3.name})`,
    version: "",
    trials: {
      pushBackup: {
        command: [binary, "backup-push", server.dataDirectory],
        env,
        async prepare() {
          env["WALB_S3_PREFIX"] = place.next();
          const archiving = Object.entries({ ...credentials(s3), AWS_ENDPOINT_URL_S3: s3.endpoint });
          const words = [...archiving, ["WALB_S3_PREFIX", env["WALB_S3_PREFIX"]]].map(
            ([name, text]) => `${name}='${text}'`,
          );
          await workload.archiveWith(`${words.join(" ")} exec '${binary}' wal-push "$1"`);
        },
        storedBytes: () => place.bytes("basebackups_005/"),
      },
      fetchBackup: {
        command: [binary, "backup-fetch", restored, "LATEST"],
        env,
        prepare: () => rm(restored, { recursive: true, force: true }),
        check: () => expectRestored(restored, workload),
      },
    },
  };
}

/** gzip is the best that it can do; the WAL goes to a directory, where it costs nobody anything. */
async function openBarman(s3: S3ServerDescription, workload: Workload): Promise<Peer | Missing> {
  const name = `barman-cloud, gzip, S3 (${s3.name})`;
  const program = Bun.which("barman-cloud-backup");
  if (program === null) return { name, why: "barman-cloud-backup is not installed" };

  const { server } = workload;
  const wal = await server.makeDirectory("wal beside barman");
  const version = (await runOrThrow(server, [program, "--version"])).trim();
  const place = await emptyPlace(s3);
  const words = ["--endpoint-url", s3.endpoint, "--immediate-checkpoint", "-z", "-J", String(JOBS)];
  const connection = ["-h", server.socketDirectory, "-p", String(server.port), "-U", server.user];
  const command = [program, ...words, ...connection, place.next(), "main"];
  return {
    name,
    version,
    trials: {
      pushBackup: {
        command,
        env: { ...server.env, ...credentials(s3) },
        async prepare() {
          command[command.length - 2] = place.next();
          await workload.archiveWith(`exec cp "$1" '${wal}/'`);
        },
        storedBytes: () => place.bytes("main/base/"),
      },
    },
  };
}

const credentials = (s3: S3ServerDescription) => ({
  AWS_REGION: s3.region,
  AWS_DEFAULT_REGION: s3.region,
  AWS_ACCESS_KEY_ID: s3.accessKeyId,
  AWS_SECRET_ACCESS_KEY: s3.secretAccessKey,
});

/** A bucket, and in it an empty prefix for each run. */
async function emptyPlace(s3: S3ServerDescription) {
  const bucket = await serverOf(s3).createBucket();
  let run = 0;
  return {
    next: () => `s3://${bucket}/${++run}`,
    async bytes(below: string): Promise<number> {
      const client = s3ClientOf(s3);
      let bytes = 0;
      let ContinuationToken: string | undefined;
      do {
        const page = await client.send(
          new ListObjectsV2Command({ Bucket: bucket, Prefix: `${run}/${below}`, ContinuationToken }),
        );
        for (const { Size = 0 } of page.Contents ?? []) bytes += Size;
        ContinuationToken = page.NextContinuationToken;
      } while (ContinuationToken);
      client.destroy();
      return bytes;
    },
  };
}
