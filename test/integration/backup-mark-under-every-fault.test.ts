/**
 * A fault, or kill -9, at the n-th request of backup-mark, for every n: the backup is marked or it is not, as the exit code says;
 * everything else about every backup stays; and running it again succeeds.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { tmpdir } from "node:os";
import { openZstd } from "../../src/codec/zstd.ts";
import { backupKeys, partName } from "../../src/repository/keys.ts";
import { type Environment, startWalb } from "../support/backups.ts";
import {
  exitCodesOf,
  faultsAt,
  isAskedAgain,
  killing,
  SWEEP_LIMIT_MS,
  SWEEPS_ALL,
  storeIsGone,
} from "../support/every-request.ts";
import { type Fault, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { FAULTS } from "../support/faults.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import type { ProgramResult } from "../support/run-program.ts";
import { everyS3Server, type S3Server } from "../support/s3-server.ts";
import { putBackup, putWal, storeOf } from "../support/stored-backup.ts";
import { runWalb } from "../support/walb.ts";

const { servers, stop } = await everyS3Server();
afterAll(stop);

interface Trouble {
  readonly name: string;
  readonly times: number;
  readonly exitCodes: readonly (number | null)[];
  /** Which it may be afterwards, when the command did not say that it is done. */
  readonly leaves: "as it was" | "either";
  fault(kill: () => void): Fault;
}

const ENDS: readonly Trouble[] = [
  { name: "the store is gone", times: Number.POSITIVE_INFINITY, exitCodes: [69], leaves: "either", fault: storeIsGone },
  {
    name: "killed on arrival",
    times: 1,
    exitCodes: [null],
    leaves: "as it was",
    fault: (k) => killing("on arrival", k),
  },
  { name: "killed behind it", times: 1, exitCodes: [null], leaves: "either", fault: (k) => killing("carried out", k) },
];

/** What is read with a byte changed looks like any other, and TLS is against it. */
const BELIEVABLE = FAULTS.filter(({ name }) => name !== "a body with a byte changed");
const isWrite = (request = "") => request.startsWith("PUT ");

const troublesAt = (n: number): readonly Trouble[] => [
  ...ENDS,
  ...faultsAt(n, 1, BELIEVABLE).map((named): Trouble => {
    const exitCodes = exitCodesOf(named);
    return { name: named.name, times: 1, exitCodes, leaves: "as it was", fault: () => named.fault };
  }),
];

