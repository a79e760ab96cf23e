/**
 * A refusal, and kill -9, in turn at the n-th request of backup-push on a running server, for every n: the server is out of backup
 * mode, nothing is listed that is not whole, and the next backup succeeds. What else can happen is shown on a stopped cluster.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import {
  contentOf,
  fetchBackup,
  listedBackups,
  outOfBackupMode,
  pushBackup,
  recover,
  startWalb,
} from "../support/backups.ts";
import { isAskedAgain, killing, refused, SWEEP_LIMIT_MS, SWEEPS_ALL } from "../support/every-request.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository, unfinishedUploads } from "../support/repositories.ts";
import { anyS3Server, type S3Server } from "../support/s3-server.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { runWalb } from "../support/walb.ts";

let s3: S3Server;
let stopS3: () => Promise<void>;
let repository: TestRepository;
let proxy: FaultProxy;
let server: PostgresServer;

beforeAll(async () => {
  ({ server: s3, stop: stopS3 } = await anyS3Server());
  repository = await s3Repository(s3);
  proxy = await startFaultProxy(s3.endpoint);
  // The archiver goes past the proxy, so that only backup-push meets the fault.
  server = await startSmallCluster(6000, repository.env);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await proxy?.[Symbol.asyncDispose]();
  await stopS3?.();
});

const contents = async () => (await repository.keys()).filter((key) => key.startsWith("basebackups_005/"));

async function walb(args: readonly string[]): Promise<void> {
  const { exitCode, stderr } = await runWalb(args, { as: server, env: repository.env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr });
}

/** How often WAL is looked for depends on how fast the server archives it. */
const KINDS = [
  ["what is written", (request: string) => !request.endsWith("?list")],
  ["what is listed", (request: string) => request.endsWith("?list")],
] as const;

test.each(KINDS)(
  "%s",
  async (kind, only) => {
    const env = {
      ...repository.env,
      ...SMALL_PARTS,
      WALB_UPLOAD_CONCURRENCY: "1",
      WALB_S3_CONDITIONAL_WRITES: "require",
      AWS_ENDPOINT_URL_S3: proxy.url,
      WALB_RETRY_DEADLINE: "1s",
    };
    const before = await contents();
    let [n, left] = [0, 0];
    do {
      n++;
      for (const trouble of SWEEPS_ALL ? ["refused", "killed"] : [n % 2 === 0 ? "refused" : "killed"]) {
        let kill = () => {};
        await proxy.arm(trouble === "refused" ? refused : killing("carried out", () => kill()), {
          from: n,
          times: 1,
          only,
        });
        await using running = await startWalb(server, ["backup-push", server.dataDirectory], env);
        kill = () => running.signal("SIGKILL");
        const { exitCode, signal } = await running.ended();
        await proxy.settled();
        await outOfBackupMode(server);
        const what = { n, trouble, request: proxy.requests.filter(only)[n - 1], stderr: running.stderr };
        const isListed = (await contents()).some(
          (key) => key.endsWith("_backup_stop_sentinel.json") && !before.includes(key),
        );
        const isOver = proxy.answered === 0 || (trouble === "refused" && isAskedAgain(what.request));
        if (isOver) expect({ ...what, exitCode, isListed }).toEqual({ ...what, exitCode: 0, isListed: true });
        else if (trouble === "refused")
          expect({ ...what, exitCode, isListed }).toEqual({ ...what, exitCode: 77, isListed: false });
        else
          expect({ ...what, signal, isListed }).toEqual({
            ...what,
            signal: "SIGKILL",
            isListed: what.request?.endsWith("sentinel.json") ?? false,
          });
        if (isListed) {
          await walb(["verify", "LATEST"]);
          await walb(["delete", "everything", "--confirm"]);
        } else if ((await contents()).length > before.length) {
          expect({ ...what, trouble }).toEqual({ ...what, trouble: "killed" });
          left++;
          await walb(["delete", "garbage", "--min-age", "0s", "--confirm"]);
        }
        expect({ ...what, left: await contents() }).toEqual({ ...what, left: before });
        expect({ ...what, uploads: await unfinishedUploads(s3, repository) }).toEqual({ ...what, uploads: [] });
      }
    } while (proxy.answered > 0);
    console.log(`${kind}: ${n - 1} requests, ${left} with something left`);
  },
  SWEEP_LIMIT_MS,
);

test(
  "the backup after all this restores every row",
  async () => {
    await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
    expect(await listedBackups(server, repository.env)).toHaveLength(1);
    const directory = join(server.directory, "restored");
    await fetchBackup(server, repository.env, { directory, args: ["--blind-restore"] });
    await using recovered = await recover(directory, repository.env);
    expect(await contentOf(recovered)).toEqual(await contentOf(server));
  },
  SWEEP_LIMIT_MS,
);
