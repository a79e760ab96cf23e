/**
 * kill -9 at every step of wal-push, wal-fetch and the prefetcher that others can see. No segment is lost, none that is wrong is
 * found anywhere, and the next run succeeds.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { prefetchDirectoryOf } from "../../src/cli/prefetcher.ts";
import { loadSettings } from "../../src/config/settings.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { faultNamed } from "../support/faults.ts";
import { prefetchersOf } from "../support/prefetching.ts";
import { runProgram } from "../support/run-program.ts";
import { archivedInBucket, bucketListing, PREFIX, s3Environment } from "../support/s3-archive.ts";
import { everyS3Server } from "../support/s3-server.ts";
import { compressed, Site } from "../support/site.ts";
import { runInSteps, type Stop } from "../support/system-calls.ts";
import { waitFor } from "../support/wait-for.ts";
import { SYSTEM_IDENTIFIER, walContent } from "../support/wal-content.ts";

const [A, B, C] = [1, 2, 3].map((n) => `00000001000000000000000${n}`) as [string, string, string];
const PUSH = ["wal-push", `pg_wal/${A}`];
const FETCH = ["wal-fetch", A, "pg_wal/RECOVERYXLOG"];

const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;

async function waitingSite(names: readonly string[] = [A, B, C]): Promise<Site> {
  const site = await Site.create();
  for (const name of names) await site.waiting(name);
  return site;
}

/** The host as it is at this moment, as another one. */
async function inCopy(site: Site, look: (copy: Site) => Promise<void>): Promise<void> {
  await using copy = await Site.create();
  for (const directory of ["data", "repository"]) {
    await rm(join(copy.directory, directory), { recursive: true });
    await runProgram(["cp", "-a", join(site.directory, directory), join(copy.directory, directory)]);
  }
  await look(copy);
}

/** @returns how often it was stopped */
async function stepped(
  site: Site,
  args: readonly string[],
  look: (stop: Stop, stops: number) => Promise<"go on" | "kill">,
  env: Readonly<Record<string, string | undefined>> = {},
): Promise<{ readonly stops: number; readonly exitCode: number | null; readonly stderr: string }> {
  let stops = 0;
  const options = { env: { ...site.env, ...env }, cwd: site.data };
  const result = await runInSteps([site.program, ...args], options, (stop) => look(stop, ++stops));
  return { stops, ...result };
}

const nameOf = (mark: string) => mark.replace(/\.\w+$/, "");

test("wal-push to a directory: what is there is whole, what is marked is there, and the next run completes it", async () => {
  // Two, because calls that are made at the same time stop the program together.
  await using site = await waitingSite([A, B]);
  const { stops, exitCode, stderr } = await stepped(site, PUSH, async () => {
    await inCopy(site, async (copy) => {
      const isWhole = async (name: string) => same((await copy.archived(name)) ?? Buffer.alloc(0), walContent(name));
      const objects = await readdir(copy.archive).catch(() => []);
      for (const object of objects.filter((name) => !name.startsWith(".wal-b.")))
        expect([object, await isWhole(object.slice(0, 24))]).toEqual([object, true]);
      for (const mark of (await copy.marks()).filter((name) => name.endsWith(".done")))
        expect([mark, await isWhole(nameOf(mark))]).toEqual([mark, true]);

      expect(await copy.walb(PUSH)).toMatchObject({ exitCode: 0 });
      for (const name of [A, B]) expect([name, await isWhole(name)]).toEqual([name, true]);
      expect(await copy.marks()).toEqual([`${A}.ready`, `${B}.done`]);
      expect(await copy.walb(["delete", "garbage", "--min-age", "0s", "--confirm"])).toMatchObject({ exitCode: 0 });
      expect((await readdir(copy.archive)).sort()).toEqual([A, B].map((name) => `${name}.zst`));
    });
    return "go on";
  });
  expect(exitCode, stderr).toBe(0);
  // For each segment: its temporary file made durable, linked and removed, the directory made durable.
  expect(stops).toBeGreaterThanOrEqual(2 * 4);
});

