/**
 * verify --drill on backups of a server whose files were damaged before the backup, without page checksums: every byte is what was
 * backed up, and only looking at the restored data finds it.
 */
import { describe, expect, test } from "bun:test";
import { mkdtemp, open, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { shortTemporaryDirectory } from "../support/account.ts";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { documentOf, oncePerMajor, ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { runWalb } from "../support/walb.ts";

interface Story {
  readonly server: PostgresServer;
  readonly repository: Awaited<ReturnType<typeof temporaryRepository>>;
  readonly scratch: ScratchParent;
}

const storyOf = oncePerMajor(tell);

const PAGE = 8192;

async function tell(major: number): Promise<Story> {
  const repository = await temporaryRepository();
  const server = await startArchiving(repository.env, { major, dataChecksums: false, walSegmentSizeMiB: 1 });
  const scratch = await ScratchParent.create(server);
  await server.query(`
    CREATE SCHEMA "Odd one";
    CREATE TABLE good AS SELECT n AS id FROM generate_series(1, 5000) n;
    CREATE TABLE "Odd one".broken AS SELECT n AS id FROM generate_series(1, 5000) n;
    CREATE INDEX wrong_order ON good (id)`);
  const paths = await server.psql(
    "SELECT pg_relation_filepath('good'), pg_relation_filepath('\"Odd one\".broken'), pg_relation_filepath('wrong_order')",
  );
  const [, broken = "", index = ""] = paths.split("|").map((path) => join(server.dataDirectory, path));
  await server.stop();
  // The header of a table's second page.
  await overwrite(broken, PAGE, Buffer.alloc(24, 0xff));
  // The key of a tuple in the index's first leaf: items are 16 bytes, from the special space of 16 bytes downwards.
  await overwrite(index, PAGE * 2 - 16 - 10 * 16 + 8, Buffer.from([0xff, 0xff, 0xff, 0x7f]));
  await server.start();
  await pushBackup(server, repository.env);
  await archiveEverything(server, repository);
  await server.stop();
  return { server, repository, scratch };
}

async function overwrite(path: string, position: number, bytes: Uint8Array): Promise<void> {
  const file = await open(path, "r+");
  await file.write(bytes, 0, bytes.byteLength, position);
  await file.close();
}

describe.each(POSTGRES_MAJORS)("PostgreSQL %i", (major) => {
  test("a table and an index are named, and the result is stored", async () => {
    const { server, repository, scratch } = await storyOf(major);
    const result = await scratch.drill(repository.env, [], server);
    expect(result.exitCode).toBe(65);
    expect(result.stderr).toMatch(/ERROR: backup "base_\w+" is not good\n {2}DETAIL: database "postgres": /);
    const { verdict, findings, stored } = documentOf(result);
    expect(verdict).toBe("bad");
    expect(findings).toEqual([
      expect.objectContaining({
        database: "postgres",
        relation: '"Odd one".broken',
        problem: expect.stringMatching(/^invalid page in block 1 of relation /),
      }),
      expect.objectContaining({ database: "postgres", relation: "public.wrong_order" }),
    ]);
    expect(stored).toMatch(/_bad\.json$/);
    expect(await scratch.left()).toEqual([]);
    const { stdout } = await runWalb(["backup-list"], { env: repository.env, as: server });
    expect(stdout).toEndWith("Z bad\n");
  }, 240_000);
});

test("without amcheck, what reading finds is found, and it is said that no index was looked at", async () => {
  const { server, repository, scratch } = await storyOf(NEWEST_MAJOR);
  const installation = await mkdtemp(join(shortTemporaryDirectory(), "walb-without-amcheck-"));
  try {
    await runProgram(["chmod", "755", installation]);
    const original = dirname(dirname(server.bin("postgres")));
    const copied = await runProgram(["cp", "-a", `${original}/.`, installation]);
    expect(copied).toMatchObject({ exitCode: 0, stderr: "" });
    await runProgram(["find", installation, "-name", "amcheck.control", "-delete"]);
    const result = await scratch.drill(repository.env, ["--postgres-bin", join(installation, "bin")], server);
    const { findings, notes, checks } = documentOf(result);
    expect(findings.map(({ relation }) => relation)).toEqual(['"Odd one".broken']);
    expect(checks).toMatchObject({ amcheck: null, indexes: 0 });
    expect(notes).toEqual(["amcheck is not installed beside the server: tables were read, indexes were not checked."]);
  } finally {
    await rm(installation, { recursive: true, force: true });
  }
}, 240_000);
