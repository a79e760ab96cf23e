/**
 * A fault, or kill -9, at the n-th request of backup-push, for every n, on a stopped cluster, whose backup asks the store for the
 * same things every time: a backup is listed only when it is whole, what is left is found by `delete garbage`, and the next
 * backup, which gets the same name, succeeds.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type Environment, fetchBackup, type RunningWalb, startWalb } from "../support/backups.ts";
import {
  atEveryRequest,
  faultsAt,
  isAskedAgain,
  killing,
  refused,
  SWEEP_LIMIT_MS,
  SWEEPS_ALL,
  stepOn,
  storeIsGone,
} from "../support/every-request.ts";
import { type Fault, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { FAULTS, faultNamed } from "../support/faults.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository, unfinishedUploads } from "../support/repositories.ts";
import { everyS3Server, type S3Server } from "../support/s3-server.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { runWalb } from "../support/walb.ts";

interface Place extends AsyncDisposable {
  readonly s3: S3Server;
  readonly repository: TestRepository;
  readonly proxy: FaultProxy;
}

const { servers, stop: stopS3 } = await everyS3Server();
const OTHER_SERVERS = servers.slice(1).map(({ name }, at) => [name, at + 1] as const);
let places: readonly Place[];
let cluster: PostgresServer;

beforeAll(async () => {
  cluster = await startSmallCluster(6000);
  await cluster.stop();
  places = await Promise.all(
    servers.map(async (s3) => {
      const proxy = await startFaultProxy(s3.endpoint);
      return {
        s3,
        repository: await s3Repository(s3),
        proxy,
        [Symbol.asyncDispose]: () => proxy[Symbol.asyncDispose](),
      };
    }),
  );
});
afterAll(async () => {
  for (const place of places ?? []) await place[Symbol.asyncDispose]();
  await cluster?.[Symbol.asyncDispose]();
  await stopS3();
});

const first = () => places[0] as Place;

/** @param env  whose rights the credentials have */
const through = ({ proxy }: Place, env: Environment, retryDeadline: string): Environment => ({
  ...env,
  ...SMALL_PARTS,
  // One part after the other: then the n-th request is the same one in every run.
  WALB_UPLOAD_CONCURRENCY: "1",
  WALB_S3_CONDITIONAL_WRITES: "require",
  AWS_ENDPOINT_URL_S3: proxy.url,
  WALB_RETRY_DEADLINE: retryDeadline,
  WALB_CONNECT_TIMEOUT: "5s",
  WALB_IDLE_TIMEOUT: "2s",
});

/** @param onStart  gets what kills it */
async function push(env: Environment, onStart: (kill: () => void) => void = () => {}) {
  await using running: RunningWalb = await startWalb(
    cluster,
    ["backup-push", cluster.dataDirectory, "--while-offline"],
    env,
  );
  onStart(() => running.signal("SIGKILL"));
  const { exitCode, signal } = await running.ended();
  return { exitCode, signal, stderr: running.stderr };
}

async function walb({ repository }: Place, args: readonly string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await runWalb(args, { as: cluster, env: repository.env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr: expect.any(String) });
  return stdout;
}

const leftIn = async ({ s3, repository }: Place) => ({
  objects: await repository.keys(),
  uploads: await unfinishedUploads(s3, repository),
});
const NOTHING = { objects: [], uploads: [] };

/** It is whole; then it goes, and nothing else was there. @returns unfinished uploads beside it */
async function checkAndRemoveBackup(place: Place): Promise<number> {
  const directory = join(cluster.directory, "whole");
  await fetchBackup(cluster, place.repository.env, { directory, args: ["--blind-restore"] });
  await rm(directory, { recursive: true });
  await walb(place, ["delete", "everything", "--confirm"]);
  const { objects, uploads } = await leftIn(place);
  expect(objects).toEqual([]);
  if (uploads.length > 0) await collectGarbage(place);
  return uploads.length;
}

/** Everything that is left is shown, and goes. @returns how much it was */
async function collectGarbage(place: Place): Promise<number> {
  const { objects, uploads } = await leftIn(place);
  if (objects.length + uploads.length === 0) return 0;
  const shown = await walb(place, ["delete", "garbage", "--min-age", "0s"]);
  expect(shown.match(/^remove {2}base_.* unfinished: (\d+) objects/m)?.[1] ?? "0").toBe(String(objects.length));
  expect(shown.match(/^abort {3}upload of /gm)?.length ?? 0).toBe(uploads.length);
  await walb(place, ["delete", "garbage", "--min-age", "0s", "--confirm"]);
  expect(await leftIn(place)).toEqual(NOTHING);
  return objects.length + uploads.length;
}

