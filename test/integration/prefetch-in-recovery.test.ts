/** Recovery of real servers with the prefetcher: most segments are ready when they are asked for, and nothing is left after. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, readdir, readFile, readlink, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  type ArchivedHistory,
  archiveSegments,
  isReady,
  PREFETCHED,
  prefetchedIn,
  prefetcherOf,
  prefetchersOf,
  restoreBeside,
  restoredBy,
  rowsOf,
  SEGMENTS,
  startRecovery,
  untilArchived,
  untilFull,
  untilNothingIsLeft,
  untilPromoted,
  writeSegments,
} from "../support/prefetching.ts";
import { processIsAlive } from "../support/process-tree.ts";
import { startRecordingProxy } from "../support/recording-proxy.ts";
import { s3Repository } from "../support/repositories.ts";
import { anyS3Server } from "../support/s3-server.ts";
import { waitFor } from "../support/wait-for.ts";
import { walbBinary } from "../support/walb.ts";

describe.each([12, 18])("PostgreSQL %i", (major) => {
  let history: ArchivedHistory;
  beforeAll(async () => {
    history = await archiveSegments(major, async (primary) => ({
      WALB_FILE_PREFIX: await primary.makeDirectory("repository"),
    }));
  });
  afterAll(() => history?.[Symbol.asyncDispose]());

  const directoryOf = (data: string) => join(data, "pg_wal", PREFETCHED);

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
    await untilFull(directoryOf(data));
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
    await untilFull(directoryOf(data));
    const pid = await prefetcherOf(data);
    process.kill(pid, "SIGKILL");
    await open();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    await untilNothingIsLeft(data);
    expect((await restoredBy(server)).prefetched).toEqual(expect.arrayContaining(history.segments.slice(6, 14)));
  });

  test("one that is killed when recovery has all it needs: the next wal-push, or the last wal-fetch, removes what it left", async () => {
    const data = await restoreBeside(history, "left");
    const last = history.segments.at(-3);
    const { server, reached, open } = await startRecovery(data, {
      ...history,
      gateAt: last,
      settings: { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` },
    });
    await using _ = server;
    await reached();
    await waitFor(async () => (await prefetchersOf(data)).length === 1);
    const pid = await prefetcherOf(data);
    process.kill(pid, "SIGSTOP");
    await open();
    await untilPromoted(server);
    process.kill(pid, "SIGKILL");
    await waitFor(() => !processIsAlive(pid));
    // A run of wal-push that began before may archive the first of these.
    for (let turn = 0; turn < 2; turn++) await untilArchived(server, await server.switchWal());
    await untilNothingIsLeft(data);
    expect(await rowsOf(server)).toBe(history.rows);
  });

  test("a prefetched file that is damaged on the disk is discarded and fetched again", async () => {
    const data = await restoreBeside(history, "damaged");
    const { server, reached, open } = await startRecovery(data, { ...history, gateAt: history.segments[6] });
    await using _ = server;
    await reached();
    const victims = history.segments.slice(6, 9);
    await untilFull(directoryOf(data));
    for (const [n, victim] of victims.entries()) {
      const name = (await prefetchedIn(directoryOf(data)))?.find((found) => found.startsWith(victim)) ?? "";
      const path = join(directoryOf(data), name);
      const bytes = await readFile(path);
      bytes[500_000] = (bytes[500_000] ?? 0) ^ 1;
      await writeFile(path, n === 2 ? bytes.subarray(0, 600_000) : bytes);
    }
    await open();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    const log = await server.logText();
    for (const victim of victims)
      expect(log).toContain(`WARNING: discarded "${victim}": it was damaged after it was prefetched`);
    expect((await restoredBy(server)).direct).toEqual(expect.arrayContaining(victims));
    await untilNothingIsLeft(data);
  });

  test("a directory elsewhere, on another file system; nothing of it in pg_wal, and nothing left", async () => {
    const elsewhere = await mkdtemp("/dev/shm/walb-prefetch-");
    await using _directory = { [Symbol.asyncDispose]: () => rm(elsewhere, { recursive: true, force: true }) };
    await giveTo(history.primary.account, elsewhere);
    const data = await restoreBeside(history, "elsewhere");
    const env = { ...history.env, WALG_PREFETCH_DIR: elsewhere };
    const { server, reached, open } = await startRecovery(data, { env, gateAt: history.segments[6] });
    await using _ = server;
    expect((await stat(elsewhere)).dev).not.toBe((await stat(data)).dev);
    await reached();
    const own = await waitFor(async () => (await readdir(elsewhere))[0]);
    await waitFor(async () => ((await prefetchedIn(join(elsewhere, own))) ?? []).filter(isReady).length === 8);
    expect(await readdir(join(data, "pg_wal"))).not.toContain(PREFETCHED);
    await open();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    expect((await restoredBy(server)).prefetched).toEqual(expect.arrayContaining(history.segments.slice(6, 14)));
    await untilNothingIsLeft(data, join(elsewhere, own));
    expect(await readdir(elsewhere)).toEqual([]);
  });

  test("a symbolic link for pg_wal: segments lie where it leads", async () => {
    const data = await restoreBeside(history, "linked");
    const wal = await history.primary.makeDirectory("linked-wal");
    await rm(join(data, "pg_wal"), { recursive: true });
    await symlink(wal, join(data, "pg_wal"));
    const { server, reached, open } = await startRecovery(data, { ...history, gateAt: history.segments[6] });
    await using _ = server;
    await reached();
    await untilFull(directoryOf(data));
    expect((await prefetchedIn(join(wal, PREFETCHED)))?.filter(isReady)).toHaveLength(8);
    await open();
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(history.rows);
    await untilNothingIsLeft(data);
  });

  test("0 switches it off", async () => {
    const data = await restoreBeside(history, "off");
    const env = { ...history.env, WALE_PREFETCH: "0" };
    const { server, reached, open } = await startRecovery(data, { env, gateAt: history.segments[3] });
    await using _ = server;
    await reached();
    expect(await prefetchersOf(data)).toEqual([]);
    await open();
    await untilPromoted(server);
    expect((await restoredBy(server)).prefetched).toEqual([]);
    expect(await rowsOf(server)).toBe(history.rows);
  });

  test("the prefetcher holds nothing of the server's open", async () => {
    const data = await restoreBeside(history, "descriptors");
    const { server, reached } = await startRecovery(data, { ...history, gateAt: history.segments[6] });
    await using _ = server;
    await reached();
    await untilFull(directoryOf(data));
    const [pid] = await prefetchersOf(data);
    const open = await Promise.all(
      (await readdir(`/proc/${pid}/fd`)).map(async (fd) => await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "")),
    );
    expect(open.filter((path) => path.startsWith(history.primary.directory))).toEqual([]);
    expect(open.filter((path) => path.startsWith("pipe:"))).toEqual([]);
    expect(open.filter((path) => path === "/dev/null")).toHaveLength(3);
  });

  test("a standby that follows: prefetched while it catches up, nothing runs while it keeps up, all of it after", async () => {
    const data = await restoreBeside(history, "standby", "standby.signal");
    const settings = { wal_retrieve_retry_interval: "3s", hot_standby: "on", recovery_target_timeline: "current" };
    const { server } = await startRecovery(data, { ...history, settings });
    await using _ = server;
    const { primary } = history;
    const catchesUp = async () => {
      const expected = await rowsOf(primary);
      await server.waitFor(async () => (await rowsOf(server).catch(() => "")) === expected, {
        what: "the standby to catch up",
        timeoutMs: 90_000,
      });
    };
    await catchesUp();
    const { prefetched } = await restoredBy(server);
    expect(prefetched.length).toBeGreaterThan(SEGMENTS / 2);

    // One at a time.
    for (let turn = 0; turn < 2; turn++) {
      await writeSegments(primary, 1, 1_000_000 + major * 10_000 + turn * 1_000);
      await catchesUp();
      await Bun.sleep(2_500);
    }
    await untilNothingIsLeft(data);
    expect((await restoredBy(server)).prefetched).toEqual(prefetched);

    await server.query("SELECT pg_promote()");
    await untilPromoted(server);
    expect(await rowsOf(server)).toBe(await rowsOf(primary));
    expect(await prefetchedIn(directoryOf(data))).toBeUndefined();
  });
});

describe.each([12, 18])("PostgreSQL %i, over a switch of timelines", (major) => {
  test("the prefetcher goes where recovery goes, and asks for nothing on the timeline that ended", async () => {
    await using s3 = await anyS3();
    await using proxy = await startRecordingProxy(s3.server.endpoint);
    const repository = await s3Repository({ ...s3.server, endpoint: proxy.url });
    await using history = await archiveSegments(major, async () => repository.hostEnv);
    const { primary } = history;

    // Promoted in the middle; the primary goes on on the old timeline, and archives more of it.
    await primary.query("SELECT pg_create_restore_point('here')");
    await untilArchived(primary, await primary.switchWal());
    const promoted = await restoreBeside(history, "promoted");
    const archiving = { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` };
    const settings = { recovery_target_name: "here", recovery_target_action: "promote", ...archiving };
    const { server: second } = await startRecovery(promoted, { ...history, settings });
    await using _second = second;
    await untilPromoted(second);
    await untilNothingIsLeft(promoted);
    const abandoned = await writeSegments(primary, 8, 500_000);
    const followed = await writeSegments(second, 16, 600_000);
    expect(followed[0]?.slice(0, 8)).toBe("00000002");
    const expected = await rowsOf(second);

    const data = await restoreBeside(history, "latest");
    proxy.takeRequests();
    const { server, reached, open } = await startRecovery(data, {
      ...history,
      gateAt: history.segments.at(-4),
      settings: { recovery_target_timeline: "latest" },
    });
    await using _ = server;
    await reached();
    await untilFull(join(data, "pg_wal", PREFETCHED));
    await open();
    await untilPromoted(server);
    await untilNothingIsLeft(data);
    expect(await rowsOf(server)).toBe(expected);
    expect(await server.psql("SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")).toBe("00000003");

    const { prefetched } = await restoredBy(server);
    // The first one after the switch too: nothing but the gate has been in the way.
    expect(prefetched).toEqual(expect.arrayContaining([followed[1], followed[8]]));
    const asked = proxy.takeRequests().filter((request) => request.startsWith("GET "));
    for (const name of abandoned.slice(1)) expect(asked.filter((request) => request.includes(name))).toEqual([]);
  });
});

async function anyS3() {
  const { server, stop } = await anyS3Server();
  return { server, [Symbol.asyncDispose]: stop };
}
