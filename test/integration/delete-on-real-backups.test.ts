/**
 * delete on the backups of a real server: two timelines, four backups, one of them permanent. What is removed is counted here
 * from the sentinels and the timeline history, and what is kept must restore.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { existsSync, watch } from "node:fs";
import { mkdir, readFile, rename, rm, stat, truncate, utimes, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { ListObjectsV2Command, PutObjectCommand } from "@aws-sdk/client-s3";
import { giveTo, serverAccount } from "../support/account.ts";
import { fetchBackup, pushBackup, recover, startArchiving, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { baseEnvironment, type ProgramResult, runProgram } from "../support/run-program.ts";
import { everyS3Server, type S3Credentials, s3ClientOf } from "../support/s3-server.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const MiB = 2 ** 20;
type Copy = Awaited<ReturnType<typeof temporaryRepository>>;

const original = await temporaryRepository();
let server: PostgresServer;
/** Oldest first; the second is permanent, the third and fourth are on timeline 2. */
let names: readonly [string, string, string, string];
let rowsAtPermanent: string;
let rowsAtEnd: string;

const rowsOf = async (from: PostgresServer) =>
  await from.psql("SELECT count(*), md5(string_agg(kept::text, ',' ORDER BY id)) FROM kept");

beforeAll(async () => {
  const restoreCommand = `${await walbBinary()} wal-fetch %f %p`;
  const settings = { restore_command: restoreCommand };
  server = await startArchiving(original.env, { walSegmentSizeMiB: 1, settings });
  await server.query("CREATE TABLE kept (id serial PRIMARY KEY, text text)");
  const write = async () => {
    await server.query("INSERT INTO kept (text) SELECT md5(n::text) FROM generate_series(1, 2000) n");
    return await server.switchWal();
  };
  await write();
  await write();
  const first = await pushBackup(server, original.env);
  await write();
  rowsAtPermanent = await rowsOf(server);
  const second = await pushBackup(server, original.env, ["--permanent"]);
  await write();
  await write();

  // Recovery to the end of the archive, and a promotion: timeline 2.
  await server.stop();
  await writeFile(join(server.dataDirectory, "recovery.signal"), "");
  await giveTo(server.account, join(server.dataDirectory, "recovery.signal"));
  await server.start();
  await server.waitFor(async () => (await server.psql("SELECT pg_is_in_recovery()")) === "f");
  await write();
  const third = await pushBackup(server, original.env);
  await write();
  const fourth = await pushBackup(server, original.env);
  const last = await write();
  rowsAtEnd = await rowsOf(server);
  await server.waitFor(() => existsSync(join(original.directory, "wal_005", `${last}.zst`)));
  names = [first, second, third, fourth];
}, 180_000);
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await original[Symbol.asyncDispose]();
});

/** The repository again, for one test to change. */
async function copyOfRepository(): Promise<Copy> {
  const copy = await temporaryRepository();
  const { exitCode, stderr } = await runProgram(["cp", "-a", `${original.directory}/.`, copy.directory]);
  if (exitCode !== 0) throw new Error(stderr);
  return copy;
}

const remove = async (copy: Copy, ...args: string[]): Promise<ProgramResult> =>
  await runWalb(["delete", ...args], { as: server, env: copy.env });

interface Facts {
  readonly name: string;
  readonly timeline: number;
  readonly first: number;
  readonly last: number;
}

/** What the sentinel says, in numbers of segments. LSNs here are far below 2^53. */
async function factsOf(name: string): Promise<Facts> {
  const path = join(original.directory, `basebackups_005/${name}_backup_stop_sentinel.json`);
  const { LSN, FinishLSN } = JSON.parse(await readFile(path, "utf8")) as { LSN: number; FinishLSN: number };
  const timeline = Number.parseInt(name.slice("base_".length, "base_".length + 8), 16);
  return { name, timeline, first: Math.floor(LSN / MiB), last: Math.floor((FinishLSN - 1) / MiB) };
}

/** Where timeline 2 left timeline 1, as a number of a segment. */
async function switchSegment(): Promise<number> {
  const body = await readFile(join(original.directory, "wal_005/00000002.history.zst"));
  const text = Buffer.from(Bun.zstdDecompressSync(body)).toString();
  const [, high = "", low = ""] = /^1\t([0-9A-F]+)\/([0-9A-F]+)\t/m.exec(text) ?? [];
  return Math.floor((Number.parseInt(high, 16) * 2 ** 32 + Number.parseInt(low, 16)) / MiB);
}

