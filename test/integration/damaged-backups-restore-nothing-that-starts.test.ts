/**
 * A real repository, damaged in every way that a store, a copy or a person can: backup-fetch, restore and verify each say what is
 * wrong, with the documented exit code, and nothing is left that a server could start on.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { archiveEverything, pushBackup, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { runWalb } from "../support/walb.ts";

const original = await temporaryRepository();
let server: PostgresServer;
let older: string;
let newer: string;

beforeAll(async () => {
  server = await startSmallCluster(6000, original.env);
  older = await pushBackup(server, { ...original.env, ...SMALL_PARTS });
  await server.query("UPDATE large SET bytes = gen_random_bytes(1000) WHERE id % 3 = 0");
  newer = await pushBackup(server, { ...original.env, ...SMALL_PARTS });
  await archiveEverything(server, original);
  await server.stop();
}, 180_000);
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await original[Symbol.asyncDispose]();
});

/** Paths in a copy of the repository: of an object of the newer backup, or of another one's. */
type Place = (object: string, of?: "newer" | "older") => string;

interface Damage {
  readonly what: string;
  readonly how: (place: Place) => Promise<void>;
  /** What backup-fetch and restore say; undefined where what they restore is whole all the same. */
  readonly restoring: string | undefined;
  /** What verify says. */
  readonly verifying: string;
  /** Where it is not the integrity of the backup. */
  readonly exitCode?: number;
}

const PART = "tar_partitions/part_001.tar.zst";
const OTHER_PART = "tar_partitions/part_002.tar.zst";
const CONTROL = "tar_partitions/pg_control.tar.zst";
const SENTINEL = "SENTINEL";

async function changed(path: string, change: (body: Buffer) => Uint8Array | string): Promise<void> {
  await writeFile(path, change(await readFile(path)));
}

const flipped = (body: Buffer) => {
  const middle = body.byteLength >> 1;
  body[middle] = (body[middle] ?? 0) ^ 4;
  return body;
};
const cut = (body: Buffer) => body.subarray(0, -100);
const replaced = (from: RegExp, to: string) => (body: Buffer) => {
  const text = body.toString();
  expect(text).toMatch(from);
  return text.replace(from, to);
};
/** Every transaction changes this file; in which part it comes to lie depends on which part was free first. */
async function partWithCommits(at: Place, of: "newer" | "older"): Promise<string> {
  const { TarFileSets } = JSON.parse(await readFile(at("files_metadata.json", of), "utf8"));
  const [part] = Object.keys(TarFileSets).filter((name) => TarFileSets[name].includes("/pg_xact/0000"));
  return at(`tar_partitions/${part}`, of);
}

const copyOver = async (from: string, to: string) => await writeFile(to, await readFile(from));

const INCOMPLETE = "is incomplete";
const DAMAGED_PART = "a part of the backup is damaged";
const OTHER_SIZE = "is damaged\n  DETAIL: Its ";