test("wal-fetch: the segment is in place whole or not at all, and the next run puts it there", async () => {
  await using site = await Site.create();
  await site.control();
  const content = walContent(A);
  await site.store(`${A}.zst`, compressed(content));
  let found = 0;
  const { stops, exitCode } = await stepped(site, FETCH, async () => {
    await inCopy(site, async (copy) => {
      const destination = join(copy.data, "pg_wal/RECOVERYXLOG");
      if (existsSync(destination)) {
        found++;
        expect(same(await Bun.file(destination).bytes(), content)).toBe(true);
      }
      // A server that starts removes files with such names.
      const others = (await readdir(join(copy.data, "pg_wal"))).filter((name) => !name.startsWith("xlogtemp."));
      expect(others.sort()).toEqual(existsSync(destination) ? ["RECOVERYXLOG", "archive_status"] : ["archive_status"]);
      expect(await copy.walb(FETCH)).toMatchObject({ exitCode: 0 });
      expect(same(await Bun.file(destination).bytes(), content)).toBe(true);
    });
    return "go on";
  });
  expect(exitCode).toBe(0);
  expect([found > 0, stops >= found]).toEqual([true, true]);
});

describe("the prefetcher", () => {
  const ON = { WALB_PREFETCH: "2" };
  const destination = (site: Site) => join(site.data, "pg_wal/RECOVERYXLOG");

  /** In recovery, which got A last. */
  async function recoveringSite(): Promise<Site> {
    const site = await Site.create();
    await site.control();
    await site.write("recovery.signal");
    await site.write("postmaster.pid", `${process.pid}\n${site.data}\n1\n5432\n/tmp\n\n1 1\nready\n`);
    for (const name of [A, B, C]) await site.store(`${name}.zst`, compressed(walContent(name)));
    await kept(site).create(A);
    return site;
  }
  const kept = (site: Site) => {
    const settings = loadSettings({}, { ...site.env, ...ON });
    return prefetchDirectoryOf(destination(site), settings, SYSTEM_IDENTIFIER);
  };

  test("killed at each of its steps, recovery gets every segment, and nothing is left", async () => {
    let steps = 1;
    for (let n = 1; n <= steps; n++) {
      await using site = await recoveringSite();
      const killed = await stepped(
        site,
        ["wal-prefetch", destination(site)],
        async (_, stops) => {
          steps = Math.max(steps, stops);
          if (stops === n) return "kill";
          // Once it has both, its work is done.
          if ((await kept(site).ready()).size === 2) steps = stops;
          return "go on";
        },
        ON,
      );
      expect(killed.exitCode).toBe(null);
      steps = (await kept(site).ready()).size === 2 ? n : n + 1;

      for (const name of [B, C]) {
        const fetched = await site.walb(["wal-fetch", name, destination(site)], { env: ON });
        expect([n, name, fetched.exitCode, fetched.stderr]).toEqual([n, name, 0, expect.not.stringContaining("ERROR")]);
        expect([n, name, same(await Bun.file(destination(site)).bytes(), walContent(name))]).toEqual([n, name, true]);
      }
      await rm(join(site.data, "postmaster.pid"));
      await rm(join(site.data, "recovery.signal"));
      await waitFor(async () => (await prefetchersOf(site.data)).length === 0, { what: "the prefetchers to end" });
      // A server that goes on after recovery archives.
      await site.write("pg_wal/00000002.history", "1\t0/3000000\tno recovery target specified\n");
      expect(await site.walb(["wal-push", "pg_wal/00000002.history"])).toMatchObject({ exitCode: 0 });
      const left = (await readdir(join(site.data, "pg_wal"))).filter((name) => !name.startsWith("xlogtemp."));
      expect([n, left.sort()]).toEqual([n, ["00000002.history", "RECOVERYXLOG", "archive_status"]]);
    }
    expect(steps).toBeGreaterThan(2);
  }, 300_000);
});

const { servers, stop } = await everyS3Server();
afterAll(stop);

