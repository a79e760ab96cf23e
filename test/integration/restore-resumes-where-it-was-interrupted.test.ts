/** A restore that was killed, cut off or out of space goes on with --resume: what is complete is compared and not read again. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { appendFile, mkdir, readdir, readFile, rm, rmdir, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  pushBackup,
  type RunningWalb,
  recover,
  startWalb,
  verifyBackup,
} from "../support/backups.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { faultNamed } from "../support/faults.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository, type TestRepository } from "../support/repositories.ts";
import { runProgram } from "../support/run-program.ts";
import { anyS3Server } from "../support/s3-server.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb } from "../support/walb.ts";

const MARKER = ".wal-b/unfinished-restore";

let s3: Awaited<ReturnType<typeof anyS3Server>>;
let proxy: FaultProxy;
let repository: TestRepository;
let server: PostgresServer;
let backup: string;
let directory: string;
let space: string;
let oid: string;

beforeAll(async () => {
  s3 = await anyS3Server();
  proxy = await startFaultProxy(s3.server.endpoint);
  repository = await s3Repository({ ...s3.server, endpoint: proxy.url });
  server = await startSmallCluster(3000, repository.env);
  oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
  backup = await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
  await archiveEverything(server, repository);
  [directory, space] = [join(server.directory, "restored"), join(server.directory, "restored space")];
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await proxy?.[Symbol.asyncDispose]();
  await s3?.stop();
});
beforeEach(async () => {
  await proxy.arm();
  for (const path of [directory, space]) await rm(path, { recursive: true, force: true });
});

const isPart = (request: string) => request.startsWith("GET ") && request.includes("/tar_partitions/part_");
/** Of the numbered parts that were asked for since the proxy was armed; sorted. */
const partsAskedFor = () =>
  proxy.requests
    .filter(isPart)
    .map((request) => request.slice(request.lastIndexOf("/") + 1))
    .sort();

const env = () => ({
  ...repository.env,
  WALB_DOWNLOAD_CONCURRENCY: "2",
  WALB_RETRY_DEADLINE: "1s",
  WALB_IDLE_TIMEOUT: "1s",
});
const mapping = () => ["--tablespace-mapping", `${oid}=${space}`];
const backupFetch = (...more: readonly string[]) => ["backup-fetch", directory, "LATEST", ...more];

/** Parts that the marker has. */
async function unpacked(): Promise<readonly string[]> {
  const text = await readFile(join(directory, MARKER), "utf8").catch(() => "");
  return [...text.matchAll(/^\{"part":"(part_[^"]+)"/gm)].map(([, part = ""]) => part).sort();
}

/** Begins, and stands still once so many numbered parts are unpacked: all further ones get no answer. */
async function begin(
  args: readonly string[],
  parts = 2,
  more: Readonly<Record<string, string>> = {},
): Promise<RunningWalb> {
  await proxy.arm(faultNamed("silence"), { from: parts + 1, only: isPart });
  const running = await startWalb(server, args, { ...env(), WALB_IDLE_TIMEOUT: "30s", ...more });
  await waitFor(async () => !running.isRunning || (await unpacked()).length === parts, { what: `${parts} parts` });
  expect(running.stderr).not.toContain("ERROR");
  return running;
}

async function interrupt(
  args: readonly string[] = backupFetch(...mapping()),
  parts?: number,
): Promise<readonly string[]> {
  await using running = await begin(args, parts);
  running.signal("SIGKILL");
  expect(await running.ended()).toEqual({ exitCode: null, signal: "SIGKILL" });
  await proxy.arm();
  return await unpacked();
}

const run = (args: readonly string[]) => runWalb(args, { as: server, env: env() });

async function resumes(args: readonly string[] = backupFetch("--resume")): Promise<string> {
  const { exitCode, stderr } = await run(args);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.not.stringContaining("ERROR") });
  return stderr;
}

async function refuses(args: readonly string[], code: number, said: readonly string[]): Promise<void> {
  const { exitCode, stderr } = await run(args);
  expect({ exitCode, stderr }).toEqual({ exitCode: code, stderr: expect.stringContaining(said[0] ?? "") });
  for (const text of said) expect(stderr).toContain(text);
}

/** Every file is the backup's, nothing else is there, and the rows are. */
async function isWhole(
  { recovered }: { readonly recovered: "recover" | "look" } = { recovered: "look" },
): Promise<void> {
  expect(await readdir(directory)).not.toContain(".wal-b");
  const { exitCode, stdout, stderr } = await verifyBackup(directory);
  expect({ exitCode, stdout, stderr }).toMatchObject({ exitCode: 0 });
  if (recovered === "look") return;
  await using restored = await recover(directory, repository.env);
  expect(await contentOf(restored)).toEqual(await contentOf(server));
}

const allParts = async () =>
  (await repository.keys())
    .filter((key) => key.includes(backup))
    .flatMap((key) => /tar_partitions\/(part_.*)$/.exec(key)?.[1] ?? [])
    .sort();

