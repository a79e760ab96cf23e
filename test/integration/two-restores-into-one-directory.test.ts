/** Of two restores into one directory, one does it and the other is told which process that is. */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readdir, readFile, rm, truncate } from "node:fs/promises";
import { join } from "node:path";
import {
  fetchBackup,
  pushBackup,
  type RunningWalb,
  startWalb,
  temporaryRepository,
  verifyBackup,
  walbInSteps,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import type { Stop } from "../support/system-calls.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb } from "../support/walb.ts";

const MARKER = ".wal-b/unfinished-restore";
const AT_ONCE = 4;

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let directory: string;
let space: string;
let args: readonly string[];
/** The largest file of the backup, which takes the longest to be compared. */
let large: string;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startSmallCluster(30_000, repository.env);
  [directory, space] = [join(server.directory, "restored"), join(server.directory, "restored space")];
  const oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
  args = ["--tablespace-mapping", `${oid}=${space}`];
  const path = await server.psql("SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'large'");
  large = path.replace(`pg_tblspc/${oid}`, space);
  await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});
beforeEach(async () => {
  for (const path of [directory, space]) await rm(path, { recursive: true, force: true });
});

const start = async (...more: readonly string[]): Promise<RunningWalb> =>
  await startWalb(server, ["backup-fetch", directory, "LATEST", ...args, ...more], repository.env);

/** Restores into the directory, stopped behind some of its calls. */
const inSteps = (
  at: Parameters<typeof walbInSteps>[3],
  look: Parameters<typeof walbInSteps>[4],
  ...more: readonly string[]
) => walbInSteps(server, repository.env, ["backup-fetch", directory, "LATEST", ...args, ...more], at, look);

/** Killed when everything is there but pg_control's name, and then with files that are cut short. */
async function interrupt(): Promise<void> {
  const { signal } = await inSteps({ calls: ["fsync"] }, async () =>
    existsSync(join(directory, "backup_manifest")) ? "kill" : "go on",
  );
  expect(signal).toBe("SIGKILL");
  const files = (await readdir(directory, { recursive: true })).filter((path) => /^base\/\d+\/\d+$/.test(path)).sort();
  for (const path of files.slice(0, 3)) await truncate(join(directory, path), 10);
}

/** Goes on with what was interrupted; `meanwhile` happens when it has opened the largest file to compare it. */
async function resumeWith(meanwhile: (pid: number) => Promise<void>) {
  await interrupt();
  let stops = 0;
  const look = async ({ pid }: Stop) => {
    if (stops++ === 0) await meanwhile(pid);
    return "go on" as const;
  };
  const ended = await inSteps({ calls: ["openat"], only: [large] }, look, "--resume");
  expect(stops).toBeGreaterThan(0);
  return ended;
}

async function isWhole(): Promise<void> {
  expect(existsSync(join(directory, "global/pg_control"))).toBe(true);
  expect(await readdir(directory)).not.toContain(".wal-b");
  const { exitCode, stdout, stderr } = await verifyBackup(directory);
  expect({ exitCode, stdout, stderr }).toMatchObject({ exitCode: 0 });
}

const running = (pid: number | undefined) =>
  `ERROR: a restore into "${directory}" is running\n  DETAIL: Its process is ${pid}.\n`;

