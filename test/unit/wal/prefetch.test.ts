import { describe, expect, test } from "bun:test";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { NotFoundError, StorageError } from "../../../src/errors.ts";
import type { SegmentSize, WalFile } from "../../../src/postgres/wal-segment.ts";
import { prefetchWal } from "../../../src/wal/prefetch.ts";
import { PrefetchDirectory } from "../../../src/wal/prefetch-directory.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { waitFor } from "../../support/wait-for.ts";
import { MiB, piecesOf, SYSTEM_IDENTIFIER, walContent } from "../../support/wal-content.ts";

const segment = (n: number, timeline = 1) =>
  `${timeline.toString(16).padStart(8, "0")}00000000${n.toString(16).padStart(8, "0")}`.toUpperCase();

interface Options {
  /** Segments that the archive has; others are proved absent. */
  readonly archived: readonly string[];
  readonly count?: number;
  readonly idleMs?: number;
  readonly get?: (name: string) => Promise<Uint8Array>;
}

/** A server in recovery, which got segment 1 last, and its prefetcher. */
async function setUp({ archived, count = 4, idleMs = 60_000, get }: Options) {
  const temporary = await temporaryDirectory();
  const data = temporary.path;
  await mkdir(join(data, "pg_wal"));
  await writeFile(join(data, "recovery.signal"), "");
  const server = (status: string, startedAt = 1) =>
    writeFile(join(data, "postmaster.pid"), `${process.pid}\n${data}\n${startedAt}\n5432\n/tmp\n\n1 1\n${status}\n`);
  await server("ready");
  const directory = new PrefetchDirectory(join(data, "pg_wal", "kept"), "source");
  directory.create(segment(1));

  const asked: string[] = [];
  const stopped = Promise.withResolvers<never>();
  stopped.promise.catch(() => {});
  async function* readOwnForm({ name }: WalFile) {
    asked.push(name);
    if (!get && !archived.includes(name)) throw new NotFoundError("absent");
    yield get ? await Promise.race([get(name), stopped.promise]) : walContent(name);
  }
  const interrupt = new AbortController();
  const run = async () => {
    using claim = directory.claim();
    if (!claim) throw new Error("another one is at work");
    await prefetchWal({
      archive: { readOwnForm },
      directory,
      claim,
      dataDirectory: data,
      walDirectory: join(data, "pg_wal"),
      systemIdentifier: SYSTEM_IDENTIFIER,
      segmentSize: MiB as SegmentSize,
      count,
      idleMs,
      stopLoading: () => stopped.reject(new Error("stopped")),
      signal: interrupt.signal,
    });
  };
  const running = run();
  return {
    data,
    directory,
    asked,
    interrupt,
    server,
    ended: () => running,
    ready: async (...names: readonly string[]) =>
      await waitFor(async () => [...directory.ready()].sort().join() === names.join(), {
        what: `${names} to be ready`,
        intervalMs: 5,
        timeoutMs: 5_000,
      }),
    [Symbol.asyncDispose]: async () => {
      interrupt.abort();
      await running.catch(() => {});
      await temporary[Symbol.asyncDispose]();
    },
  };
}

const segments = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, n) => segment(from + n));
const isLeft = async ({ directory }: { readonly directory: PrefetchDirectory }) => directory.prefetcher() !== "none";

