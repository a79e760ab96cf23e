/**
 * A fault, or kill -9, at the n-th request of delete, for every n: what is listed is whole and has its WAL, what the plan keeps
 * stays, and running it again, with garbage for what has no sentinel any more, makes of it what the plan says.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { tmpdir } from "node:os";
import { CreateMultipartUploadCommand } from "@aws-sdk/client-s3";
import { openZstd } from "../../src/codec/zstd.ts";
import { backupKeys, backupNameOf, partKey, partName } from "../../src/repository/keys.ts";
import { type Environment, startWalb } from "../support/backups.ts";
import {
  exitCodesOf,
  faultsAt,
  killing,
  refused,
  SWEEP_LIMIT_MS,
  SWEEPS_ALL,
  stepOn,
  storeIsGone,
} from "../support/every-request.ts";
import { type Fault, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { FAULTS } from "../support/faults.ts";
import { s3Repository, type TestRepository, unfinishedUploads } from "../support/repositories.ts";
import { everyS3Server, type S3Server, s3ClientOf } from "../support/s3-server.ts";
import { putBackup, putWal, storeOf } from "../support/stored-backup.ts";
import { runWalb } from "../support/walb.ts";

const { servers, stop: stopS3 } = await everyS3Server();
let proxies: readonly FaultProxy[];

beforeAll(async () => {
  proxies = await Promise.all(servers.map(({ endpoint }) => startFaultProxy(endpoint)));
});
afterAll(async () => {
  for (const proxy of proxies ?? []) await proxy[Symbol.asyncDispose]();
  await stopS3();
});

const segment = (n: number) => `0000000100000000${String(n).padStart(8, "0")}`;

/** Two backups, what an unfinished one has left, an upload that was begun, and WAL from before the first on. */
async function fill(s3: S3Server): Promise<TestRepository> {
  const repository = await s3Repository(s3);
  await using store = await storeOf(s3, repository);
  const zstd = await openZstd(3);
  for (const n of [2, 4, 6]) {
    const parts = { [partName(1)]: { PG_VERSION: Buffer.from("18\n") } };
    await putBackup(store, zstd, { startSegment: segment(n), parts, finishedAt: new Date(n * 1000) });
  }
  await store.delete([backupKeys(backupNameOf(segment(6))).sentinel]);
  await putWal(store, zstd, [1, 2, 3, 4, 5, 6, 7].map(segment));
  const client = s3ClientOf(s3);
  const [, Bucket, prefix] = /^s3:\/\/([^/]+)\/(.*)$/.exec(repository.env["WALE_S3_PREFIX"] ?? "") ?? [];
  const Key = `${prefix}/${partKey(backupNameOf(segment(6)), partName(2))}`;
  await client.send(new CreateMultipartUploadCommand({ Bucket, Key }));
  client.destroy();
  return repository;
}

type Left = { readonly keys: readonly string[]; readonly uploads: readonly string[] };
const leftIn = async (s3: S3Server, repository: TestRepository): Promise<Left> => ({
  keys: await repository.keys(),
  uploads: await unfinishedUploads(s3, repository),
});

const GARBAGE = ["delete", "garbage", "--min-age", "0s", "--confirm"];
const SENTINEL = "_backup_stop_sentinel.json";

async function walb(args: readonly string[], env: Environment): Promise<void> {
  const { exitCode, stderr } = await runWalb(args, { env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr });
}

/** A backup that is listed has all that it had, and all WAL unless it is one that stays. */
function lackOfListed(before: readonly string[], now: readonly string[], final: readonly string[]): readonly string[] {
  return now
    .filter((key) => key.endsWith(SENTINEL))
    .flatMap((sentinel) => {
      const needsAllWal = !final.includes(sentinel);
      const isNeeded = (key: string) =>
        key.startsWith(sentinel.replace(SENTINEL, "/")) || (needsAllWal && key.startsWith("wal_005/"));
      return before.filter((key) => isNeeded(key) && !now.includes(key));
    });
}