describe.each(servers.map((server) => ({ name: server.name, server })))(
  "on $name",
  ({ server }: { server: S3Server }) => {
    let repository: TestRepository;
    let proxy: FaultProxy;
    let store: Awaited<ReturnType<typeof storeOf>>;
    let [older, marked] = ["", ""];

    beforeAll(async () => {
      repository = await s3Repository(server);
      proxy = await startFaultProxy(server.endpoint);
      store = await storeOf(server, repository);
      const zstd = await openZstd(3);
      const parts = { [partName(1)]: { PG_VERSION: Buffer.from("18\n") } };
      const put = (at: number) =>
        putBackup(store, zstd, {
          startSegment: `00000001000000000000000${at}`,
          parts,
          finishedAt: new Date(at * 1000),
        });
      [older, marked] = [await put(2), await put(5)];
      await putWal(
        store,
        zstd,
        [2, 3, 4, 5, 6].map((n) => `00000001000000000000000${n}`),
      );
    });
    afterAll(async () => {
      await store?.[Symbol.asyncDispose]();
      await proxy?.[Symbol.asyncDispose]();
    });

    /** Every object, and of those that say what the backups are, what they say. */
    const contents = async () => {
      const said = [older, marked].flatMap((name) => [backupKeys(name).sentinel, backupKeys(name).metadata]);
      const read = async (key: string) => [key, Buffer.from((await store.get(key, 2 ** 20)).body).toString()] as const;
      return { keys: await repository.keys(), said: Object.fromEntries(await Promise.all(said.map(read))) };
    };
    const succeeds = async (args: readonly string[], env: Environment = repository.hostEnv): Promise<string> => {
      const { exitCode, stdout, stderr }: ProgramResult = await runWalb(args, { env });
      expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr: expect.not.stringContaining("ERROR") });
      return stdout;
    };
    const listed = async () => await succeeds(["backup-list", "--json"]);

    test.each([
      ["by its name, permanent", (): string => marked, "permanent"],
      ["as LATEST, impermanent", (): string => "LATEST", "impermanent"],
    ] as const)(
      "%s: done, or as it was",
      async (_, name, to) => {
        const mark = ["backup-mark", name(), ...(to === "impermanent" ? ["--impermanent"] : [])];
        const back = ["backup-mark", name(), ...(to === "impermanent" ? [] : ["--impermanent"])];
        await succeeds(mark);
        const after = { ...(await contents()), list: await listed() };
        await succeeds(back);
        const before = { ...(await contents()), list: await listed() };
        expect(after).not.toEqual(before);

        let [n, trials, isOver] = [0, 0, false];
        const ended = { "as it was": 0, changed: 0 };
        while (!isOver) {
          n++;
          for (const trouble of troublesAt(n)) {
            let kill = () => {};
            await proxy.arm(
              trouble.fault(() => kill()),
              { from: n, times: trouble.times },
            );
            const env = {
              ...repository.hostEnv,
              AWS_ENDPOINT_URL_S3: proxy.url,
              WALB_RETRY_DEADLINE: trouble.name === "the store is gone" ? "200ms" : "10s",
              WALB_IDLE_TIMEOUT: "2s",
            };
            await using running = await startWalb({ account: undefined, directory: tmpdir(), env: {} }, mark, env);
            kill = () => running.signal("SIGKILL");
            const { exitCode } = await running.ended();
            await proxy.settled();
            trials++;
            isOver = proxy.answered === 0;
            const { stderr } = running;
            const what = { n, trouble: trouble.name, request: proxy.requests[n - 1], exitCode, stderr };
            const again = isAskedAgain(what.request) ? [0] : [];
            const allowed = isOver ? [0] : [...trouble.exitCodes, ...again];
            expect({ ...what, allowed, isAllowed: allowed.includes(exitCode) }).toMatchObject({
              ...what,
              isAllowed: true,
            });

            const errors = stderr.match(/^wal-b: ERROR: /gm)?.length ?? 0;
            expect({ ...what, errors }).toEqual({ ...what, errors: exitCode === 0 || exitCode === null ? 0 : 1 });
            const now = await contents();
            const isChanged = JSON.stringify(now.said) === JSON.stringify(after.said);
            const wanted = isChanged ? after : before;
            expect({ ...what, ...now, list: await listed() }).toEqual({ ...what, ...wanted });
            const isTold = stderr.includes(`may be ${to} already, or as it was`);
            const isOpen = trouble.name === "the store is gone" && isWrite(what.request);
            expect({ ...what, isTold }).toEqual({ ...what, isTold: isOpen });
            if (exitCode === 0) expect({ ...what, isChanged }).toEqual({ ...what, isChanged: true });
            else if (trouble.leaves === "as it was")
              expect({ ...what, isChanged }).toEqual({ ...what, isChanged: false });
            ended[isChanged ? "changed" : "as it was"]++;

            await succeeds(mark);
            expect({ ...what, ...(await contents()) }).toEqual({ ...what, keys: after.keys, said: after.said });
            await succeeds(back);
            if (isOver) break;
          }
        }
        const share = SWEEPS_ALL ? "all" : 1;
        console.log(
          `${mark.join(" ")}: ${trials} trials at ${n - 1} requests, ${share} of ${BELIEVABLE.length} faults each`,
        );
        expect(ended).toEqual({ "as it was": expect.any(Number), changed: expect.any(Number) });
        expect(Math.min(ended.changed, ended["as it was"])).toBeGreaterThan(0);
      },
      SWEEP_LIMIT_MS,
    );
  },
);
