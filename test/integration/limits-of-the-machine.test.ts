/**
 * Disks that are full or read-only, limits of files and descriptors, directories that cannot be used: each command says what and
 * where, leaves nothing half visible, and succeeds once the cause is gone.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { chmod, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import {
  archiveEverything,
  listedBackups,
  pushBackup,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import { canMount, withOwnMounts } from "../support/mounts.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import type { ProgramResult } from "../support/run-program.ts";
import { walbBinary } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let directory: string;
let restores = 0;
const onOwnMounts = test.skipIf(!(await canMount()));

/** What does not compress, so that a limit in bytes is met. */
const FILLER =
  "SELECT n, string_agg(md5(random()::text), '') FROM generate_series(1, 4000) n, generate_series(1, 60) GROUP BY n";

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
  await server.query(`CREATE TABLE filler AS ${FILLER}`);
  await pushBackup(server, repository.env);
  await archiveEverything(server, repository);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});
beforeEach(() => {
  directory = join(server.directory, `restored-${++restores}`);
});

/** Runs a script as the server's account, in which "$WALB" is wal-b, "$REPOSITORY" its repository and "$DIR" a new directory. */
async function shell(script: string): Promise<ProgramResult> {
  return await server.runAs(["/bin/bash", "-c", script], { env: await variables(), timeoutMs: 90_000 });
}

/** The same, but as somebody who may mount; "$AS" before a program makes it the server's account's. */
async function mounting(script: string): Promise<ProgramResult> {
  const options = { account: server.account, cwd: server.directory, timeoutMs: 90_000 };
  return await withOwnMounts(script, { ...options, env: { ...server.env, ...(await variables()) } });
}

const variables = async () => ({
  ...repository.env,
  ...{ WALB: await walbBinary(), REPOSITORY: repository.directory, DIR: directory, DATA: server.dataDirectory },
});

const objects = async () => (await repository.keys()).filter((key) => key.startsWith("basebackups_005/"));

/** The server is out of backup mode, and what there was before is there and nothing else. */
async function expectNothingOf(before: readonly string[]): Promise<void> {
  expect(await objects()).toEqual([...before]);
  const sessions =
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
  await server.waitFor(async () => (await server.psql(sessions)) === "0", { what: "the session to be gone" });
}

/** A directory that cannot start, if it is there at all. */
function expectNotRestored(): void {
  expect(existsSync(join(directory, "global/pg_control"))).toBe(false);
}

describe("backup-push", () => {
  test("a limit of the file size: told, nothing is left, and without it the backup succeeds", async () => {
    const before = await objects();
    const { exitCode, stderr } = await shell('ulimit -f 1024; "$WALB" --terse backup-push "$DATA"');
    expect({ exitCode, stderr }).toEqual({
      exitCode: 69,
      stderr: expect.stringMatching(
        /^wal-b: ERROR: could not write "file:.*\/tar_partitions\/part_\d+\.tar\.zst"\n {2}DETAIL: EFBIG: file too large, write\.\n/,
      ),
    });
    await expectNothingOf(before);
    expect((await shell('"$WALB" --terse backup-push "$DATA"')).exitCode).toBe(0);
  });

  onOwnMounts("a disk that gets full: told, and nothing is left", async () => {
    const before = await objects();
    const { exitCode, stdout, stderr } = await mounting(`
      mount -t tmpfs -o size=4m,mode=777 tmpfs "$REPOSITORY/basebackups_005"
      $AS "$WALB" --terse backup-push "$DATA"; echo "exit code $?"
      find "$REPOSITORY/basebackups_005" -type f`);
    expect({ exitCode, stdout, stderr }).toEqual({
      exitCode: 0,
      stdout: "exit code 69\n",
      stderr: expect.stringMatching(
        /^wal-b: ERROR: could not write "file:.*"\n {2}DETAIL: ENOSPC: .*\n {2}HINT: The disk .* is full/,
      ),
    });
    await expectNothingOf(before);
  });

  onOwnMounts("a read-only repository: told", async () => {
    const before = await objects();
    const { stdout, stderr } = await mounting(`
      mount --bind "$REPOSITORY/basebackups_005" "$REPOSITORY/basebackups_005"
      mount -o remount,bind,ro "$REPOSITORY/basebackups_005"
      $AS "$WALB" --terse backup-push "$DATA"; echo "exit code $?"
      $AS "$WALB" --terse delete everything FORCE --confirm > /dev/null; echo "exit code $?"`);
    expect(stdout).toBe("exit code 69\nexit code 69\n");
    expect(stderr).toMatch(
      /could not write "file:.*"\n {2}DETAIL: EROFS: .*\n {2}HINT: The repository is mounted read-only\./,
    );
    expect(stderr).toMatch(
      /could not delete \d+ of \d+ objects\n {2}DETAIL: Still there: "file:.*_backup_stop_sentinel.json" \(EROFS/,
    );
    await expectNothingOf(before);
  });

  test("a file of the server that cannot be read: told, and nothing is left", async () => {
    const before = await objects();
    const path = join(server.dataDirectory, await server.psql("SELECT pg_relation_filepath('filler')"));
    await chmod(path, 0o000);
    try {
      const { exitCode, stderr } = await shell('"$WALB" --terse backup-push "$DATA"');
      expect({ exitCode, stderr }).toEqual({
        exitCode: 66,
        stderr: expect.stringContaining(`could not open "${path}"`),
      });
    } finally {
      await chmod(path, 0o600);
    }
    await expectNothingOf(before);
  });
});

describe.each(["backup-fetch", "restore"])("%s", (command) => {
  const words = command === "restore" ? 'restore "$DIR"' : 'backup-fetch "$DIR" LATEST';

  test("a limit of the file size: told, not startable, and succeeds in an emptied directory without it", async () => {
    const { exitCode, stderr } = await shell(`ulimit -f 1024; "$WALB" --terse ${words}`);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 73,
      stderr: expect.stringMatching(
        new RegExp(`^wal-b: ERROR: could not write "${directory}/.*"\\n {2}DETAIL: EFBIG: `),
      ),
    });
    expectNotRestored();
    await rm(directory, { recursive: true });
    expect((await shell(`"$WALB" --terse ${words}`)).exitCode).toBe(0);
  });

  onOwnMounts("a disk that gets full on the way: told, and not startable", async () => {
    await server.makeDirectory(`restored-${restores}`);
    // There is room for bytes, which is what preflight asks for, and not for files.
    const { stdout, stderr } = await mounting(`
      mount -t tmpfs -o size=256m,nr_inodes=300,mode=777 tmpfs "$DIR"
      $AS mkdir "$DIR/in"
      $AS "$WALB" --terse ${words.replace("$DIR", "$DIR/in")} > /dev/null; echo "exit code $?"
      ls "$DIR/in/global/pg_control" 2>&1 | grep -c "No such file"`);
    expect({ stdout, stderr }).toEqual({
      stdout: "exit code 73\n1\n",
      stderr: expect.stringMatching(/^wal-b: ERROR: could not (write|create|make).* "\/.*"\n {2}DETAIL: ENOSPC: /),
    });
  });

  test("a directory in one that may not be written to: told, nothing made", async () => {
    const parent = await server.makeDirectory(`parent-${restores}`);
    await chmod(parent, 0o500);
    const { exitCode, stderr } = await shell(`"$WALB" --terse ${words.replace("$DIR", `${parent}/in`)}`);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 73,
      stderr: expect.stringMatching(/"\/.*parent-.*"\n {2}DETAIL: EACCES: /),
    });
    expect(await readdir(parent)).toEqual([]);
  });
});

