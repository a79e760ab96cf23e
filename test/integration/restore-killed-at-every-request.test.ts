/**
 * kill -9 at the n-th request of backup-fetch and of restore, for every n: no server starts on what is there, nothing is anywhere
 * else, and going on with --resume, or beginning again, makes of it what it would have become.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { startWalb } from "../support/backups.ts";
import { killing, SWEEP_LIMIT_MS, SWEEPS_ALL } from "../support/every-request.ts";
import { type Exchange, type Fault, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import { filesBelow, MARKER, withoutNotes } from "../support/restored-files.ts";
import { everyS3Server } from "../support/s3-server.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { runWalb } from "../support/walb.ts";

const { servers, stop } = await everyS3Server();
let cluster: PostgresServer;
let oid: string;
/** Of the tablespace, which goes beside the target. */
const places = () => [join(cluster.directory, "restored"), join(cluster.directory, "restored-space")] as const;

beforeAll(async () => {
  cluster = await startSmallCluster(3000);
  oid = await cluster.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
  await cluster.stop();
});
afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
  await stop();
});

/** Where a request is when the program is killed. */
const MOMENTS: readonly (readonly [string, (kill: () => void) => Fault])[] = [
  ["when it arrives", (kill) => killing("on arrival", kill)],
  ["in the middle of its answer", (kill) => inTheMiddle(kill)],
];

function inTheMiddle(kill: () => void): Fault {
  return async (exchange: Exchange) => {
    const answer = await exchange.pass();
    const { "content-length": length = String(answer.body.byteLength) } = answer.headers;
    const headers = { ...answer.headers, "content-length": length };
    await exchange.send({ ...answer, headers, body: answer.body.subarray(0, answer.body.byteLength >> 1) });
    kill();
    exchange.cut();
  };
}

const HOW_TO_GO_ON = ["--resume", "in an empty directory"] as const;

const COMMANDS = [
  ["backup-fetch", (target: string) => ["backup-fetch", target, "LATEST"]],
  ["restore", (target: string) => ["restore", target, "--to", "immediate"]],
] as const;

describe.each(servers.map((server, at) => ({ name: server.name, server, at })))("from $name", ({ server, at }) => {
  let repository: TestRepository;
  let proxy: FaultProxy;

  beforeAll(async () => {
    repository = await s3Repository(server);
    proxy = await startFaultProxy(server.endpoint);
    const push = ["backup-push", cluster.dataDirectory, "--while-offline"];
    await succeeds(push, { ...repository.env, ...SMALL_PARTS });
  });
  afterAll(async () => await proxy?.[Symbol.asyncDispose]());

  async function succeeds(args: readonly string[], env = repository.hostEnv): Promise<void> {
    const { exitCode, stderr } = await runWalb(args, { as: cluster, env });
    expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr });
  }

  const made = async () => {
    const [target, space] = places();
    return { target: withoutNotes(await filesBelow(target)), space: await filesBelow(space) };
  };
  const remove = async () => {
    for (const path of places()) await rm(path, { recursive: true, force: true });
  };

  test.each(COMMANDS)(
    "%s: nothing starts, nothing is elsewhere, and it is completed",
    async (name, command) => {
      const [target, space] = places();
      const args = [...command(target), "--tablespace-mapping", `${oid}=${space}`];
      const [elsewhere, keys] = [await readdir(cluster.directory), await repository.keys()];
      await succeeds(args);
      const wanted = await made();
      expect(wanted.space.length).toBeGreaterThan(0);
      await remove();

      // One part after the other: then the n-th request is the same one in every run.
      const env = { ...repository.hostEnv, AWS_ENDPOINT_URL_S3: proxy.url, WALB_DOWNLOAD_CONCURRENCY: "1" };
      const trials = MOMENTS.flatMap(([moment, fault]) => HOW_TO_GO_ON.map((goOn) => ({ moment, fault, goOn })));
      let [n, resumed, isOver] = [0, 0, false];
      while (!isOver) {
        n++;
        // One of them at each request, and at the next request, and on the next server, the next.
        for (const trial of SWEEPS_ALL ? trials : trials.slice((n + at) % trials.length).slice(0, 1)) {
          let kill = () => {};
          await proxy.arm(
            trial.fault(() => kill()),
            { from: n, times: 1 },
          );
          await using running = await startWalb(cluster, args, env);
          kill = () => running.signal("SIGKILL");
          const { exitCode, signal } = await running.ended();
          const what = { n, moment: trial.moment, goOn: trial.goOn, request: proxy.requests[n - 1] };
          isOver = proxy.answered === 0;
          if (isOver) expect({ ...what, exitCode }).toEqual({ ...what, exitCode: 0 });
          else {
            const starts = existsSync(join(target, "global/pg_control"));
            const more = (await readdir(cluster.directory)).filter(
              (path) => !elsewhere.includes(path) && !places().includes(join(cluster.directory, path) as never),
            );
            expect({ ...what, signal, starts, more }).toEqual({ ...what, signal: "SIGKILL", starts: false, more: [] });
            // Killed before it began to write, it has nothing to go on with.
            const goesOn = trial.goOn === "--resume" && existsSync(join(target, MARKER));
            if (!goesOn) await remove();
            else resumed++;
            await succeeds([...args, ...(goesOn ? ["--resume"] : [])]);
          }
          expect({ ...what, ...(await made()) }).toEqual({ ...what, ...wanted });
          expect(existsSync(join(target, ".wal-b"))).toBe(false);
          await remove();
        }
      }
      console.log(`${name} from ${server.name}: killed at each of ${n - 1} requests, ${resumed} times gone on with`);
      expect(resumed).toBeGreaterThan(0);
      expect(await repository.keys()).toEqual(keys);
    },
    SWEEP_LIMIT_MS,
  );
});