/** Names of archived files that recovery from none of these can ask for, in order. */
async function unneededWal(whole: readonly Facts[], permanent: readonly Facts[]): Promise<readonly string[]> {
  const switchedAt = await switchSegment();
  const files = (await original.keys()).filter((key) => key.startsWith("wal_005/")).map((key) => key.slice(8, -4));
  return files.filter((file) => {
    if (file.endsWith(".history")) return false;
    const timeline = Number.parseInt(file.slice(0, 8), 16);
    const number = Number.parseInt(file.slice(8, 16), 16) * 4096 + Number.parseInt(file.slice(16, 24), 16);
    const continues = (backup: Facts) =>
      number >= backup.first && (backup.timeline === 1 || timeline === 2 || number <= switchedAt);
    const completes = (backup: Facts) =>
      timeline === backup.timeline && number >= backup.first && number <= backup.last;
    return !whole.some(continues) && !permanent.some(completes);
  });
}

interface Expectation {
  readonly kept: readonly string[];
  readonly removedBackups: readonly (readonly [name: string, because: string])[];
  readonly removedWal: readonly string[];
}

/** Runs of removed files in the order of their keys; a history between them ends none, because it stays wherever it is. */
function rangesOf(removed: readonly string[], walKeys: readonly string[]): string {
  const files = walKeys.map((key) => key.slice("wal_005/".length, -".zst".length));
  const marks = files
    .filter((file) => removed.includes(file) || !file.endsWith(".history"))
    .map((file) => (removed.includes(file) ? file : "|"));
  const runs = marks
    .join(" ")
    .split("|")
    .map((run) => run.trim().split(" "))
    .filter(([first]) => first);
  return runs.map((run) => (run.length > 1 ? `${run[0]} … ${run.at(-1)}` : run[0])).join(", ");
}

async function planText({ kept, removedBackups, removedWal }: Expectation, end: string): Promise<string> {
  const sizes = await Promise.all(
    removedWal.map(async (file) => (await stat(join(original.directory, `wal_005/${file}.zst`))).size),
  );
  const mebibytes = (sizes.reduce((sum, size) => sum + size, 0) / MiB).toFixed(1);
  const walFiles = (await original.keys()).filter((key) => key.startsWith("wal_005/"));
  return [
    ...kept,
    `keep    ${walFiles.length - removedWal.length} objects of the WAL archive`,
    ...removedBackups.map(([name, because]) => `remove  ${name}  ${because}`),
    `remove  ${removedWal.length} objects of the WAL archive, ${mebibytes} MiB, that no backup kept needs: ${rangesOf(removedWal, walFiles)}`,
    end,
  ]
    .filter((line) => line !== "")
    .map((line) => `${line}\n`)
    .join("");
}

async function keysWithout({ removedBackups, removedWal }: Expectation): Promise<readonly string[]> {
  const backups = removedBackups.flatMap(([name]) => [
    `basebackups_005/${name}/`,
    `basebackups_005/${name}_backup_stop_sentinel.json`,
  ]);
  const wal = new Set(removedWal.map((file) => `wal_005/${file}.zst`));
  return filesAmong(await original.keys()).filter(
    (key) => !wal.has(key) && !backups.some((gone) => key.startsWith(gone)),
  );
}

const filesAmong = (keys: readonly string[]) => keys.filter((key) => /\.(zst|json)$/.test(key));
const filesOf = async (copy: Copy) => filesAmong(await copy.keys());