describe("backup-fetch --resume", () => {
  test("reads only parts that were not unpacked, each once, and takes the tablespaces' places from before", async () => {
    const before = await interrupt();
    expect(before).toHaveLength(2);
    expect(existsSync(join(directory, "global/pg_control"))).toBe(false);
    await refuses(backupFetch(...mapping()), 73, [
      `"${directory}" holds a restore that was interrupted`,
      backup,
      "--resume",
    ]);

    await proxy.arm();
    expect(await resumes()).toContain("files are complete and");
    expect(partsAskedFor()).toEqual((await allParts()).filter((part) => !before.includes(part)));
    await isWhole({ recovered: "recover" });
  });

  test("killed again and again, it comes to its end", async () => {
    const total = (await allParts()).length;
    let args = backupFetch(...mapping());
    let asked = 0;
    for (let parts = 1; parts < total; parts += 2) {
      const known = (await unpacked()).length;
      await proxy.arm(faultNamed("silence"), { from: parts - known + 1, only: isPart });
      await using running = await startWalb(server, args, { ...env(), WALB_IDLE_TIMEOUT: "30s" });
      await waitFor(async () => (await unpacked()).length === parts, { what: `${parts} parts` });
      running.signal("SIGKILL");
      await running.ended();
      asked += new Set(partsAskedFor()).size;
      args = backupFetch("--resume");
    }
    await proxy.arm();
    await resumes(args);
    // Those that were under way when it was killed, at most two each time, are read again.
    expect(asked + partsAskedFor().length).toBeLessThanOrEqual(total + 2 * Math.ceil(total / 2));
    await isWhole();
  });

  test("a network that is cut ends it with 69 and a word of how to go on", async () => {
    await proxy.arm(faultNamed("a connection that is reset"), { from: 3, only: isPart });
    await refuses(backupFetch(...mapping()), 69, ["could not read", "--resume goes on from there"]);
    const before = await unpacked();
    await proxy.arm();
    await resumes();
    expect(partsAskedFor()).toEqual((await allParts()).filter((part) => !before.includes(part)));
    await isWhole();
  });

  test("what was changed meanwhile is restored again, whatever the marker says", async () => {
    const before = await interrupt(backupFetch(...mapping()), 4);
    const files = (await readdir(directory, { recursive: true }))
      .filter((path) => /^base\/\d+\/\d+$/.test(path))
      .sort();
    const [flipped = "", short = "", gone = "", old = ""] = await withContent(files);
    // One bit of it, and the same time.
    const content = await readFile(join(directory, flipped));
    const { atime, mtime } = await stat(join(directory, flipped));
    content[100] = (content[100] ?? 0) ^ 1;
    await writeFile(join(directory, flipped), content);
    await utimes(join(directory, flipped), atime, mtime);
    await writeFile(join(directory, short), content.subarray(0, 10));
    await rm(join(directory, gone));
    // Mode and time come last, so a file of another time may lack its mode.
    await utimes(join(directory, old), 1, 1);

    await proxy.arm();
    await resumes();
    expect(partsAskedFor().filter((part) => before.includes(part))).not.toEqual([]);
    expect((await stat(join(directory, flipped))).mtimeMs).toBe(mtime.getTime());
    await isWhole();
  });

  test("a directory that is gone, and had no file in it, is made again", async () => {
    const before = await interrupt(backupFetch(...mapping()), 4);
    const paths = (await readFile(join(directory, MARKER), "utf8"))
      .split("\n")
      .filter((line) => line.startsWith('{"part":"part_'))
      .flatMap((line) => (JSON.parse(line) as { readonly directories: readonly string[] }).directories);
    const removed: string[] = [];
    for (const path of paths) if (await rmdir(join(directory, path)).then(yes, no)) removed.push(path);
    expect(removed).not.toEqual([]);

    await proxy.arm();
    await resumes();
    expect(partsAskedFor().filter((part) => before.includes(part))).not.toEqual([]);
    expect(removed.filter((path) => !existsSync(join(directory, path)))).toEqual([]);
    await isWhole();
  });

  test("of a marker that ends in the middle of a line, the whole lines count", async () => {
    const before = await interrupt();
    await appendFile(join(directory, MARKER), '{"part":"part_003.tar.zst","direc');
    await proxy.arm();
    await resumes();
    expect(partsAskedFor()).toEqual((await allParts()).filter((part) => !before.includes(part)));
    await isWhole();
  });

  test("begins in a directory that is empty, so that a script may always say it", async () => {
    await resumes([...backupFetch("--resume"), ...mapping()]);
    await isWhole();
  });
});

const yes = () => true;
const no = () => false;

/** Those that are larger than a page. */
async function withContent(files: readonly string[]): Promise<readonly string[]> {
  const sizes = await Promise.all(files.map(async (path) => [path, (await stat(join(directory, path))).size] as const));
  return sizes.filter(([, size]) => size > 8192).map(([path]) => path);
}

