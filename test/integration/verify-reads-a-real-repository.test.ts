/**
 * verify on what a real server archived: two timelines, a tablespace, two backups. All of it is good; then each kind of damage
 * is found and named; and nothing in the repository ever changes.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DeleteObjectCommand } from "@aws-sdk/client-s3";
import { giveTo } from "../support/account.ts";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { s3Repository } from "../support/repositories.ts";
import { type ProgramResult, runProgram } from "../support/run-program.ts";
import { anyS3Server, s3ClientOf } from "../support/s3-server.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const original = await temporaryRepository();
let server: PostgresServer;
let older: string;
let newer: string;

beforeAll(async () => {
  const settings = { restore_command: `${await walbBinary()} wal-fetch %f %p` };
  server = await startArchiving(original.env, { walSegmentSizeMiB: 1, settings });
  const place = await server.makeDirectory("space");
  await server.query(`CREATE TABLESPACE fast LOCATION '${place}'`);
  await server.query("CREATE TABLE kept (id serial PRIMARY KEY, text text) TABLESPACE fast");
  const write = async () => {
    await server.query("INSERT INTO kept (text) SELECT md5(n::text) FROM generate_series(1, 5000) n");
    return await server.switchWal();
  };
  await write();
  older = await pushBackup(server, original.env);
  await write();
  newer = await pushBackup(server, original.env);
  await write();

  // Recovery to the end of the archive, and a promotion: timeline 2.
  await server.stop();
  await writeFile(join(server.dataDirectory, "recovery.signal"), "");
  await giveTo(server.account, join(server.dataDirectory, "recovery.signal"));
  await server.start();
  await server.waitFor(async () => (await server.psql("SELECT pg_is_in_recovery()")) === "f");
  await write();
  await archiveEverything(server, original);
  // What follows reads a repository that nobody changes.
  await server.stop();
}, 180_000);
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await original[Symbol.asyncDispose]();
});

type Env = Readonly<Record<string, string>>;
const verify = async (env: Env, ...args: string[]): Promise<ProgramResult> =>
  await runWalb(["verify", ...args], { as: server, env });

interface Document {
  readonly verdict: string;
  readonly backups: readonly {
    readonly backup_name: string;
    readonly verdict: string;
    readonly files: number;
    readonly wal: readonly { readonly timeline: number; readonly segments: number }[];
    readonly findings: readonly { readonly key: string; readonly problem: string; readonly detail: string | null }[];
  }[];
}

const documentOf = ({ stdout }: ProgramResult) => JSON.parse(stdout) as Document;

async function copyOfRepository(): Promise<Awaited<ReturnType<typeof temporaryRepository>>> {
  const copy = await temporaryRepository();
  const { exitCode, stderr } = await runProgram(["cp", "-a", `${original.directory}/.`, copy.directory]);
  if (exitCode !== 0) throw new Error(stderr);
  return copy;
}

/** Every file with its size, time and content. */
async function fingerprint(directory: string): Promise<string> {
  const listed = await runProgram(["find", directory, "-printf", "%p %s %T@ %m %u\n"]);
  const hash = createHash("sha256").update(listed.stdout.split("\n").sort().join("\n"));
  for (const entry of (await readdir(directory, { recursive: true, withFileTypes: true })).sort((a, b) =>
    join(a.parentPath, a.name) < join(b.parentPath, b.name) ? -1 : 1,
  )) {
    if (entry.isFile()) hash.update(await readFile(join(entry.parentPath, entry.name)));
  }
  return hash.digest("hex");
}

const walOf = async (timeline: number) =>
  (await original.keys()).filter((key) => new RegExp(`^wal_005/0000000${timeline}[0-9A-F]{16}\\.zst$`).test(key));

describe("what is good", () => {
  test("ends with 0, and counts what was read", async () => {
    const before = await fingerprint(original.directory);
    const result = await verify(original.env, "--json");
    expect(result).toMatchObject({ exitCode: 0, stderr: "" });
    const { verdict, backups } = documentOf(result);
    const manifest = Bun.zstdDecompressSync(
      await readFile(join(original.directory, `basebackups_005/${newer}/backup_manifest.zst`)),
    );
    const { Files } = JSON.parse(Buffer.from(manifest).toString()) as { Files: unknown[] };
    const needed = (await walOf(1)).filter((key) => key >= `wal_005/${newer.slice("base_".length)}`);
    expect(verdict).toBe("good");
    expect(backups).toMatchObject([
      {
        backup_name: newer,
        verdict: "good",
        compared_with: "manifest",
        // The map of tablespaces is a file of the backup, and in no manifest.
        files: Files.length,
        wal: [
          { timeline: 1, segments: needed.length },
          { timeline: 2, segments: (await walOf(2)).length },
        ],
        findings: [],
        notes: [],
      },
    ]);
    expect(await fingerprint(original.directory)).toBe(before);
  });

  test("has a line for each backup", async () => {
    const { exitCode, stdout, stderr } = await verify(original.env, "--all", "--wal");
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
    expect(stdout.split("\n").map((line) => line.slice(0, `good  ${older}`.length))).toEqual([
      `good  ${older}`,
      `good  ${newer}`,
      "",
    ]);
    expect(stdout).toMatch(
      / files, \d+\.\d MiB in \d+ parts, compared with the manifest; WAL to the end of the archive: /,
    );
    const named = await verify(original.env, older);
    expect(named.stdout).toMatch(new RegExp(`^good  ${older}  .*; WAL to the stop of the backup: `));
  });

  test("needs no right to write", async () => {
    await using copy = await copyOfRepository();
    await runProgram(["chmod", "-R", "a-w", copy.directory]);
    const before = await fingerprint(copy.directory);
    expect(await verify(copy.env, "--all", "--wal")).toMatchObject({ exitCode: 0 });
    expect(await fingerprint(copy.directory)).toBe(before);
    await runProgram(["chmod", "-R", "u+w", copy.directory]);
  });
});

