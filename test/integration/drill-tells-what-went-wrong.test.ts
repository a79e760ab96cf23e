/** verify --drill when it cannot be done, or when the archive is damaged: what is said, what is left, and what counts against the backup. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, shortTemporaryDirectory } from "../support/account.ts";
import { archiveEverything, pushBackup, startArchiving, startWalb, temporaryRepository } from "../support/backups.ts";
import { documentOf, ScratchParent, serverThatWaits } from "../support/drills.ts";
import { inOwnNamespace } from "../support/mounts.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { processIsAlive } from "../support/process-tree.ts";
import { runProgram } from "../support/run-program.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

type Repository = Awaited<ReturnType<typeof temporaryRepository>>;

let original: Repository;
let server: PostgresServer;
let scratch: ScratchParent;
let backup: string;

beforeAll(async () => {
  original = await temporaryRepository();
  server = await startArchiving(original.env, { walSegmentSizeMiB: 1 });
  scratch = await ScratchParent.create(server);
  backup = await pushBackup(server, original.env);
  await server.query("CREATE TABLE later AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 5000) n");
  await archiveEverything(server, original);
  await server.stop();
}, 240_000);
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await original?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

async function copyOfRepository(): Promise<Repository> {
  const copy = await temporaryRepository();
  const { exitCode, stderr } = await runProgram(["cp", "-a", `${original.directory}/.`, copy.directory]);
  if (exitCode !== 0) throw new Error(stderr);
  return copy;
}

const segments = async ({ keys }: Repository) =>
  (await keys()).filter((key) => /^wal_005\/[0-9A-F]{24}\.zst$/.test(key) && key > `wal_005/${backup.slice(5)}`);

async function flip(path: string): Promise<void> {
  const body = await readFile(path);
  const middle = body.byteLength >> 1;
  body[middle] = (body[middle] ?? 0) ^ 4;
  await writeFile(path, body);
}

const drills = async ({ keys }: Repository) => (await keys()).filter((key) => key.includes("walb_drill_"));

describe("the archive", () => {
  test("with a segment missing in the middle is refused before anything is restored", async () => {
    await using copy = await copyOfRepository();
    const missing = (await segments(copy)).at(-2) ?? "";
    await rm(join(copy.directory, missing));
    const { exitCode, stdout, stderr } = await scratch.drill(copy.env, [], server);
    expect({ exitCode, stdout }).toEqual({ exitCode: 65, stdout: "" });
    expect(stderr).toContain(
      `the archive has a gap before the end of the archive: "${missing.slice(8, 32)}" is missing`,
    );
    expect(stderr).not.toContain("restoring");
    expect(await scratch.left()).toEqual([]);
  }, 240_000);

  test("with a damaged segment does not recover, and that counts against the backup", async () => {
    await using copy = await copyOfRepository();
    const damaged = (await segments(copy)).at(-2) ?? "";
    await flip(join(copy.directory, damaged));
    const result = await scratch.drill(copy.env, [], server);
    expect(result.exitCode).toBe(65);
    const { verdict, findings, recovery_seconds, stored } = documentOf(result);
    expect({ verdict, recovery_seconds }).toEqual({ verdict: "bad", recovery_seconds: null as never });
    expect(JSON.stringify(findings)).toContain(damaged);
    expect(stored).toMatch(/_bad\.json$/);
    expect(await scratch.left()).toEqual([]);
  }, 240_000);

  test("that refuses a segment says nothing of the backup, and nothing is kept", async () => {
    await using copy = await copyOfRepository();
    await chmod(join(copy.directory, (await segments(copy)).at(-2) ?? ""), 0);
    const result = await scratch.drill(copy.env, [], server);
    expect(result).toMatchObject({ exitCode: 77, stdout: "" });
    expect({ left: await scratch.left(), drills: await drills(copy) }).toEqual({ left: [], drills: [] });
  }, 240_000);

  test("with WAL that ends in the middle, whatever comes behind it, is not replayed to its end", async () => {
    await using copy = await copyOfRepository();
    // A whole segment as PostgreSQL makes it new: its header is right, and it has no record.
    const key = join(copy.directory, (await segments(copy)).at(-2) ?? "");
    const content = Bun.zstdDecompressSync(await readFile(key));
    await writeFile(key, Bun.zstdCompressSync(Buffer.from(content).fill(0, 40)));
    const result = await scratch.drill(copy.env, [], server);
    expect(result.exitCode).toBe(65);
    expect(documentOf(result).findings[0]?.problem).toMatch(
      /^recovery ended at \S+, before "[0-9A-F]{24}", the last segment in the archive$/,
    );
  }, 240_000);

  test("with a damaged part: the restore tells, and that counts too", async () => {
    await using copy = await copyOfRepository();
    await flip(join(copy.directory, `basebackups_005/${backup}/tar_partitions/part_001.tar.zst`));
    const result = await scratch.drill(copy.env, [], server);
    expect(result.exitCode).toBe(65);
    expect(documentOf(result).findings).toMatchObject([{ problem: "a part of the backup is damaged" }]);
    expect(await drills(copy)).toHaveLength(1);
    expect(await scratch.left()).toEqual([]);
  }, 240_000);

  test("that may not be written to: the drill tells, and warns that it could not keep it", async () => {
    await using copy = await copyOfRepository();
    await runProgram(["chmod", "-R", "a-w", copy.directory]);
    const result = await scratch.drill(copy.env, [], server);
    await runProgram(["chmod", "-R", "u+w", copy.directory]);
    expect(result.exitCode).toBe(0);
    expect(documentOf(result)).toMatchObject({ verdict: "good", stored: null });
    expect(result.stderr).toContain(`WARNING: could not store the result beside backup "${backup}"`);
    expect(await drills(copy)).toEqual([]);
  }, 240_000);

  test("from which the backup is deleted meanwhile: nothing is written beside it", async () => {
    await using copy = await copyOfRepository();
    const sentinel = join(copy.directory, `basebackups_005/${backup}_backup_stop_sentinel.json`);
    const bin = await fakePostgres(`rm -f ${sentinel}; exec ${server.bin("postgres")} "$@"`);
    const result = await scratch.drill(copy.env, ["--postgres-bin", bin], server);
    await rm(bin, { recursive: true });
    expect(result.exitCode).toBe(0);
    expect(result.stderr).toContain("DETAIL: The backup was deleted meanwhile.");
    expect(await drills(copy)).toEqual([]);
  }, 240_000);

  test("whose newest backup cannot be read: an older one proves nothing", async () => {
    await using copy = await copyOfRepository();
    await writeFile(
      join(copy.directory, "basebackups_005/base_0000000100000000000000FF_backup_stop_sentinel.json"),
      "{",
    );
    const result = await scratch.drill(copy.env, [], server);
    expect(result).toMatchObject({ exitCode: 65, stdout: "" });
    expect(result.stderr).toContain('the newest backup, "base_0000000100000000000000FF", cannot be read');
  });
});

/** A directory with a program "postgres" that knows its version and is otherwise this script. */
async function fakePostgres(script: string): Promise<string> {
  const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-fake-"));
  await chmod(directory, 0o755);
  const version = 'if [ "$1" = --version ]; then echo "postgres (PostgreSQL) 18.4"; exit; fi';
  await writeFile(join(directory, "postgres"), `#!/bin/sh\n${version}\n${script}\n`, { mode: 0o755 });
  return directory;
}