/** Plan, dry run with --confirm, and the deed: what each says, and what is there afterwards. */
async function expectDeletion(copy: Copy, args: readonly string[], expected: Expectation): Promise<void> {
  const everything = await copy.keys();
  const pending = await planText(expected, "nothing was removed: that needs --confirm");
  for (const more of [[], ["--dry-run"], ["--confirm", "--dry-run"], ["-n", "--confirm"]]) {
    expect(await remove(copy, ...args, ...more)).toMatchObject({ exitCode: 0, stderr: "", stdout: pending });
    expect(await copy.keys()).toEqual(everything);
  }
  const done = await remove(copy, ...args, "--confirm");
  expect(done).toMatchObject({ exitCode: 0, stdout: await planText(expected, "") });
  expect(done.stderr).toBe(
    [
      ...expected.removedBackups.map(
        ([name]) => `wal-b: INFO: deleted the sentinel of backup "${name}": it is not listed any more`,
      ),
      `wal-b: INFO: deleted ${expected.removedBackups.length} backups`,
      `wal-b: INFO: deleted ${expected.removedWal.length} objects of the WAL archive`,
    ]
      .map((line) => `${line}\n`)
      .join(""),
  );
  expect(await filesOf(copy)).toEqual([...(await keysWithout(expected))]);
  const again = await remove(copy, ...args, "--confirm");
  expect(again.exitCode).toBe(0);
  expect(again.stdout).toEndWith("\nnothing to remove\n");
}

/** Retaining two of the four: the first goes, the permanent one stays with its own WAL alone. */
async function retainingTwo(because: {
  readonly third: string;
  readonly fourth: string;
  readonly first: string;
}): Promise<Expectation> {
  const [first, second, third, fourth] = names;
  const whole = [await factsOf(third), await factsOf(fourth)];
  return {
    kept: [
      `keep    ${second}  permanent`,
      `keep    ${third}  ${because.third}`,
      `keep    ${fourth}  ${because.fourth}`,
    ],
    removedBackups: [[first, because.first]],
    removedWal: await unneededWal(whole, [await factsOf(second)]),
  };
}

const RETAIN_2 = {
  third: "2nd newest; 2 are kept",
  fourth: "1st newest; 2 are kept",
  first: "4th newest; 2 are kept",
};