describe("whatever is in the way of it, wal-b does what it can or says what it cannot", () => {
  test.each([8, 16, 64, 256])("%i file descriptors", async (limit) => {
    const before = await listedBackups(server, repository.env);
    const pushed = await shell(`ulimit -n ${limit}; "$WALB" --terse backup-push "$DATA"`);
    const after = await listedBackups(server, repository.env);
    if (pushed.exitCode === 0) expect(after.length).toBe(before.length + 1);
    else {
      expect(pushed).toMatchObject({ stderr: expect.stringMatching(/EMFILE|too many open files/i) });
      expect(pushed.exitCode).not.toBe(70);
      expect(after).toEqual(before);
    }
    const fetched = await shell(`ulimit -n ${limit}; "$WALB" --terse backup-fetch "$DIR" LATEST`);
    if (fetched.exitCode !== 0) {
      expect(fetched).toMatchObject({ stderr: expect.stringMatching(/EMFILE|too many open files/i) });
      expect(fetched.exitCode).not.toBe(70);
      expectNotRestored();
    }
    // Linux gives every process 1024 of them, unless somebody takes some away.
    if (limit >= 64) expect([pushed.exitCode, fetched.exitCode]).toEqual([0, 0]);
  });

  test.each([
    ["no home", "unset HOME"],
    ["a home that is not there", "export HOME=/nonexistent"],
    ["a home that cannot be written to", "export HOME=/proc"],
    ["no temporary directory", "export TMPDIR=/nonexistent"],
    ["a temporary directory that cannot be written to", "export TMPDIR=/proc"],
    ["a working directory that cannot be written to", "cd /proc"],
    ["a umask that takes nothing away", "umask 0"],
    ["a umask that takes all from others", "umask 077"],
  ])("%s", async (_, given) => {
    const { exitCode, stderr } = await shell(
      `${given}; "$WALB" --terse backup-fetch "$DIR" LATEST && "$WALB" --terse backup-list > /dev/null`,
    );
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  });

  onOwnMounts("a temporary directory on which nothing may be executed, or that is full", async () => {
    const { stdout, stderr } = await mounting(`
      mount -t tmpfs -o noexec,size=4m,mode=777 tmpfs /mnt; export TMPDIR=/mnt
      $AS "$WALB" --terse backup-fetch "$DIR" LATEST; echo "noexec $?"
      head -c 8M /dev/zero > /mnt/full 2>/dev/null; rm -rf "$DIR"
      $AS "$WALB" --terse backup-fetch "$DIR" LATEST; echo "full $?"`);
    expect({ stdout, stderr }).toEqual({ stdout: "noexec 0\nfull 0\n", stderr: "" });
  });
});