test.each([
  ["backup-fetch", ["LATEST"]],
  ["restore", []],
] as const)(
  "%s --resume is refused while another compares what is there, and that one completes it",
  async (command, name) => {
    const first = await resumeWith(async (pid) => {
      const second = await runWalb([command, directory, ...name, "--resume"], { as: server, env: repository.env });
      expect({ exitCode: second.exitCode, stderr: second.stderr }).toEqual({
        exitCode: 73,
        stderr: expect.stringContaining(running(pid)),
      });
      expect(second.stderr).not.toContain("goes on from there");
    });
    expect({ exitCode: first.exitCode, stderr: first.stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
    await isWhole();
  },
  120_000,
);

test(`of ${AT_ONCE} that go on at once, one does`, async () => {
  await interrupt();
  const all = await Promise.all(Array.from({ length: AT_ONCE }, async () => await start("--resume")));
  const codes = await Promise.all(all.map(async (each) => (await each.ended()).exitCode));
  const told = all.map(({ stderr }) => stderr).join("");
  expect({ codes: codes.toSorted(), told }).toEqual({
    codes: [0, 73, 73, 73],
    told: expect.not.stringMatching(/EEXIST|ENOENT/),
  });
  await isWhole();
}, 120_000);

test("a marker that goes while what is there is compared ends it, and nothing is removed", async () => {
  let before: readonly string[] = [];
  const { exitCode, stderr } = await resumeWith(async () => {
    await rm(join(directory, ".wal-b"), { recursive: true });
    before = (await readdir(directory, { recursive: true })).sort();
  });
  expect({ exitCode, stderr }).toEqual({
    exitCode: 73,
    stderr: expect.stringContaining(`the restore into "${directory}" is not this process's any more`),
  });
  expect((await readdir(directory, { recursive: true })).sort()).toEqual([...before]);
}, 120_000);

test.each([
  // how many calls of fsync behind the manifest, which is put in place when everything is unpacked
  ["files are unpacked", Number.NEGATIVE_INFINITY],
  ["the tablespace is made durable", 1],
  ["the directory is made durable", 100],
])(
  "a marker that goes while %s ends it, and what is there does not become a data directory",
  async (_, syncs) => {
    let behind = 0;
    const { exitCode, stderr } = await inSteps({ calls: ["fsync"] }, async ({ calls }) => {
      if (existsSync(join(directory, "backup_manifest"))) behind += calls.length;
      if (behind >= syncs) await rm(join(directory, ".wal-b"), { recursive: true, force: true });
      return "go on";
    });
    expect({ exitCode, stderr }).toEqual({
      exitCode: 73,
      stderr: expect.stringContaining(`the restore into "${directory}" is not this process's any more`),
    });
    expect(behind).toBeGreaterThanOrEqual(syncs);
    expect(existsSync(join(directory, "global/pg_control"))).toBe(false);
    expect(existsSync(join(directory, "backup_manifest"))).toBe(true);
  },
  120_000,
);

test("a directory that is removed while files are unpacked is told as what it is", async () => {
  const { exitCode, stderr } = await inSteps({ calls: ["fsync"] }, async () => {
    await rm(directory, { recursive: true, force: true });
    return "go on";
  });
  expect({ exitCode, stderr }).toEqual({
    exitCode: 73,
    stderr: expect.stringContaining(`the restore into "${directory}" is not this process's any more`),
  });
}, 120_000);

test("a dry run takes possession of nothing", async () => {
  await interrupt();
  const before = await readFile(join(directory, MARKER), "utf8");
  const options = { as: server, env: repository.env };
  const { exitCode, stderr } = await runWalb(["restore", directory, "--dry-run", "--resume"], options);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  expect(await readFile(join(directory, MARKER), "utf8")).toBe(before);
}, 120_000);

/** The first is stopped when it has found the directory empty and has made it; `meanwhile` happens before its marker. */
async function beginWith(meanwhile: () => Promise<void>): Promise<string> {
  let stops = 0;
  const { exitCode, stderr } = await inSteps({ calls: ["mkdir"] }, async ({ calls }) => {
    if (calls.some((call) => call.includes(`"${directory}"`)) && stops++ === 0) await meanwhile();
    return "go on";
  });
  expect(stops).toBeGreaterThan(0);
  expect({ exitCode, stderr }).toEqual({ exitCode: 73, stderr: expect.any(String) });
  expect(stderr).not.toContain("goes on from there");
  return stderr;
}

test("of two that begin at once, the one that comes second is told which process has it", async () => {
  let other: RunningWalb | undefined;
  const stderr = await beginWith(async () => {
    other = await start();
    await waitFor(async () => (await readFile(join(directory, MARKER), "utf8").catch(() => "")).includes("runBy"), {
      intervalMs: 1,
      what: "the other's marker",
    });
    other.signal("SIGSTOP");
  });
  await using first = other as RunningWalb;
  expect(stderr).toContain(running(first.pid));
  first.signal("SIGCONT");
  expect(await first.ended()).toEqual({ exitCode: 0, signal: null });
  await isWhole();
}, 120_000);

test("what another restored completely, since the directory was found empty, stays as it is", async () => {
  const stderr = await beginWith(async () => await fetchBackup(server, repository.env, { directory, args }));
  expect(stderr).toContain(`"${directory}" is not empty`);
  await isWhole();
}, 120_000);
