/**
 * How long wal-fetch keeps trying, on real servers: in recovery until WALB_RECOVERY_RETRY_DEADLINE, because giving up stops the server;
 * on a standby until WALB_STANDBY_RETRY_DEADLINE, because it asks again by itself.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { type Fault, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { faultNamed } from "../support/faults.ts";
import {
  type ArchivedHistory,
  archiveSegments,
  restoreBeside,
  rowsOf,
  startRecovery,
  untilPromoted,
  writeSegments,
} from "../support/prefetching.ts";
import { s3Repository } from "../support/repositories.ts";
import { anyS3Server } from "../support/s3-server.ts";

const { server: s3, stop } = await anyS3Server();
afterAll(stop);

/** Far more than a test may take. */
const LONG = "2h";
const SHORT = "2s";
/** Long enough that a busy machine is not taken for a silent store. */
const BASE = { WALB_PREFETCH: "0", WALB_IDLE_TIMEOUT: "1s" };

const CUT_OFF = [
  ["refuses", faultNamed("a connection that is refused")],
  ["is silent", faultNamed("silence")],
] as const;

/** How often wal-fetch has told that it could not find out; absence is told in other words. */
const refusals = (log: string) => (log.match(/^wal-b: ERROR: could not read/gm) ?? []).length;

describe.each([12, 18])("PostgreSQL %i", (major) => {
  let history: ArchivedHistory;
  let proxy: FaultProxy;
  beforeAll(async () => {
    const repository = await s3Repository(s3);
    history = await archiveSegments(major, async () => repository.hostEnv, 5);
    proxy = await startFaultProxy(s3.endpoint);
  });
  afterAll(async () => {
    await history?.[Symbol.asyncDispose]();
    await proxy?.[Symbol.asyncDispose]();
  });
  /** Of a server whose way to the archive leads through the proxy; the primary has another. */
  const environment = (deadlines: Readonly<Record<string, string>>) => ({
    ...history.env,
    ...BASE,
    ...deadlines,
    AWS_ENDPOINT_URL_S3: proxy.url,
  });

  /** Recovery that has come to the middle of the archive when the store is cut off. */
  const recoverInto = async (fault: Fault, deadlines: Readonly<Record<string, string>>) => {
    const data = await restoreBeside(history, `recovered-${crypto.randomUUID().slice(0, 8)}`);
    await proxy.arm();
    const recovering = await startRecovery(data, { env: environment(deadlines), gateAt: history.segments[2] });
    await recovering.reached();
    await proxy.arm(fault);
    await recovering.open();
    return { data, server: recovering.server };
  };

  test.each(CUT_OFF)(
    "a store that %s and is back within the deadline of recovery: it goes on, and the server never stops",
    async (_, fault) => {
      const deadlines = {
        WALB_RECOVERY_RETRY_DEADLINE: LONG,
        WALB_STANDBY_RETRY_DEADLINE: "0",
        WALB_RETRY_DEADLINE: "0",
      };
      const { server } = await recoverInto(fault, deadlines);
      await using _server = server;
      const { pid } = server;
      await server.waitFor(() => proxy.answered >= 3, { what: "wal-fetch to try again and again" });
      await proxy.arm();
      await untilPromoted(server);
      expect(server.pid).toBe(pid);
      expect(await rowsOf(server)).toBe(history.rows);
      expect(await server.logText()).not.toContain("could not restore file");
    },
  );

  test.each(CUT_OFF)(
    "a store that %s beyond the deadline of recovery: the server stops, is not promoted, and the next start finishes",
    async (_, fault) => {
      const deadlines = {
        WALB_RECOVERY_RETRY_DEADLINE: SHORT,
        WALB_STANDBY_RETRY_DEADLINE: LONG,
        WALB_RETRY_DEADLINE: LONG,
      };
      const { data, server } = await recoverInto(fault, deadlines);
      await using _server = server;
      expect(await server.exited()).toEqual({ exitCode: 1, signal: null });
      const log = await server.logText();
      expect(log).toContain(
        `FATAL:  could not restore file "${history.segments[2]}" from archive: child process exited with exit code 200\n`,
      );
      expect(log).toContain(`HINT: Check that ${proxy.url} can be reached from this machine.`);
      expect(log).not.toContain("archive recovery complete");
      expect(await readdir(data)).toContain("recovery.signal");

      await proxy.arm();
      await server.start("spawned");
      await untilPromoted(server);
      expect(await rowsOf(server)).toBe(history.rows);
    },
  );

  test("a standby gives up soon, stays up, asks again, and catches up by itself", async () => {
    const data = await restoreBeside(history, "standby", "standby.signal");
    const deadlines = {
      WALB_STANDBY_RETRY_DEADLINE: SHORT,
      WALB_RECOVERY_RETRY_DEADLINE: LONG,
      WALB_RETRY_DEADLINE: LONG,
    };
    const settings = { hot_standby: "on", recovery_target_timeline: "current", wal_retrieve_retry_interval: "200ms" };
    await proxy.arm();
    const { server: standby } = await startRecovery(data, { env: environment(deadlines), settings });
    await using _standby = standby;
    let rows = history.rows;
    await standby.waitFor(async () => (await rowsOf(standby).catch(() => "")) === rows, { what: "it to catch up" });
    const { pid } = standby;
    for (const [n, [, fault]] of CUT_OFF.entries()) {
      await proxy.arm(fault);
      const before = refusals(await standby.logText());
      await writeSegments(history.primary, 2, 100_000 * (n + 1));
      await standby.waitFor(async () => refusals(await standby.logText()) >= before + 2, { what: "it to ask again" });
      expect(await rowsOf(standby)).toBe(rows);

      await proxy.arm();
      rows = await rowsOf(history.primary);
      await standby.waitFor(async () => (await rowsOf(standby)) === rows, { what: "it to catch up again" });
      expect(standby.pid).toBe(pid);
      expect(await standby.psql("SELECT pg_is_in_recovery()")).toBe("t");
    }
  });
});