describe("the server", () => {
  test("that does not start: the end of its log is told, and nothing is held against the backup", async () => {
    const bin = await fakePostgres("echo 'FATAL:  no luck today' >&2; exit 1");
    const result = await scratch.drill(original.env, ["--postgres-bin", bin], server);
    await rm(bin, { recursive: true });
    expect(result).toMatchObject({ exitCode: 76, stdout: "" });
    expect(result.stderr).toContain("PostgreSQL 18.4 did not start on the restored directory");
    expect(result.stderr).toContain("FATAL:  no luck today");
    expect({ left: await scratch.left(), drills: await drills(original) }).toEqual({ left: [], drills: [] });
  }, 240_000);

  test("that is never ready is given up, and ended", async () => {
    await using bin = await serverThatWaits(server);
    const args = scratch.args("--postgres-bin", bin.path);
    await using drill = await startWalb(server, args, { ...original.env, WALB_DRILL_TIMEOUT: "10s" });
    const pid = await waitFor(async () => (await scratch.serverPid()) ?? (drill.isRunning ? undefined : -1), {
      what: "the server, or the end of the time",
      timeoutMs: 120_000,
    });
    expect(await drill.ended()).toMatchObject({ exitCode: 76 });
    expect(drill.stderr).toContain("the drill did not end within 10 s");
    if (pid > 0) expect(processIsAlive(pid)).toBe(false);
    expect(await scratch.left()).toEqual([]);
  }, 240_000);

  test("of another major, or none, is not used", async () => {
    const bin = await fakePostgres("exit 1");
    await writeFile(join(bin, "postgres"), "#!/bin/sh\necho 'postgres (PostgreSQL) 9.6.24'\n", { mode: 0o755 });
    const other = await scratch.drill(original.env, ["--postgres-bin", bin], server);
    await rm(bin, { recursive: true });
    expect(other).toMatchObject({ exitCode: 76, stdout: "" });
    expect(other.stderr).toContain(`"${bin}" has version 9.6.24.`);
    const none = await scratch.drill(original.env, ["--postgres-bin", "/nonexistent"], server);
    expect(none).toMatchObject({ exitCode: 76, stdout: "" });
    expect(none.stderr).toContain("there is no PostgreSQL 18 that could be started here");
    expect(await scratch.left()).toEqual([]);
  });
});