/** Where a request is when the program is killed. */
const MOMENTS = [
  ["before", "silence"],
  ["in the middle of", "silence in the middle of the request"],
  ["behind", "silence instead of the answer"],
] as const;

describe.each(servers.map((server) => ({ name: server.name, server })))("wal-push to $name", ({ server }) => {
  async function scene(): Promise<
    AsyncDisposable & { site: Site; proxy: FaultProxy; bucket: string; env: Environment }
  > {
    const site = await waitingSite();
    const bucket = await server.createBucket();
    const proxy = await startFaultProxy(server.endpoint);
    // Of the store it is known that it does not overwrite: one request for each segment.
    const known = { WALB_RETRY_DEADLINE: "30s", WALB_S3_CONDITIONAL_WRITES: "require" };
    const env = { ...s3Environment(server, bucket), AWS_ENDPOINT_URL: proxy.url, ...known };
    const dispose = async () => {
      await proxy[Symbol.asyncDispose]();
      await site[Symbol.asyncDispose]();
    };
    return { site, proxy, bucket, env, [Symbol.asyncDispose]: dispose };
  }
  type Environment = Readonly<Record<string, string | undefined>>;
  const keys = [A, B, C].map((name) => `${PREFIX}/wal_005/${name}.zst`);

  /** Killed, and what is there looked at: nothing but what belongs there, whole; marks tell the truth; the next run completes it. */
  async function checkLeft(
    { site, bucket, env }: { readonly site: Site; readonly bucket: string; readonly env: Environment },
    what: string,
  ): Promise<void> {
    const left = Object.keys(await bucketListing(server, bucket));
    expect([what, left.filter((key) => !keys.includes(key))]).toEqual([what, []]);
    for (const name of [A, B, C]) {
      const isThere = left.includes(`${PREFIX}/wal_005/${name}.zst`);
      const isDone = (await site.marks()).includes(`${name}.done`);
      if (isThere) expect(same(await archivedInBucket(server, bucket, name), walContent(name))).toBe(true);
      expect([what, name, isDone && !isThere]).toEqual([what, name, false]);
    }
    expect([what, await site.walb(PUSH, { env })]).toMatchObject([what, { exitCode: 0 }]);
    expect(Object.keys(await bucketListing(server, bucket))).toEqual(keys);
    for (const name of [A, B, C])
      expect(same(await archivedInBucket(server, bucket, name), walContent(name))).toBe(true);
    expect([what, await site.marks()]).toEqual([what, [`${A}.ready`, `${B}.done`, `${C}.done`]]);
  }

  test("killed before, in and behind each of its requests", async () => {
    await using calm = await scene();
    expect(await calm.site.walb(PUSH, { env: calm.env })).toMatchObject({ exitCode: 0 });
    for (const [index, request] of calm.proxy.requests.entries()) {
      for (const [when, fault] of MOMENTS) {
        await using killed = await scene();
        const { site, proxy, env } = killed;
        await proxy.arm(faultNamed(fault), { from: index + 1 });
        const reached = waitFor(() => proxy.silent > 0, { what: `request ${index + 1}`, intervalMs: 5 });
        const pushed = await site.walb(PUSH, { env, signalled: reached.then(() => "SIGKILL" as const) });
        expect(pushed).toMatchObject({ signal: "SIGKILL" });
        await proxy.arm();
        await checkLeft(killed, `${when} ${request}`);
      }
    }
  }, 300_000);

  test("killed between each PUT and its mark", async () => {
    for (let n = 1; ; n++) {
      await using killed = await scene();
      const { site, env } = killed;
      const { signal, calls } = await runInSteps(
        [site.program, ...PUSH],
        { env: { ...site.env, ...env }, cwd: site.data, calls: ["rename"] },
        (
          (stops) => async () =>
            ++stops === n ? "kill" : "go on"
        )(0),
      );
      await checkLeft(killed, `rename ${n}`);
      if (signal === "SIGKILL") continue;
      // One mark each of two segments; made together, they are one stop.
      expect(calls).toHaveLength(2);
      expect(n).toBeGreaterThan(1);
      break;
    }
  });
});
