/**
 * barman-cloud, one segment at a time: it starts Python for each, so that a backlog would take minutes and say the same.
 * Debian's package barman-cli-cloud.
 */
import { join } from "node:path";
import { type S3ServerDescription, serverOf } from "../../test/support/s3-server.ts";
import type { Missing, Peer } from "../peers/peer.ts";
import { expectSameFile, runOrThrow } from "../peers/place.ts";
import { removeAsRecovery, type WalHistory } from "./history.ts";
import { storedBelow } from "./s3.ts";

const NAME = "barman-cloud";
const SERVER_NAME = "bench";

export async function openBarman(
  s3: S3ServerDescription,
  { server, segments, directory }: WalHistory,
): Promise<Peer | Missing> {
  const [archive, restore] = ["barman-cloud-wal-archive", "barman-cloud-wal-restore"].map((name) => Bun.which(name));
  if (!archive || !restore) return { name: NAME, why: "barman-cloud-wal-archive is not installed" };

  const bucket = await serverOf(s3).createBucket();
  const env = {
    AWS_ACCESS_KEY_ID: s3.accessKeyId,
    AWS_SECRET_ACCESS_KEY: s3.secretAccessKey,
    AWS_DEFAULT_REGION: s3.region,
  };
  const place = ["--endpoint-url", s3.endpoint];
  const [, second = ""] = segments;
  const fetched = join(server.directory, "fetched by barman-cloud");
  let prefix = 0;
  // One for each push: it overwrites nothing, and nothing has to be deleted.
  const url = () => `s3://${bucket}/${prefix}`;
  return {
    name: `${NAME}, S3 (${s3.name})`,
    version: (await runOrThrow(server, [archive, "--version"])).trim(),
    trials: {
      pushSegmentToS3: {
        env,
        get command() {
          return [archive, ...place, "--gzip", url(), SERVER_NAME, join(directory, second)];
        },
        async prepare() {
          prefix++;
        },
        storedBytes: () => storedBelow(s3, bucket, `${prefix}/`),
      },
      fetchSegmentFromS3: {
        env,
        get command() {
          return [restore, ...place, url(), SERVER_NAME, second, fetched];
        },
        prepare: () => removeAsRecovery(fetched),
        check: () => expectSameFile(fetched, join(directory, second)),
      },
    },
  };
}