describe("the scratch directory", () => {
  test("that is not there, or too deep for a socket", async () => {
    const nowhere = await runWalb(["verify", "--drill", "--scratch", join(scratch.path, "nowhere")], {
      env: original.env,
    });
    expect(nowhere).toMatchObject({ exitCode: 73, stdout: "" });
    const deep = join(scratch.path, "d".repeat(80));
    await mkdir(deep);
    await giveTo(server.account, deep);
    const result = await runWalb(["verify", "--drill", "--scratch", deep], { as: server, env: original.env });
    await rm(deep, { recursive: true });
    expect(result).toMatchObject({ exitCode: 64, stdout: "" });
    expect(result.stderr).toMatch(/The path of a socket in it would be \d+ bytes too long\./);
  });

  test.each([
    // The backup has 22 MiB, and the WAL behind it 5.
    ["16m", "the backup does not fit into "],
    ["24m", "the backup and the WAL that is replayed do not fit into "],
  ])("that has only %s: nothing is restored", async (size, message) => {
    const script = `mount -t tmpfs -o size=${size},mode=755 tmpfs "$1" || exit 99; shift; exec "$@"`;
    const drill = [await walbBinary(undefined), ...scratch.args()];
    const result = await runProgram(
      [...inOwnNamespace("mount"), "/bin/sh", "-c", script, "sh", scratch.path, ...drill],
      {
        env: original.env,
      },
    );
    expect(result).toMatchObject({ exitCode: 73, stdout: "" });
    expect(result.stderr).toContain(`ERROR: ${message}`);
    expect(result.stderr).not.toContain("restoring");
  });

  test.if(process.getuid?.() === 0)("that the server's account cannot reach", async () => {
    const closed = join(scratch.path, "closed");
    await mkdir(join(closed, "inside"), { recursive: true, mode: 0o700 });
    await giveTo(server.account, join(closed, "inside"));
    const args = ["verify", "--drill", "--scratch", join(closed, "inside"), ...scratch.args().slice(4)];
    const result = await runWalb(args, { env: original.env });
    await rm(closed, { recursive: true });
    expect(result).toMatchObject({ exitCode: 73, stdout: "" });
    expect(result.stderr).toMatch(/ERROR: account \d+, which is to run the server, cannot enter /);
  });
});

test("words that contradict each other", async () => {
  const words = [
    ["--drill", "--all"],
    ["--drill", "--wal"],
    ["--keep"],
    ["--to", "latest"],
    ["--drill", "--to", "yesterday"],
  ];
  for (const args of words) {
    expect(await runWalb(["verify", ...args], { env: original.env })).toMatchObject({ exitCode: 64, stdout: "" });
  }
});