describe("prefetchWal()", () => {
  test("keeps as many ready as it is told, ahead of recovery, each asked for once", async () => {
    await using site = await setUp({ archived: segments(1, 20) });
    await site.ready(...segments(2, 5));
    site.directory.setPosition(segment(3));
    await site.ready(...segments(4, 7));
    site.directory.setPosition(segment(10));
    await site.ready(...segments(11, 14));
    expect(site.asked.toSorted()).toEqual([...segments(2, 7), ...segments(11, 14)]);
  });

  test("does not load what wal-fetch is loading", async () => {
    await using site = await setUp({ archived: [], get: async () => await new Promise(() => {}) });
    await waitFor(() => site.asked.length === 4);
    await writeFile(join(site.directory.path, `${segment(9)}.loading`), String(process.ppid));
    site.directory.setPosition(segment(8));
    await Bun.sleep(100);
    expect(site.asked).not.toContain(segment(9));
  });

  test("asks once for a segment that is absent, and for none behind it that it has not asked for", async () => {
    await using site = await setUp({ archived: segments(1, 7) });
    await site.ready(...segments(2, 5));
    site.directory.setPosition(segment(5));
    await site.ready(...segments(6, 7));
    site.directory.setPosition(segment(7));
    await Bun.sleep(200);
    expect(site.asked.filter((name) => name === segment(8))).toHaveLength(1);
    expect(site.asked).not.toContain(segment(10));
  });

  test("ends when recovery got itself what was absent: it has caught up", async () => {
    await using site = await setUp({ archived: segments(1, 3) });
    await site.ready(...segments(2, 3));
    site.directory.setPosition(segment(4));
    await site.ended();
    expect(await isLeft(site)).toBe(false);
  });

  test.each([
    ["a store that fails", async () => await Promise.reject(new StorageError("gone"))],
    ["a segment of another cluster", async (name: string) => walContent(name, { systemIdentifier: 42n })],
  ])("puts nothing in place from %s, and does not ask again", async (_, get) => {
    await using site = await setUp({ archived: [], get });
    await waitFor(() => site.asked.length > 0);
    await Bun.sleep(200);
    expect(site.directory.ready()).toEqual(new Set());
    expect(new Set(site.asked).size).toBe(site.asked.length);
  });

  test("loads four at once, and no more", async () => {
    await using site = await setUp({ archived: [], count: 8, get: async () => await new Promise(() => {}) });
    await waitFor(() => site.asked.length > 0);
    await Bun.sleep(200);
    expect(site.asked).toEqual(segments(2, 5));
  });

  test("fills no disk that has less room than twice what it may fill", async () => {
    await using site = await setUp({ archived: segments(1, 9), count: 2 ** 30 });
    const free = site.directory.freeBytes();
    await Bun.sleep(100);
    // 1 GiB may be filled, whatever the count.
    expect(site.asked.length > 0).toBe(free >= 2 * 2 ** 30);
  });

  test("uses what a killed one has left, and removes what is too old", async () => {
    await using site = await setUp({ archived: segments(1, 20) });
    await site.ready(...segments(2, 5));
    site.interrupt.abort();
    await site.ended();
    await using after = await setUp({ archived: segments(1, 5) });
    await after.directory.put(segment(4), piecesOf(walContent(segment(4))));
    await after.ready(...segments(2, 5));
  });

  test("removes what recovery went past while it was loaded", async () => {
    const slow = Promise.withResolvers<void>();
    const get = async (name: string) => {
      if (segments(2, 5).includes(name)) await slow.promise;
      return walContent(name);
    };
    await using site = await setUp({ archived: [], get });
    await waitFor(() => site.asked.length === 4);
    site.directory.setPosition(segment(12));
    await Bun.sleep(100);
    slow.resolve();
    await site.ready(...segments(13, 16));
  });

  describe("goes over to the timeline that recovery goes over to", () => {
    const HISTORY = "1\t0/380000\tno recovery target specified\n";

    test("at the segment in which it begins", async () => {
      const own = [segment(2), segment(3, 2), segment(4, 2), segment(5, 2)];
      await using site = await setUp({ archived: [...segments(1, 9), ...own], count: 4 });
      await writeFile(join(site.data, "pg_wal", "00000002.history"), HISTORY);
      site.directory.setPosition(segment(0));
      await site.ready(segment(1), segment(2), segment(3, 2), segment(4, 2));
    });

    test("but not when recovery stays", async () => {
      await using site = await setUp({ archived: segments(1, 30) });
      await writeFile(join(site.data, "pg_wal", "00000002.history"), HISTORY);
      site.directory.setPosition(segment(12));
      await site.ready(...segments(13, 16));
    });

    test("and a history that is damaged is none", async () => {
      await using site = await setUp({ archived: segments(1, 30) });
      await writeFile(join(site.data, "pg_wal", "00000002.history"), "x");
      site.directory.setPosition(segment(12));
      await site.ready(...segments(13, 16));
    });
  });

  describe("ends and leaves nothing, also while a load is under way,", () => {
    type Site = Awaited<ReturnType<typeof setUp>>;
    test.each<[string, (site: Site) => unknown]>([
      ["when recovery ends", (site) => rm(join(site.data, "recovery.signal"))],
      ["when the server has stopped", (site) => rm(join(site.data, "postmaster.pid"))],
      ["when the server is told to stop", (site) => site.server("stopping")],
      ["when another run of the server has begun", (site) => site.server("ready", 2)],
      ["when a signal asks for it", (site) => site.interrupt.abort()],
    ])("%s", async (_, end) => {
      await using site = await setUp({ archived: [], get: async () => await new Promise(() => {}) });
      await waitFor(() => site.asked.length > 0);
      await end(site);
      await site.ended();
      expect(await isLeft(site)).toBe(false);
    });

    test("when recovery asks for nothing", async () => {
      await using site = await setUp({ archived: segments(1, 9), idleMs: 300 });
      await site.ended();
      expect(await isLeft(site)).toBe(false);
    });

    test("but what another one has taken over", async () => {
      await using site = await setUp({ archived: segments(1, 9) });
      await site.ready(...segments(2, 5));
      await writeFile(join(site.directory.path, "prefetcher"), String(process.ppid));
      await site.ended();
      expect(await isLeft(site)).toBe(true);
    });
  });
});
