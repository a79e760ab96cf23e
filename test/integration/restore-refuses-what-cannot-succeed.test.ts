/** What a server would find out after hours, restore finds out before it writes anything. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmod, chown, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { runWalb } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let [first, last, insertLsn] = ["", "", ""];

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env);
  await server.query("CREATE TABLE steps AS SELECT generate_series(1, 10) AS id");
  first = await pushBackup(server, repository.env);
  for (let n = 0; n < 3; n++) {
    await server.query("INSERT INTO steps VALUES (11)");
    await server.query("SELECT pg_create_restore_point('twice')");
    await archiveEverything(server, repository);
  }
  last = await server.switchWal();
  await server.waitFor(async () => (await repository.keys()).includes(`wal_005/${last}.zst`));
  insertLsn = await server.psql("SELECT pg_current_wal_insert_lsn()");
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

async function refuses(
  args: readonly string[],
  code: number,
  said: readonly string[],
  directory = join(server.directory, "not made"),
): Promise<void> {
  const before = await readdir(server.directory, { recursive: true });
  const { exitCode, stderr, stdout } = await runWalb(["restore", directory, ...args], {
    as: server,
    env: repository.env,
  });
  expect({ exitCode, stderr, stdout }).toEqual({ exitCode: code, stderr: expect.any(String), stdout: "" });
  for (const text of said) expect(stderr).toContain(text);
  // The running server makes files of its own.
  const outside = (names: readonly string[]) => names.filter((name) => !name.startsWith("data/")).toSorted();
  expect(outside(await readdir(server.directory, { recursive: true }))).toEqual(outside(before));
}

test("a time before the oldest backup", async () => {
  await refuses(["--to", "2020-01-01 00:00:00Z"], 74, [
    "no backup leads to time 2020-01-01 00:00:00+00 on timeline 1",
    `The oldest backup is "${first}", of timeline 1. It was finished at `,
  ]);
});

test("a time after the newest transaction, with what there is", async () => {
  await refuses(["--to", "2099-01-01 00:00:00Z"], 74, [
    "the archive does not reach time 2099-01-01 00:00:00+00",
    `It ends with "${last}". The newest transaction in it ended at 20`,
    "--to latest",
  ]);
});

test("an LSN before the oldest backup's end, and one behind the archive", async () => {
  await refuses(["--to", "0/28"], 74, ["no backup leads to LSN 0/28 on timeline 1"]);
  await refuses(["--to", insertLsn], 74, [
    `the archive does not reach LSN ${insertLsn}`,
    "The last record in it begins at 0/",
  ]);
});

test("a transaction and a restore point that never were", async () => {
  await refuses(["--to", "xid:4000000000"], 74, ["transaction 4000000000 is not in the archive"]);
  await refuses(["--to", "name:never"], 74, ['restore point "never" is not in the archive', "Check the spelling"]);
});

test("a restore point whose name was given twice, and which one is meant", async () => {
  await refuses(["--to", "name:twice"], 64, [
    'there is more than one restore point "twice"',
    "Say which by its LSN: --to 0/",
  ]);
});

test("a gap before the target, and not one behind it", async () => {
  const names = (await repository.keys()).filter((key) => /^wal_005\/[0-9A-F]{24}\.zst$/.test(key));
  const missing = names.at(-3) ?? "";
  const path = join(repository.directory, missing);
  await rename(path, `${path}.away`);
  try {
    const name = missing.slice("wal_005/".length, -".zst".length);
    await refuses([], 65, [`the archive has a gap before the end of the archive: "${name}" is missing`]);
    await refuses(["--to", "2099-01-01 00:00:00Z"], 65, [`"${name}" is missing`]);
    await refuses(["--to", "name:never"], 65, [
      `restore point "never" was not found, and the archive has a gap: "${name}" is missing`,
    ]);
    const { exitCode } = await runWalb(["restore", join(server.directory, "no"), "--to", "immediate", "--dry-run"], {
      as: server,
      env: repository.env,
    });
    expect(exitCode).toBe(0);
  } finally {
    await rename(`${path}.away`, path);
  }
});

test("a backup whose own WAL is missing", async () => {
  const path = join(repository.directory, `wal_005/${first.slice("base_".length)}.zst`);
  await rename(path, `${path}.away`);
  try {
    await refuses([], 65, [`is missing, and backup "${first}" cannot be restored without it`]);
  } finally {
    await rename(`${path}.away`, path);
  }
});

test("a timeline that is not there", async () => {
  await refuses(["--timeline", "7"], 74, ["there is no timeline 7 in the archive"]);
});

test("a directory that is not empty, and one that may not be written", async () => {
  const full = await server.makeDirectory("full");
  await writeFile(join(full, "precious"), "");
  await refuses([], 73, [`"${full}" is not empty`], full);
  const closed = await server.makeDirectory("closed");
  await chmod(closed, 0o500);
  await refuses([], 73, [`could not prepare "${closed}/inside"`], join(closed, "inside"));
  await refuses(["--dry-run"], 73, [`could not prepare "${closed}/inside"`], join(closed, "inside"));
  await rm(closed, { recursive: true });
});

// Only root may give a directory away.
if (process.getuid?.() !== 0) {
  process.stderr.write("not tested: a directory of another account: that needs root\n");
} else {
  test("a directory that the account may write and does not own, before the archive is read", async () => {
    const directory = await server.makeDirectory("of root and the group");
    await chown(directory, 0, server.account?.gid ?? -1);
    await chmod(directory, 0o770);
    for (const args of [[], ["--dry-run"]]) {
      await refuses(args, 73, [`"${directory}" belongs to another account`, "chown"], directory);
    }
  });
}

test("the data directory of a running server", async () => {
  const { dataDirectory, pid } = server;
  await refuses([], 73, [`a server runs in "${dataDirectory}"`, `Its process is ${pid}.`], dataDirectory);
  expect(await readdir(dataDirectory)).not.toContain("backup_label");
  expect(await server.psql("SELECT count(*) FROM steps")).toBe("13");
});

test.each([
  [["--to", "2026-11-23 14:42:40"], 'the time "2026-11-23 14:42:40" has no zone'],
  [["--to", "now"], '"now" is not clear as a target'],
  [["--to", "immediate", "--standby"], "a standby has no target"],
  [["--action", "pause"], "--action pause needs a target"],
  [["--timeline", "first"], '"first" is not a timeline'],
  [["--json"], "--json is for --dry-run"],
])("words that contradict each other: %p", async (args, said) => {
  await refuses(args, 64, [said]);
});

// Only root may mount a small file system.
if (process.getuid?.() !== 0) {
  process.stderr.write("not tested: a file system that is too small: that needs root\n");
} else {
  test.each([
    ["too small", "size=4m", (at: string) => [`the backup does not fit into "${at}"`, "4.0 MiB are free"]],
    ["read-only", "ro,mode=777", (at: string) => [`could not prepare "${at}/inside"`, "EROFS"]],
  ])("a file system that is %s", async (name, options, said) => {
    const place = await server.makeDirectory(`file system that is ${name}`);
    const mounted = await runProgram(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]);
    if (mounted.exitCode !== 0) {
      process.stderr.write(`not tested: a file system that is ${name}: ${mounted.stderr}\n`);
      return;
    }
    try {
      if (name === "too small") await giveTo(server.account, place);
      await refuses([], 73, said(place), join(place, "inside"));
      const fetched = await runWalb(["backup-fetch", join(place, "inside"), "LATEST"], {
        as: server,
        env: repository.env,
      });
      expect(fetched.exitCode).toBe(73);
      for (const text of said(place)) expect(fetched.stderr).toContain(text);
    } finally {
      await runProgram(["umount", place]);
    }
  });
}