test(
  "refused once: 77, and everything is taken back",
  async () => {
    const { repository, proxy } = first();
    // What runs beside it has to be taken back, too.
    const env = { ...through(first(), repository.env, "1s"), WALB_UPLOAD_CONCURRENCY: "2" };
    const requests = await atEveryRequest(proxy, refused, {}, async (n) => {
      const { exitCode, stderr } = await push(env);
      const request = proxy.requests[n - 1];
      if (proxy.answered === 0 || isAskedAgain(request)) {
        expect({ n, request, exitCode, stderr }).toMatchObject({ n, exitCode: 0 });
        expect(await checkAndRemoveBackup(first())).toBe(0);
        return;
      }
      expect({ n, request, exitCode, stderr }).toMatchObject({
        n,
        exitCode: 77,
        stderr: expect.stringContaining("AccessDenied"),
      });
      expect({ n, errors: stderr.match(/^wal-b: ERROR: /gm)?.length, stderr }).toEqual({ n, errors: 1, stderr });
      expect({ n, request, ...(await leftIn(first())) }).toEqual({ n, request, ...NOTHING });
    });
    console.log(`refused once: at each of ${requests} requests`);
    expect(requests).toBeGreaterThan(12);
  },
  SWEEP_LIMIT_MS,
);

test(
  "refused once, and nothing may be deleted: what is left is told, and is garbage",
  async () => {
    const { repository, proxy } = first();
    const env = through(first(), repository.hostEnv, "1s");
    let found = 0;
    const requests = await atEveryRequest(proxy, refused, {}, async (n) => {
      const { exitCode, stderr } = await push(env);
      const request = proxy.requests[n - 1];
      if (proxy.answered === 0 || isAskedAgain(request)) return void (await checkAndRemoveBackup(first()));
      const left = await collectGarbage(first());
      const isTold = stderr.includes("delete garbage");
      expect({ n, request, exitCode, isTold, stderr }).toEqual({ n, request, exitCode: 77, isTold: left > 0, stderr });
      found += left;
    });
    console.log(
      `refused once, without the right to delete: at each of ${requests} requests, ${found} objects were left`,
    );
    expect(found).toBeGreaterThan(0);
  },
  SWEEP_LIMIT_MS,
);

const ENDS = [
  ["the store is gone from the n-th request on, which it still carries out", "gone"],
  ["killed when the n-th request has been carried out", "carried out"],
  // What is there is what the request before it has left.
  ...(SWEEPS_ALL ? [["killed when the n-th request arrives", "on arrival"] as const] : []),
] as const;

test.each(ENDS)(
  "%s: what is not listed is garbage",
  async (name, how) => {
    const { repository, proxy } = first();
    const env = through(first(), repository.env, "200ms");
    let [n, listed, left] = [0, 0, 0];
    do {
      n++;
      let kill = () => {};
      await proxy.arm(how === "gone" ? storeIsGone() : killing(how, () => kill()), { from: n });
      const ended = await push(env, (killIt) => {
        kill = killIt;
      });
      const request = proxy.requests[n - 1];
      await proxy.settled();
      const exitCode = proxy.answered === 0 ? 0 : how === "gone" ? 69 : null;
      expect({ n, request, ...ended }).toMatchObject({ n, exitCode });
      const isListed = (await repository.keys()).some((key) => key.endsWith("_backup_stop_sentinel.json"));
      if (isListed) {
        if (proxy.answered > 0) listed++;
        if (how === "gone" && proxy.answered > 0) expect(ended.stderr).toContain("then it is listed, and complete");
        await checkAndRemoveBackup(first());
      } else if ((await collectGarbage(first())) > 0) left++;
    } while (proxy.answered > 0);
    console.log(`${name}: ${n - 1} requests, ${left} with something left, ${listed} with the backup listed`);
    // It is there once the sentinel has been written, and not before.
    expect({ how, listed }).toEqual({ how, listed: how === "on arrival" ? 0 : 1 });
    expect(left).toBeGreaterThan(10);
  },
  SWEEP_LIMIT_MS,
);

test(
  "an answer is lost once: the backup succeeds, and an upload that may be left is told",
  async () => {
    const { repository, proxy } = first();
    const env = through(first(), repository.env, "10s");
    let left = 0;
    const requests = await atEveryRequest(proxy, faultNamed("no answer"), {}, async (n) => {
      const { exitCode, stderr } = await push(env);
      const request = proxy.requests[n - 1];
      expect({ n, request, exitCode, stderr }).toMatchObject({ n, exitCode: 0 });
      const uploads = await checkAndRemoveBackup(first());
      const isTold = stderr.includes("may have been begun and lost");
      expect({ n, request, isTold, stderr }).toEqual({ n, request, isTold: uploads > 0, stderr });
      left += uploads;
    });
    console.log(`an answer lost once: at each of ${requests} requests, ${left} uploads begun twice`);
    expect(left).toBe(1);
  },
  SWEEP_LIMIT_MS,
);

