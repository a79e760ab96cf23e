/** Backups of two clusters under one prefix, as other tools let come about: nothing is chosen for anybody, and a name is enough. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { type ProgramResult, runProgram } from "../support/run-program.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { SYSTEM_IDENTIFIER } from "../support/wal-content.ts";
import { runWalb } from "../support/walb.ts";

const segment = (number: number) => `00000001000000000000000${number}`;
const OWN = SYSTEM_IDENTIFIER;
const OTHER = SYSTEM_IDENTIFIER + 1n;
/** Of the archive's own cluster, and then, finished last, the other's. */
const OLD = `base_${segment(1)}`;
const NEW = `base_${segment(3)}`;
const FOREIGN = `base_${segment(5)}`;

let site: TemporaryDirectory;
let repository: string;
beforeAll(async () => {
  site = await temporaryDirectory();
  repository = join(site.path, "repository");
  await mkdir(repository);
  const store = await openDirectoryStore({ directory: repository, signal: new AbortController().signal });
  const zstd = await openZstd(3);
  const parts = { "part_001.tar.zst": { "global/pg_control": Buffer.alloc(8192), PG_VERSION: Buffer.from("18\n") } };
  for (const [startSegment, systemIdentifier, finished] of [
    [segment(1), OWN, 1],
    [segment(3), OWN, 2],
    [segment(5), OTHER, 3],
  ] as const) {
    await putBackup(store, zstd, { startSegment, systemIdentifier, parts, finishedAt: new Date(finished * 1000) });
  }
  await putWal(store, zstd, [1, 2, 3, 4, 5, 6].map(segment));
});
afterAll(async () => await site[Symbol.asyncDispose]());

const target = () => join(site.path, "target");
const walb = async (...args: string[]): Promise<ProgramResult> =>
  await runWalb(args, { env: { WALB_FILE_PREFIX: repository } });
const listing = async () => (await readdir(repository, { recursive: true })).sort();

describe("64, and nothing is written:", () => {
  test.each([
    ["backup-fetch LATEST", () => ["backup-fetch", target(), "LATEST"]],
    ["restore", () => ["restore", target()]],
    ["restore to a moment", () => ["restore", target(), "--to", "2026-11-23 14:42:40+00"]],
    ["restore to an LSN", () => ["restore", target(), "--to", "0/4000000"]],
    ["verify", () => ["verify"]],
    ["backup-list LATEST", () => ["backup-list", "LATEST"]],
    ["backup-mark LATEST", () => ["backup-mark", "LATEST"]],
    ["delete before LATEST", () => ["delete", "before", "LATEST", "--confirm"]],
  ])("%s", async (_, args) => {
    const before = await listing();
    const { exitCode, stdout, stderr } = await walb(...args());
    expect(stderr).toContain("ERROR: the backups are of 2 clusters, and it is not said which is meant\n");
    expect(stderr).toContain(`by system identifier: "${NEW}" of ${OWN}, "${FOREIGN}" of ${OTHER}.\n`);
    expect(stderr).toMatch(/HINT: (?:Name a backup instead of LATEST|Say --backup with one of them)\./);
    expect({ exitCode, stdout }).toEqual({ exitCode: 64, stdout: "" });
    expect(existsSync(target())).toBe(false);
    expect(await listing()).toEqual(before);
  });
});

describe("with a name it is done:", () => {
  test.each([
    ["the archive's own", NEW],
    ["the other's", FOREIGN],
  ])("backup-fetch of %s", async (_, name) => {
    expect(await walb("backup-fetch", target(), name)).toMatchObject({ exitCode: 0 });
    expect(existsSync(join(target(), "global/pg_control"))).toBe(true);
    await runProgram(["rm", "-r", target()]);
  });

  test("restore from an older one of the same cluster, and never from the other's newer one", async () => {
    const { exitCode, stdout } = await walb("restore", target(), "--backup", OLD, "--dry-run");
    expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: expect.stringContaining(`backup      ${OLD}: `) });
  });
});

test("backup-list has all, with whose each is", async () => {
  const { exitCode, stdout } = await walb("backup-list", "--json");
  expect(exitCode).toBe(0);
  // As text: a number of JavaScript would lose digits.
  const listed = [...stdout.matchAll(/"backup_name": "(\w+)"[^}]*?"system_identifier": (\d+)/g)].map((match) =>
    match.slice(1),
  );
  expect(listed).toEqual([
    [OLD, `${OWN}`],
    [NEW, `${OWN}`],
    [FOREIGN, `${OTHER}`],
  ]);
  expect((await walb("backup-list", "--detail")).stdout).toContain(`\t${OTHER}\t`);
});

test("verify --all reads the archive to its end for the cluster whose it is, and that it is not the other's", async () => {
  const { exitCode, stdout } = await walb("verify", "--all");
  expect(exitCode).toBe(65);
  const lines = stdout.split("\n").filter((line) => /^(?:good|bad)/.test(line));
  expect(lines).toEqual([
    expect.stringMatching(new RegExp(`^good  ${OLD} .*; WAL to the stop of the backup: `)),
    expect.stringMatching(new RegExp(`^good  ${NEW} .*; WAL to the end of the archive: 4 segments, `)),
    expect.stringMatching(new RegExp(`^bad   ${FOREIGN} `)),
  ]);
  expect(stdout).toContain(`archived "${segment(5)}" is of another cluster`);
});