describe("on a directory", () => {
  test("retain: what is kept restores, the permanent one to its end and the newest to the end of the archive", async () => {
    await using copy = await copyOfRepository();
    const expected = await retainingTwo(RETAIN_2);
    expect(expected.removedWal.length).toBeGreaterThan(3);
    await expectDeletion(copy, ["retain", "2"], expected);

    const newest = join(server.directory, "newest");
    await fetchBackup(server, copy.env, { directory: newest });
    await using recovered = await recover(newest, copy.env);
    expect(await rowsOf(recovered)).toBe(rowsAtEnd);

    const permanent = join(server.directory, "permanent");
    await fetchBackup(server, copy.env, { directory: permanent, name: names[1] });
    await using atItsEnd = await recover(permanent, copy.env, {
      recovery_target: "immediate",
      recovery_target_timeline: "current",
      recovery_target_action: "promote",
    });
    expect(await rowsOf(atItsEnd)).toBe(rowsAtPermanent);
  });

  test("before: the name of a backup, or WAL-E's name of a segment", async () => {
    const [, , third] = names;
    for (const value of [third, third.slice("base_".length)]) {
      await using copy = await copyOfRepository();
      const expected = await retainingTwo({
        third: "the one named",
        fourth: `finished after ${third}`,
        first: `finished before ${third}`,
      });
      await expectDeletion(copy, ["before", value], expected);
    }
  });

  test("retain of more than there are removes nothing, and ends with 0", async () => {
    await using copy = await copyOfRepository();
    const before = await copy.keys();
    for (const count of ["4", "9"]) {
      const result = await remove(copy, "retain", count, "--confirm");
      expect(result).toMatchObject({ exitCode: 0, stderr: "" });
      expect(result.stdout).toEndWith("\nnothing to remove\n");
      expect(await copy.keys()).toEqual(before);
    }
  });

  test("a backup of a newer format, which nobody here can read, is kept with all WAL from its start on", async () => {
    await using copy = await copyOfRepository();
    const path = join(copy.directory, `basebackups_005/${names[0]}_backup_stop_sentinel.json`);
    await writeFile(path, (await readFile(path, "utf8")).replace(/"FormatVersion":\s*1/, '"FormatVersion":2'));
    expect(await remove(copy, "retain", "1", "--confirm")).toMatchObject({ exitCode: 0 });
    // Of the others the newest is kept, and the permanent one.
    const unneeded = await unneededWal(await Promise.all(names.map(factsOf)), []);
    const gone = { kept: [], removedBackups: [[names[2], ""] as const], removedWal: unneeded };
    expect(await filesOf(copy)).toEqual([...(await keysWithout(gone))]);
  });

  test("garbage: what a failed backup left and WAL before the first backup; not what a running one writes", async () => {
    await using copy = await copyOfRepository();
    const leave = async (name: string, ageHours: number) => {
      const when = new Date(Date.now() - ageHours * 3_600_000);
      for (const file of ["walb_claim.json", "tar_partitions/part_001.tar.zst"]) {
        const path = join(copy.directory, "basebackups_005", name, file);
        await mkdir(dirname(path), { recursive: true });
        await writeFile(path, "x".repeat(MiB));
        await utimes(path, when, when);
      }
      for (const path of ["", "tar_partitions"])
        await giveTo(serverAccount(), join(copy.directory, "basebackups_005", name, path));
      return when;
    };
    const failed = "base_0000000200000000000000AA";
    const running = "base_0000000200000000000000BB";
    const when = await leave(failed, 25);
    await leave(running, 1);

    const unneeded = await unneededWal(await Promise.all(names.map(factsOf)), []);
    const lines = (
      await planText(
        {
          kept: [
            ...names.map((name) => `keep    ${name}  complete`),
            `keep    ${running}  not complete: it may still be running`,
          ],
          removedBackups: [],
          removedWal: unneeded,
        },
        "",
      )
    )
      .trimEnd()
      .split("\n");
    const unfinished = `remove  ${failed}  unfinished: 2 objects, 2.0 MiB, last written ${when.toISOString()}`;
    const text = [...lines.slice(0, -1), unfinished, ...lines.slice(-1)];

    const everything = await copy.keys();
    expect(await remove(copy, "garbage")).toMatchObject({
      exitCode: 0,
      stderr: "",
      stdout: `${[...text, "nothing was removed: that needs --confirm"].join("\n")}\n`,
    });
    expect(await copy.keys()).toEqual(everything);
    expect(await remove(copy, "garbage", "--confirm")).toMatchObject({ exitCode: 0, stdout: `${text.join("\n")}\n` });
    expect(await filesOf(copy)).toEqual(
      [
        ...(await keysWithout({ kept: [], removedBackups: [], removedWal: unneeded })),
        `basebackups_005/${running}/tar_partitions/part_001.tar.zst`,
        `basebackups_005/${running}/walb_claim.json`,
      ].sort(),
    );
    expect((await remove(copy, "garbage")).stdout).toEndWith(
      "no unfinished backups or uploads that are old enough\nnothing to remove\n",
    );
    // And the running one is spared by its age alone.
    expect((await remove(copy, "garbage", "--min-age", "30min")).stdout).toContain(`remove  ${running}  unfinished`);
  });

  test("everything: refused while a backup is permanent, and with FORCE nothing is left", async () => {
    await using copy = await copyOfRepository();
    const before = await copy.keys();
    expect(await remove(copy, "everything", "--confirm")).toMatchObject({
      exitCode: 64,
      stdout: "",
      stderr: `wal-b: ERROR: there are permanent backups\n  DETAIL: "${names[1]}".\n  HINT: Take the marks back with "wal-b backup-mark NAME --impermanent", or say "delete everything FORCE".\n`,
    });
    const walFiles = before
      .filter((key) => key.startsWith("wal_005/") && key.endsWith(".zst"))
      .map((key) => key.slice(8, -4));
    const plan = {
      kept: [],
      removedBackups: names.map((name) => [name, "everything goes"] as const),
      removedWal: walFiles,
    };
    const pending = await remove(copy, "everything", "FORCE", "--dry-run", "--confirm");
    expect(pending.stdout).toBe(await planText(plan, "nothing was removed: that needs --confirm"));
    expect(await copy.keys()).toEqual(before);
    expect(await remove(copy, "everything", "FORCE", "--confirm")).toMatchObject({ exitCode: 0 });
    expect(await filesOf(copy)).toEqual([]);
    expect((await runWalb(["backup-list", "--json"], { as: server, env: copy.env })).stdout).toBe("[]\n");
  });

  test("old-versions: what WAL-E stored before its format 005, and nothing else", async () => {
    await using copy = await copyOfRepository();
    const current = await copy.keys();
    for (const path of ["basebackups_004/base_1/part.lzo", "wal_001/1.lzo"]) {
      await mkdir(dirname(join(copy.directory, path)), { recursive: true });
      await writeFile(join(copy.directory, path), "");
      await giveTo(serverAccount(), dirname(join(copy.directory, path)));
    }
    const before = await copy.keys();
    for (const args of [["old-versions"], ["old-versions", "--confirm", "--dry-run"]]) {
      expect(await remove(copy, ...args)).toMatchObject({
        exitCode: 0,
        stdout: "2 objects of WAL-E's formats before 005; nothing is removed without --confirm\n",
      });
      expect(await copy.keys()).toEqual(before);
    }
    expect(await remove(copy, "old-versions", "--confirm")).toMatchObject({
      exitCode: 0,
      stdout: "2 objects of WAL-E's formats before 005\n",
    });
    expect(await filesOf(copy)).toEqual(filesAmong(current));
    expect((await copy.keys()).filter((key) => key.endsWith(".lzo"))).toEqual([]);
  });

  describe("stops with nothing deleted", () => {
    const sentinel = () => `basebackups_005/${names[2]}_backup_stop_sentinel.json`;
    const damages: readonly {
      what: string;
      path: () => string;
      damage: (path: string) => Promise<unknown>;
      says: () => string;
    }[] = [
      {
        what: "a sentinel that is cut off",
        path: sentinel,
        damage: (path) => truncate(path, 100),
        says: () => `backup "${names[2]}" cannot be read, so nothing is deleted`,
      },
      {
        what: "a sentinel that is empty",
        path: sentinel,
        damage: (path) => truncate(path, 0),
        says: () => `backup "${names[2]}" cannot be read, so nothing is deleted`,
      },
      {
        what: "a sentinel that somebody renamed",
        path: sentinel,
        damage: (path) => rename(path, `${path}.bak`),
        says: () => `backup "${names[2]}_backup_stop_sentinel.json.bak" cannot be read, so nothing is deleted`,
      },
      {
        what: "a backup of which nobody can tell whether it is permanent",
        path: () => `basebackups_005/${names[0]}/metadata.json`,
        damage: (path) => rm(path),
        says: () => `backup "${names[0]}" cannot be read, so nothing is deleted`,
      },
      {
        what: "a timeline history that is damaged",
        path: () => "wal_005/00000002.history.zst",
        damage: (path) => writeFile(path, Bun.zstdCompressSync("nonsense\n")),
        says: () => 'archived "00000002.history" is damaged',
      },
      {
        what: "a timeline history that is cut off",
        path: () => "wal_005/00000002.history.zst",
        damage: (path) => truncate(path, 10),
        says: () => 'archived "00000002.history" is damaged',
      },
    ];
    test.each(damages)("at $what", async ({ path, damage, says }) => {
      await using copy = await copyOfRepository();
      await damage(join(copy.directory, path()));
      const before = await copy.keys();
      for (const args of [["retain", "1"], ["before", names[3]], ["garbage"], ["everything", "FORCE"]]) {
        const result = await remove(copy, ...args, "--confirm");
        expect(result.exitCode, args.join(" ")).toBe(65);
        expect(result.stderr).toStartWith(`wal-b: ERROR: ${says()}\n  DETAIL: `);
        expect(await copy.keys()).toEqual(before);
      }
    });
  });

  test("killed in its middle: what is still listed is complete", async () => {
    const binary = await walbBinary();
    let midways = 0;
    for (let round = 0; round < 6; round++) {
      await using copy = await copyOfRepository();
      const before = await filesOf(copy);
      // From the first sentinel that goes, a different while each time.
      const gone = Promise.withResolvers<void>();
      const watcher = watch(join(copy.directory, "basebackups_005"), () => gone.resolve());
      const child = spawn(binary, ["delete", "everything", "FORCE", "--confirm"], {
        env: { ...baseEnvironment(), ...copy.env },
        stdio: "ignore",
        ...(server.account && { uid: server.account.uid, gid: server.account.gid }),
      });
      const exited = new Promise((resolve) => child.once("exit", resolve));
      await Promise.race([gone.promise, exited]);
      if (round > 0) await Bun.sleep(round);
      child.kill("SIGKILL");
      await exited;
      watcher.close();

      const left = await filesOf(copy);
      if (left.length > 0 && left.length < before.length) midways++;
      const listed = names.filter((name) => left.includes(`basebackups_005/${name}_backup_stop_sentinel.json`));
      for (const name of listed) {
        const content = (keys: readonly string[]) => keys.filter((key) => key.startsWith(`basebackups_005/${name}/`));
        expect(content(left)).toEqual(content(before));
      }
      // WAL goes when no sentinel is there any more.
      const wal = (keys: readonly string[]) => keys.filter((key) => key.startsWith("wal_005/"));
      if (listed.length > 0) expect(wal(left)).toEqual(wal(before));

      expect((await remove(copy, "everything", "FORCE", "--confirm")).exitCode).toBe(0);
      expect((await remove(copy, "garbage", "--min-age", "0s", "--confirm")).exitCode).toBe(0);
      expect((await filesOf(copy)).filter((key) => key.startsWith("basebackups_005/"))).toEqual([]);
    }
    expect(midways).toBeGreaterThan(0);
  });
});

