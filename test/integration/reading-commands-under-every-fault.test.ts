/**
 * A fault at the n-th request of a command that only reads the store (or marks a backup in it), for every n: it succeeds with the
 * same outcome as without, or fails with the reason, and a restored directory has no pg_control unless it is whole.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { partName } from "../../src/repository/keys.ts";
import { exitCodesOf, faultsAt, SWEEP_LIMIT_MS, SWEEPS_ALL, stepOn } from "../support/every-request.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { FAULTS } from "../support/faults.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import { everyS3Server, type S3Server } from "../support/s3-server.ts";
import { putBackup, putWal, storeOf } from "../support/stored-backup.ts";
import { runWalb } from "../support/walb.ts";
import { controlFile } from "../unit/postgres/control-file.ts";

const { servers, stop: stopS3 } = await everyS3Server();
let places: readonly Place[];
let directory: string;

interface Place {
  readonly repository: TestRepository;
  readonly proxy: FaultProxy;
}

const large = crypto.getRandomValues(Buffer.alloc(60_000));
const text = (content: string) => new TextEncoder().encode(content);
const FILES = {
  [partName(1)]: { PG_VERSION: text("18\n"), "base/1/1259": new Uint8Array(large) },
  [partName(2)]: { "base/1/1249": text("attributes"), "base/1/1255": text("functions") },
  "pg_control.tar.zst": { "global/pg_control": controlFile({}) },
  "backup_label.tar.zst": { backup_label: text("START WAL LOCATION\n") },
};

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "walb-faults-"));
  places = await Promise.all(servers.map(fill));
});
afterAll(async () => {
  for (const { proxy } of places ?? []) await proxy[Symbol.asyncDispose]();
  await stopS3();
  await rm(directory, { recursive: true, force: true });
});

async function fill(s3: S3Server): Promise<Place> {
  const repository = await s3Repository(s3);
  await using store = await storeOf(s3, repository);
  const zstd = await openZstd(3);
  for (const [at, start] of ["000000010000000000000002", "000000010000000000000005"].entries())
    await putBackup(store, zstd, { startSegment: start, parts: FILES, finishedAt: new Date((at + 1) * 1000) });
  const segments = [2, 3, 4, 5, 6].map((n) => `00000001000000000000000${n}`);
  await putWal(store, zstd, segments);
  return { repository, proxy: await startFaultProxy(s3.endpoint) };
}

interface Reading {
  readonly name: string;
  readonly args: (target: string) => readonly string[];
  /** What its outcome is recognized by: the same under every fault that it survives. */
  readonly outcome: (stdout: string, target: string) => unknown;
}

/** Path → content of what was restored. */
async function restored(_: string, target: string) {
  const paths = Object.values(FILES).flatMap((files) => Object.entries(files));
  return await Promise.all(
    paths.map(async ([path, wanted]) => [path, (await readFile(join(target, path))).equals(wanted)]),
  );
}

const READINGS: readonly Reading[] = [
  { name: "backup-fetch", args: (target) => ["backup-fetch", target, "LATEST"], outcome: restored },
  { name: "restore", args: (target) => ["restore", target, "--to", "immediate"], outcome: restored },
  { name: "backup-list", args: () => ["backup-list", "--json"], outcome: (stdout) => JSON.parse(stdout) },
  {
    name: "verify",
    args: () => ["verify", "--all", "--wal", "--json"],
    outcome: (stdout) => stdout.replaceAll(/"(\w+_time|seconds)": .*/g, ""),
  },
];

async function run(args: readonly string[], { repository, proxy }: Place) {
  return await runWalb(args, {
    env: {
      ...repository.hostEnv,
      AWS_ENDPOINT_URL_S3: proxy.url,
      WALB_RETRY_DEADLINE: "10s",
      WALB_IDLE_TIMEOUT: "2s",
      WALB_DOWNLOAD_CONCURRENCY: "2",
    },
  });
}

/** The other servers differ in what they answer, and not in what is made of it. */
const CASES = READINGS.flatMap((reading) =>
  servers.map((server, at) => ({ ...reading, at, from: server.name, share: at === 0 ? 3 : 1 })),
);

test.each(CASES)(
  "$name from $from: the same outcome, or the reason",
  async ({ name, from, at, share, args, outcome }) => {
    const place = places[at] as Place;
    const { repository, proxy } = place;
    const target = join(directory, name);
    await proxy.arm();
    const undisturbed = await run(args(target), place);
    expect({ stderr: undisturbed.stderr, exitCode: undisturbed.exitCode }).toMatchObject({ exitCode: 0 });
    const wanted = await outcome(undisturbed.stdout, target);
    const keys = await repository.keys();
    await rm(target, { recursive: true, force: true });

    let trials = 0;
    let requests = 0;
    for (let [n, isOver] = [1, false]; !isOver; n += stepOn(at, 2)) {
      for (const named of faultsAt(n, share)) {
        const { name: fault } = named;
        await proxy.arm(named.fault, { from: n, times: 1 });
        const { exitCode, stdout, stderr } = await run(args(target), place);
        trials++;
        if (proxy.answered === 0) isOver = true;
        else requests = n;
        const what = { n, fault, request: proxy.requests[n - 1], exitCode, stderr };
        const allowed = isOver ? [0] : exitCodesOf(named);
        const isDamage = allowed.length > 1;
        expect({ ...what, allowed, isAllowed: allowed.includes(exitCode ?? -1) }).toEqual({
          ...what,
          allowed,
          isAllowed: true,
        });
        // What the list lacks is told.
        const lacks = isDamage && name === "backup-list" && stderr.includes("WARNING: backup");
        if (exitCode !== 0)
          expect({ ...what, starts: existsSync(join(target, "global/pg_control")) }).toEqual({
            ...what,
            starts: false,
          });
        else if (!lacks)
          expect({ ...what, outcome: await outcome(stdout, target) }).toEqual({ ...what, outcome: wanted });
        await rm(target, { recursive: true, force: true });
      }
    }
    expect(await repository.keys()).toEqual(keys);
    console.log(
      `${name} from ${from}: ${trials} trials at ${requests} requests, ${SWEEPS_ALL ? "all" : share} of ${FAULTS.length} faults each`,
    );
  },
  SWEEP_LIMIT_MS,
);