describe("--resume refuses", () => {
  test("a directory that no restore was interrupted in", async () => {
    await server.makeDirectory("restored");
    await writeFile(join(directory, "precious"), "");
    await refuses(backupFetch("--resume"), 73, [`"${directory}" is not empty`, '"precious"']);
  });

  test("files that no restore put there, in the target and in a tablespace, and removes nothing", async () => {
    await interrupt();
    const foreign = [join(directory, "base/precious"), join(space, "precious")];
    for (const path of foreign) {
      await writeFile(path, "");
      const inside = path.startsWith(space) ? `"pg_tblspc/${oid}/precious"` : '"base/precious"';
      await refuses(backupFetch("--resume"), 73, ["what no restore of this backup put there", inside]);
      expect(existsSync(path)).toBe(true);
      await rm(path);
    }
    await resumes();
    await isWhole();
  });

  test("another backup, by its name, and goes on with the older one for LATEST, with a warning", async () => {
    await interrupt();
    await server.switchWal();
    const newer = await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
    await refuses(["backup-fetch", directory, newer, "--resume"], 73, ["belongs to another backup", backup, newer]);
    await refuses(["restore", directory, "--backup", newer, "--resume"], 73, ["belongs to another backup"]);
    expect(await resumes()).toContain(`there is a newer backup than "${backup}"`);
    await isWhole();
    backup = newer;
  });

  test("other places for tablespaces", async () => {
    await interrupt();
    const elsewhere = join(server.directory, "elsewhere");
    await refuses(backupFetch("--resume", "--tablespace-mapping", `${oid}=${elsewhere}`), 64, [
      `tablespace ${oid} cannot go elsewhere now`,
      space,
    ]);
    expect(existsSync(elsewhere)).toBe(false);
    await resumes(backupFetch("--resume", ...mapping()));
    await isWhole();
  });

  test("a restore that still runs", async () => {
    await using running = await begin(backupFetch(...mapping()));
    await refuses(backupFetch("--resume"), 73, [`a restore into "${directory}" is running`, "Its process is"]);
    running.signal("SIGKILL");
    await running.ended();
  });

  test("a directory that is complete and that a server has run on", async () => {
    await fetchBackup(server, repository.env, { directory, args: mapping() });
    // As when it is killed behind pg_control's name, before the marker is removed.
    await putMarkerBack();
    await resumes();
    await isWhole();

    await putMarkerBack();
    const control = join(directory, "global/pg_control");
    const content = await readFile(control);
    content[16] = (content[16] ?? 0) ^ 1;
    await writeFile(control, content);
    await refuses(backupFetch("--resume"), 73, ["was restored completely, and a server has run on it"]);
    expect(await readFile(control)).toEqual(content);
  });
});

async function putMarkerBack(): Promise<void> {
  const manifest = await readFile(join(directory, "backup_manifest"));
  const manifestSha256 = new Bun.CryptoHasher("sha256").update(manifest).digest("hex");
  const tablespaces = [{ oid, place: space }];
  const line = { formatVersion: 1, beganAt: new Date(0), backup, manifestSha256, repository: "", tablespaces };
  await mkdir(join(directory, ".wal-b"));
  await writeFile(join(directory, MARKER), `${JSON.stringify(line)}\n`);
  for (const path of [".wal-b", MARKER]) await giveTo(server.account, join(directory, path));
}

test("restore --resume sets recovery up, and keeps to the backup that it began with", async () => {
  const before = await interrupt(["restore", directory, ...mapping()]);
  await proxy.arm();
  await resumes(["restore", directory, "--resume"]);
  expect(partsAskedFor()).toEqual((await allParts()).filter((part) => !before.includes(part)));
  expect(await readdir(directory)).toContain("recovery.signal");
  expect(await readFile(join(directory, "postgresql.auto.conf"), "utf8")).toContain("restore_command");
});

// Only root may mount a small file system.
if (process.getuid?.() !== 0) {
  process.stderr.write("not tested: a file system that runs full: that needs root\n");
} else {
  test("a file system that runs full ends it with 73, and with more room it goes on", async () => {
    const small = await server.makeDirectory("small");
    const mounted = await runProgram(["mount", "-t", "tmpfs", "-o", "size=80m", "small", small]);
    if (mounted.exitCode !== 0) {
      process.stderr.write(`not tested: a file system that runs full: ${mounted.stderr}\n`);
      return;
    }
    directory = join(small, "restored");
    try {
      await giveTo(server.account, small);
      await using running = await begin(backupFetch(...mapping()), 1, {
        WALB_IDLE_TIMEOUT: "1s",
        WALB_RETRY_DEADLINE: "30s",
      });
      await runProgram(["dd", "if=/dev/zero", `of=${small}/fill`, "bs=1M"]);
      await proxy.arm();
      expect(await running.ended()).toEqual({ exitCode: 73, signal: null });
      expect(running.stderr).toContain("The file system is full");
      expect(running.stderr).toContain("--resume goes on from there");
      await refuses(backupFetch("--resume"), 73, ["the backup does not fit"]);
      await rm(join(small, "fill"));
      await resumes();
      await isWhole();
    } finally {
      await runProgram(["umount", small]);
      directory = join(server.directory, "restored");
    }
  });
}