const { servers, stop } = await everyS3Server();
afterAll(stop);

describe.each(servers.map((s3) => ({ name: s3.name, s3 })))("on $name", ({ s3 }) => {
  const PREFIX = "main";

  async function upload(bucket: string): Promise<void> {
    const client = s3ClientOf(s3);
    for (const key of filesAmong(await original.keys())) {
      const Body = await readFile(join(original.directory, key));
      await client.send(new PutObjectCommand({ Bucket: bucket, Key: `${PREFIX}/${key}`, Body }));
    }
    client.destroy();
  }

  async function keysIn(bucket: string): Promise<readonly string[]> {
    const client = s3ClientOf(s3);
    const { Contents = [] } = await client.send(new ListObjectsV2Command({ Bucket: bucket }));
    client.destroy();
    return Contents.map(({ Key = "" }) => Key.slice(PREFIX.length + 1)).sort();
  }

  const environment = (bucket: string, { accessKeyId, secretAccessKey, sessionToken }: S3Credentials) => ({
    WALE_S3_PREFIX: `s3://${bucket}/${PREFIX}`,
    AWS_ENDPOINT_URL: s3.endpoint,
    AWS_REGION: s3.region,
    AWS_ACCESS_KEY_ID: accessKeyId,
    AWS_SECRET_ACCESS_KEY: secretAccessKey,
    AWS_SESSION_TOKEN: sessionToken,
  });

  test("credentials that may not delete: told what is still there, and all of it is; with others it goes", async () => {
    const bucket = await s3.createBucket();
    const restricted = await s3.createRestrictedUser(bucket);
    await upload(bucket);
    const before = await keysIn(bucket);
    expect(before).toEqual([...filesAmong(await original.keys())]);

    const expected = await retainingTwo(RETAIN_2);
    const run = (credentials: S3Credentials, ...args: string[]) =>
      runWalb(["delete", "retain", "2", ...args], { env: environment(bucket, credentials) });

    const plan = await run(restricted);
    expect(plan).toMatchObject({
      exitCode: 0,
      stderr: "",
      stdout: await planText(expected, "nothing was removed: that needs --confirm"),
    });
    const refused = await run(restricted, "--confirm");
    expect(refused.exitCode).toBe(77);
    expect(refused.stdout).toBe(await planText(expected, ""));
    const key = `s3://${bucket}/${PREFIX}/basebackups_005/${names[0]}_backup_stop_sentinel.json`;
    expect(refused.stderr).toStartWith(
      `wal-b: ERROR: could not delete 1 of 1 objects\n  DETAIL: Still there: "${key}" (AccessDenied`,
    );
    expect(refused.stderr).toEndWith(
      "\n  HINT: Deleting needs credentials that may s3:DeleteObject, and no retention rule on the bucket.\n",
    );
    expect(await keysIn(bucket)).toEqual(before);

    expect(await run(s3, "--confirm")).toMatchObject({ exitCode: 0 });
    expect(await keysIn(bucket)).toEqual([...(await keysWithout(expected))]);

    // What is kept restores from here too.
    const directory = join(server.directory, `from-${s3.name}`);
    // Empty: the server that runs the command has a directory for its own archive.
    const { AWS_SESSION_TOKEN: _, ...rest } = environment(bucket, s3);
    const env = { ...rest, WALB_FILE_PREFIX: "" };
    await fetchBackup(server, env, { directory });
    await using recovered = await recover(directory, env);
    expect(await rowsOf(recovered)).toBe(rowsAtEnd);
  });
});