const partOf = (name: string, part: string) => `basebackups_005/${name}/tar_partitions/${part}`;

async function flip(path: string): Promise<void> {
  const body = await readFile(path);
  const middle = body.byteLength >> 1;
  body[middle] = (body[middle] ?? 0) ^ 4;
  await writeFile(path, body);
}

const cut = async (path: string) => await writeFile(path, (await readFile(path)).subarray(0, -100));

describe("what is damaged ends with 65 and is named:", () => {
  type Damage = (path: (key: string) => string) => Promise<void>;
  const cases: readonly (readonly [string, () => Promise<string>, (key: string) => Damage])[] = [
    ["a part that is missing", async () => partOf(newer, "part_001.tar.zst"), (key) => (path) => rm(path(key))],
    ["a part that is cut off", async () => partOf(newer, "part_001.tar.zst"), (key) => (path) => cut(path(key))],
    ["a part with a flipped bit", async () => partOf(newer, "part_001.tar.zst"), (key) => (path) => flip(path(key))],
    [
      "another backup's part",
      async () => partOf(newer, "part_001.tar.zst"),
      (key) => (path) => rename(path(partOf(older, "part_001.tar.zst")), path(key)),
    ],
    ["pg_control missing", async () => partOf(newer, "pg_control.tar.zst"), (key) => (path) => rm(path(key))],
    [
      "a manifest that is damaged",
      async () => `basebackups_005/${newer}/backup_manifest.zst`,
      (key) => (path) => flip(path(key)),
    ],
    ["a segment that is missing", async () => (await walOf(1)).at(-2) ?? "", (key) => (path) => rm(path(key))],
    ["a segment with a flipped bit", async () => (await walOf(2)).at(0) ?? "", (key) => (path) => flip(path(key))],
    [
      "a segment under another's name",
      async () => (await walOf(1)).at(-1) ?? "",
      (key) => async (path) => writeFile(path(key), await readFile(path((await walOf(2)).at(-1) ?? ""))),
    ],
    ["a history that is missing", async () => "wal_005/00000002.history.zst", (key) => (path) => rm(path(key))],
  ];

  test.each(cases)("%s", async (_, keyOf, damage) => {
    await using copy = await copyOfRepository();
    const key = await keyOf();
    await damage(key)((each) => join(copy.directory, each));
    const before = await fingerprint(copy.directory);

    const told = await verify(copy.env, newer);
    expect(told.exitCode).toBe(65);
    expect(told.stdout).toMatch(new RegExp(`^bad   ${newer}  `));
    expect(told.stdout).toContain(`\n      file://${copy.directory}/${key}: `);
    expect(told.stderr).toMatch(/^wal-b: ERROR: 1 of 1 backup is not good\n {2}DETAIL: /);
    const { verdict, backups } = documentOf(await verify(copy.env, newer, "--json"));
    expect(verdict).toBe("bad");
    expect(backups[0]?.findings.map((finding) => finding.key)).toContain(key);
    expect(await fingerprint(copy.directory)).toBe(before);
  });
});

test("a backup that is not there ends with 74, two ways of choosing with 64, and a repository that is not there is no good one", async () => {
  expect(await verify(original.env, "base_0000000900000000000000FF")).toMatchObject({ exitCode: 74, stdout: "" });
  expect(await verify(original.env, "--all", newer)).toMatchObject({ exitCode: 64, stdout: "" });
  const nowhere = await verify({ WALB_FILE_PREFIX: join(original.directory, "nowhere") });
  expect(nowhere.exitCode).not.toBe(0);
  expect(nowhere.stdout).toBe("");
});

test("on S3: all good with credentials that cannot delete, an object that is gone, and a key that is wrong", async () => {
  const s3 = await anyS3Server();
  try {
    const repository = await s3Repository(s3.server);
    await using other = await startArchiving(repository.hostEnv, { walSegmentSizeMiB: 1 });
    await other.query("CREATE TABLE kept AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n");
    const name = await pushBackup(other, repository.hostEnv);
    await archiveEverything(other, repository);
    await other.stop();
    const onS3 = async (env: Env) => await runWalb(["verify", "--json"], { env });

    const good = await onS3(repository.hostEnv);
    expect(good).toMatchObject({ exitCode: 0, stderr: "" });
    expect(documentOf(good).backups).toMatchObject([{ backup_name: name, verdict: "good" }]);

    const key = partOf(name, "part_001.tar.zst");
    const [, bucket = "", prefix = ""] = /^s3:\/\/([^/]+)\/(.*)$/.exec(repository.env["WALE_S3_PREFIX"] ?? "") ?? [];
    const client = s3ClientOf(s3.server);
    await client.send(new DeleteObjectCommand({ Bucket: bucket, Key: `${prefix}/${key}` }));
    client.destroy();
    const bad = await onS3(repository.hostEnv);
    expect(bad.exitCode).toBe(65);
    expect(documentOf(bad).backups[0]?.findings).toMatchObject([{ key, problem: "the part is missing" }]);

    const denied = await onS3({ ...repository.hostEnv, AWS_SECRET_ACCESS_KEY: "wrong", AWS_SESSION_TOKEN: "" });
    expect(denied).toMatchObject({ exitCode: 77, stdout: "" });
  } finally {
    await s3.stop();
  }
});