test(
  "every other fault once: it is whole, or nothing is left",
  async () => {
    const { repository, proxy } = first();
    const env = through(first(), repository.env, "10s");
    const ended = new Map<string, number>();
    let trials = 0;
    for (let [n, isOver] = [1, false]; !isOver; n++) {
      for (const { name, fault, consequence } of faultsAt(n, 1)) {
        await proxy.arm(fault, { from: n, times: 1 });
        const { exitCode, stderr } = await push(env);
        isOver = proxy.answered === 0;
        trials++;
        const what = { n, name, request: proxy.requests[n - 1], exitCode, stderr };
        if (consequence === "asks again" || consequence === "none") expect(what).toEqual({ ...what, exitCode: 0 });
        ended.set(`${consequence} → ${exitCode}`, (ended.get(`${consequence} → ${exitCode}`) ?? 0) + 1);
        if (exitCode === 0) await checkAndRemoveBackup(first());
        else expect({ ...what, ...(await leftIn(first())) }).toEqual({ ...what, ...NOTHING });
      }
    }
    const shown = [...ended].map(([how, count]) => `${count} × ${how}`).join(", ");
    console.log(`${FAULTS.length} faults${SWEEPS_ALL ? ", each at every request" : ""}: ${trials} trials, ${shown}`);
  },
  SWEEP_LIMIT_MS,
);

type Trouble = { readonly name: "refused" | "killed" | "another fault"; fault(kill: () => void): Fault };

/** In a full sweep all at every request. */
function troublesInTurn(turn: number): readonly Trouble[] {
  const others = faultsAt(turn, 1).map(({ fault }): Trouble => ({ name: "another fault", fault: () => fault }));
  const troubles: readonly Trouble[] = [
    { name: "refused", fault: () => refused },
    { name: "killed", fault: (kill) => killing("carried out", kill) },
    ...others,
  ];
  return SWEEPS_ALL ? troubles : troubles.slice(turn % troubles.length).slice(0, 1);
}

test.each(OTHER_SERVERS)(
  "on %s: refused, killed and the rest in turn, and what is not listed is garbage",
  async (_, at) => {
    const place = places[at] as Place;
    const env = through(place, place.repository.env, "10s");
    const ended = new Map<string, number>();
    for (let [n, turn, isOver] = [1, 1, false]; !isOver; n += stepOn(at, 2), turn++) {
      for (const trouble of troublesInTurn(turn)) {
        let kill = () => {};
        await place.proxy.arm(
          trouble.fault(() => kill()),
          { from: n, times: 1 },
        );
        const { exitCode, signal, stderr } = await push(env, (killIt) => {
          kill = killIt;
        });
        await place.proxy.settled();
        isOver = place.proxy.answered === 0;
        const what = { n, trouble: trouble.name, request: place.proxy.requests[n - 1], exitCode, signal, stderr };
        const isListed = (await place.repository.keys()).some((key) => key.endsWith("_backup_stop_sentinel.json"));
        if (isOver) expect({ ...what, isListed }).toEqual({ ...what, exitCode: 0, isListed: true });
        else if (trouble.name === "killed") expect(what).toEqual({ ...what, signal: "SIGKILL" });
        else expect({ ...what, isListed }).toEqual({ ...what, isListed: exitCode === 0 });
        if (trouble.name === "refused" && !isOver && !isAskedAgain(what.request))
          expect(what).toEqual({ ...what, exitCode: 77 });
        if (isListed) await checkAndRemoveBackup(place);
        else if (trouble.name === "killed") await collectGarbage(place);
        else expect({ ...what, ...(await leftIn(place)) }).toEqual({ ...what, ...NOTHING });
        const how = `${trouble.name}: ${isListed ? "listed" : "not listed"}, ${exitCode ?? signal}`;
        ended.set(how, (ended.get(how) ?? 0) + 1);
      }
    }
    console.log(`on ${place.repository.name}: ${[...ended].map(([how, count]) => `${count} × ${how}`).join("; ")}`);
    expect(ended.size).toBeGreaterThan(2);
  },
  SWEEP_LIMIT_MS,
);

test(
  "the backup after all this starts",
  async () => {
    const { repository, proxy } = first();
    await proxy.arm();
    expect(await push(through(first(), repository.env, "10s"))).toMatchObject({ exitCode: 0 });
    const directory = join(cluster.directory, "restored");
    await fetchBackup(cluster, repository.env, { directory, args: ["--blind-restore"] });
    await using started = await startPostgresOn(directory, { settings: { archive_mode: "off" } });
    expect(await started.psql("SELECT count(*), sum(length(bytes)) FROM large")).toBe("6000|6000000");
  },
  SWEEP_LIMIT_MS,
);