const DAMAGES: readonly Damage[] = [
  { what: "a part missing", how: (at) => rm(at(PART)), restoring: INCOMPLETE, verifying: "the part is missing" },
  { what: "pg_control missing", how: (at) => rm(at(CONTROL)), restoring: INCOMPLETE, verifying: "the part is missing" },
  {
    what: "a part cut off",
    how: (at) => changed(at(PART), cut),
    restoring: OTHER_SIZE,
    verifying: "the part is damaged",
  },
  {
    what: "a part of no bytes",
    how: (at) => changed(at(PART), () => ""),
    restoring: OTHER_SIZE,
    verifying: "the object is empty",
  },
  {
    what: "a part with a flipped bit",
    how: (at) => changed(at(PART), flipped),
    restoring: DAMAGED_PART,
    verifying: "the part is damaged",
  },
  {
    what: "pg_control with a flipped bit",
    how: (at) => changed(at(CONTROL), flipped),
    restoring: DAMAGED_PART,
    verifying: "the part is damaged",
  },
  {
    what: "two parts of it that changed places",
    how: async (at) => {
      await rename(at(PART), at("swapped"));
      await rename(at(OTHER_PART), at(PART));
      await rename(at("swapped"), at(OTHER_PART));
    },
    // Every file is there, once, with its checksum.
    restoring: undefined,
    verifying: "files_metadata.json does not list it there",
  },
  {
    what: "a part that is a copy of another of it",
    how: (at) => copyOver(at(PART), at(OTHER_PART)),
    restoring: OTHER_SIZE,
    verifying: "files_metadata.json does not list it there",
  },
  {
    what: "another backup's part",
    how: async (at) => copyOver(await partWithCommits(at, "older"), await partWithCommits(at, "newer")),
    restoring: "damaged",
    verifying: '"pg_xact/0000" is not what was backed up',
  },
  {
    what: "another backup's pg_control",
    how: (at) => copyOver(at(CONTROL, "older"), at(CONTROL)),
    restoring: "damaged",
    verifying: '"global/pg_control" is not what was backed up',
  },
  {
    what: "one part too many",
    how: (at) => copyOver(at(PART), at("tar_partitions/part_099.tar.zst")),
    restoring: OTHER_SIZE,
    verifying: "the part belongs to no file of the backup",
  },
  {
    what: "a sentinel of a newer format",
    how: (at) => changed(at(SENTINEL), replaced(/"FormatVersion":1/, '"FormatVersion":2')),
    restoring: "has format version 2, this program knows 1\n  HINT: Install a newer wal-b.",
    verifying: "has format version 2, this program knows 1",
    exitCode: 64,
  },
  {
    what: "a sentinel cut off",
    how: (at) => changed(at(SENTINEL), cut),
    restoring: "is not valid JSON",
    verifying: "is not valid JSON",
  },
  {
    what: "a sentinel of no bytes",
    how: (at) => changed(at(SENTINEL), () => ""),
    restoring: "is not valid JSON",
    verifying: "is not valid JSON",
  },
  {
    what: "a sentinel that is a list",
    how: (at) => changed(at(SENTINEL), () => "[]"),
    restoring: "is not a JSON object",
    verifying: "is not a JSON object",
  },
  {
    what: "a sentinel without its LSN",
    how: (at) => changed(at(SENTINEL), replaced(/"LSN":\d+,/, "")),
    restoring: 'has no "LSN"',
    verifying: 'has no "LSN"',
  },
  {
    what: "a sentinel whose numbers are texts",
    how: (at) => changed(at(SENTINEL), replaced(/"PgVersion":(\d+)/, '"PgVersion":"$1"')),
    restoring: '"PgVersion" of',
    verifying: '"PgVersion" of',
  },
  {
    what: "another backup's sentinel",
    how: (at) => copyOver(at(SENTINEL, "older"), at(SENTINEL)),
    restoring: "Its LSN is not in the segment that the backup is named after.",
    verifying: "Its LSN is not in the segment that the backup is named after.",
  },
  {
    what: "metadata.json missing",
    how: (at) => rm(at("metadata.json")),
    restoring: "metadata.json is missing",
    verifying: "metadata.json is missing",
  },
  {
    what: "metadata.json cut off",
    how: (at) => changed(at("metadata.json"), cut),
    restoring: "metadata.json is not valid JSON",
    verifying: "metadata.json is not valid JSON",
  },
  {
    what: "files_metadata.json missing",
    how: (at) => rm(at("files_metadata.json")),
    restoring: INCOMPLETE,
    verifying: INCOMPLETE,
  },
  {
    what: "files_metadata.json cut off",
    how: (at) => changed(at("files_metadata.json"), cut),
    restoring: "files_metadata.json is not valid JSON",
    verifying: "files_metadata.json is not valid JSON",
  },
  {
    what: "files_metadata.json whose parts are no lists",
    how: (at) => changed(at("files_metadata.json"), replaced(/"part_001\.tar\.zst":\[/, '"part_001.tar.zst":7,"x":[')),
    restoring: "is not a list of texts",
    verifying: "is not a list of texts",
  },
  {
    what: "a manifest missing",
    how: (at) => rm(at("backup_manifest.zst")),
    restoring: "the manifest of backup",
    verifying: "the manifest of backup",
  },
  {
    what: "a manifest with a flipped bit",
    how: (at) => changed(at("backup_manifest.zst"), flipped),
    restoring: "the manifest of backup",
    verifying: "the manifest of backup",
  },
  {
    what: "another backup's manifest",
    how: (at) => copyOver(at("backup_manifest.zst", "older"), at("backup_manifest.zst")),
    restoring: "it is not the one that the backup was made with",
    verifying: "it is not the one that the backup was made with",
  },
];

test.each(DAMAGES.map((damage) => [damage.what, damage] as const))("%s", async (_, damage) => {
  await using copy = await temporaryRepository();
  expect(await runProgram(["cp", "-a", `${original.directory}/.`, copy.directory])).toMatchObject({ exitCode: 0 });
  await damage.how((object, of = "newer") => {
    const name = of === "newer" ? newer : older;
    const below = object === SENTINEL ? `${name}_backup_stop_sentinel.json` : `${name}/${object}`;
    return join(copy.directory, "basebackups_005", below);
  });
  await runProgram(["chown", "-R", "--reference", original.directory, copy.directory]);
  const directory = join(server.directory, "restored");
  const walb = (args: readonly string[]) => runWalb(args, { as: server, env: copy.env });

  for (const args of [
    ["backup-fetch", directory, newer, "--blind-restore"],
    ["restore", directory, "--backup", newer, "--blind-restore"],
  ]) {
    const { exitCode, stderr } = await walb(args);
    const isWhole = damage.restoring === undefined;
    expect({ command: args[0], exitCode, stderr }).toEqual({
      command: args[0],
      exitCode: isWhole ? 0 : (damage.exitCode ?? 65),
      stderr: expect.stringContaining(damage.restoring ?? "restored backup"),
    });
    expect(existsSync(join(directory, "global/pg_control"))).toBe(isWhole);
    await rm(directory, { recursive: true, force: true });
  }

  const { exitCode, stdout } = await walb(["verify", newer]);
  expect({ exitCode, stdout }).toEqual({ exitCode: 65, stdout: expect.stringContaining(damage.verifying) });
  // The other one is as good as it was.
  expect(await walb(["verify", older])).toMatchObject({ exitCode: 0 });
});

test("the newest backup that cannot be read is not passed over for an older one, but by restore, which says so", async () => {
  await using copy = await temporaryRepository();
  await runProgram(["cp", "-a", `${original.directory}/.`, copy.directory]);
  await changed(join(copy.directory, `basebackups_005/${newer}_backup_stop_sentinel.json`), cut);
  const directory = join(server.directory, "restored");
  const walb = (args: readonly string[]) => runWalb(args, { as: server, env: copy.env });

  const fetched = await walb(["backup-fetch", directory, "LATEST", "--blind-restore"]);
  expect(fetched.exitCode).toBe(65);
  expect(fetched.stderr).toContain(`ERROR: the newest backup, "${newer}", cannot be read`);
  expect(fetched.stderr).toContain(`HINT: The newest one that can be read is "${older}": name it to restore it.`);
  expect(existsSync(directory)).toBe(false);
  const listed = await walb(["backup-list"]);
  expect(listed).toMatchObject({ exitCode: 0, stderr: expect.stringContaining(`"${newer}" cannot be restored`) });

  // WAL leads from the older one to the same end.
  const planned = await walb(["restore", directory, "--dry-run", "--blind-restore"]);
  expect(planned).toMatchObject({ exitCode: 0, stdout: expect.stringContaining(`backup      ${older}: `) });
  expect(planned.stderr).toContain(`WARNING: backup "${newer}" cannot be read, and is not considered`);
});
