/** Recovery of real servers with the prefetcher: most segments are ready when they are asked for, and nothing is left after. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { waitFor } from "../support/postgres-server.ts";
import {
  type ArchivedHistory,
  archiveSegments,
  isReady,
  PREFETCHED,
  prefetchedIn,
  prefetchersOf,
  restoreBeside,
  restoredBy,
  rowsOf,
  SEGMENTS,
  startRecovery,
  untilNothingIsLeft,
  untilPromoted,
} from "../support/prefetching.ts";

describe.each([12, 18])("PostgreSQL %i", (major) => {
  let history: ArchivedHistory;
  beforeAll(async () => {
    history = await archiveSegments(major, async (primary) => ({
      WALB_FILE_PREFIX: await primary.makeDirectory("repository"),
    }));
  });
  afterAll(() => history?.[Symbol.asyncDispose]());

  const directoryOf = (data: string) => join(data, "pg_wal", PREFETCHED);
  const full = async (data: string, count = 8) =>
    await waitFor(async () => ((await prefetchedIn(directoryOf(data))) ?? []).filter(isReady).length === count, {
      what: `${count} segments that are ready`,
    });

  test("most segments are ready when recovery asks for them, and nothing is left when it ends", async () => {
    const data = await restoreBeside(history, "recovered");
    const { server } = await startRecovery(data, history);
    await using _ = server;
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    await untilNothingIsLeft(data);

    const { prefetched, direct } = await restoredBy(server);
    expect([...new Set([...prefetched, ...direct])].sort()).toEqual(expect.arrayContaining([...history.segments]));
    expect(prefetched.length).toBeGreaterThan(SEGMENTS / 2);
    expect(await server.logText()).not.toContain("WARNING: ");
  });

  test("a bounded directory, for this account alone, and gone when the server stops", async () => {
    const data = await restoreBeside(history, "stopped");
    const { server, reached } = await startRecovery(data, { ...history, gateAt: history.segments[6] });
    await using _ = server;
    await reached();
    await full(data);
    await Bun.sleep(300);
    const names = (await prefetchedIn(directoryOf(data))) ?? [];
    expect(names.filter(isReady).map((name) => name.slice(0, 24))).toEqual(history.segments.slice(6, 14));
    expect(names.filter((name) => !isReady(name))).toEqual(["position", "prefetcher"]);
    expect((await Bun.file(directoryOf(data)).stat()).mode & 0o777).toBe(0o700);

    const [pid] = await prefetchersOf(data);
    const status = await readFile(`/proc/${pid}/status`, "utf8");
    expect(Number(/VmRSS:\s+(\d+)/.exec(status)?.[1])).toBeLessThan(200 * 1024);

    await server.stop("fast");
    await untilNothingIsLeft(data);
  });

  test("a killed prefetcher is replaced, and what it left is used or removed", async () => {
    const data = await restoreBeside(history, "killed");
    const { server, reached, open } = await startRecovery(data, { ...history, gateAt: history.segments[6] });
    await using _ = server;
    await reached();
    await full(data);
    const [pid = 0] = await prefetchersOf(data);
    process.kill(pid, "SIGKILL");
    await open();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    await untilNothingIsLeft(data);
    expect((await restoredBy(server)).prefetched).toEqual(expect.arrayContaining(history.segments.slice(6, 14)));
  });
});