interface Trouble {
  readonly name: string;
  readonly times: number;
  readonly exitCodes: readonly (number | null)[];
  fault(kill: () => void): Fault;
}

const TROUBLES: readonly Trouble[] = [
  { name: "refused once", times: 1, exitCodes: [77], fault: () => refused },
  { name: "the store is gone", times: Number.POSITIVE_INFINITY, exitCodes: [69], fault: storeIsGone },
  { name: "killed", times: 1, exitCodes: [null], fault: (kill) => killing("carried out", kill) },
];

/** One of the troubles after the other, and of all faults. */
function troublesAt(turn: number): readonly Trouble[] {
  const ours = SWEEPS_ALL ? TROUBLES : [TROUBLES[turn % TROUBLES.length] as Trouble];
  const others = faultsAt(turn, 1, BELIEVABLE).map((named) => {
    return { name: named.name, times: 1, exitCodes: exitCodesOf(named), fault: () => named.fault };
  });
  return [...ours, ...others];
}

/** A list in which a byte was changed on the way looks like any other: nobody can know, and TLS is against it. */
const BELIEVABLE = FAULTS.filter(({ name }) => name !== "a body with a byte changed");

/** Each on every server. */
const DELETIONS = [
  ["retain 1", ["delete", "retain", "1", "--confirm"]],
  ["garbage", GARBAGE],
  ["everything", ["delete", "everything", "--confirm"]],
] as const;
const CASES = DELETIONS.flatMap(([name, args]) => servers.map((s3, at) => ({ name, args, s3, at, on: s3.name })));

test.each(CASES)(
  "delete $name on $on: what is listed is whole, and running it again completes it",
  async ({ name, args, s3, at, on }) => {
    const proxy = proxies[at] as FaultProxy;
    const planned = await fill(s3);
    await walb(args, planned.env);
    await walb(GARBAGE, planned.env);
    const final = await leftIn(s3, planned);

    let [requests, trials, isOver] = [0, 0, false];
    for (let [n, turn] = [1, 1]; !isOver; n += stepOn(at, 4), turn++) {
      for (const trouble of troublesAt(turn)) {
        const repository = await fill(s3);
        const { keys: before } = await leftIn(s3, repository);
        const env = {
          ...repository.env,
          AWS_ENDPOINT_URL_S3: proxy.url,
          WALB_RETRY_DEADLINE: trouble.name === "the store is gone" ? "200ms" : "10s",
          WALB_IDLE_TIMEOUT: "2s",
        };
        let kill = () => {};
        await proxy.arm(
          trouble.fault(() => kill()),
          { from: n, times: trouble.times },
        );
        await using running = await startWalb({ account: undefined, directory: tmpdir(), env: {} }, args, env);
        kill = () => running.signal("SIGKILL");
        const { exitCode } = await running.ended();
        await proxy.settled();
        trials++;
        isOver = proxy.answered === 0;
        if (!isOver) requests = n;
        const what = { n, trouble: trouble.name, request: proxy.requests[n - 1], exitCode, stderr: running.stderr };
        const allowed = isOver ? [0] : trouble.exitCodes;
        expect({ ...what, isAllowed: allowed.includes(exitCode) }).toEqual({ ...what, isAllowed: true });

        const now = await leftIn(s3, repository);
        expect({ ...what, lost: final.keys.filter((key) => !now.keys.includes(key)) }).toEqual({ ...what, lost: [] });
        expect({ ...what, lacks: lackOfListed(before, now.keys, final.keys) }).toEqual({ ...what, lacks: [] });

        await walb(args, repository.env);
        await walb(GARBAGE, repository.env);
        expect({ ...what, ...(await leftIn(s3, repository)) }).toEqual({ ...what, ...final });
        if (isOver) break;
      }
    }
    console.log(`delete ${name} on ${on}: ${trials} trials at ${requests} requests, ${final.keys.length} objects stay`);
  },
  SWEEP_LIMIT_MS,
);
