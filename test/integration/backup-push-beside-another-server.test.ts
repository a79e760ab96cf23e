/** Two servers at one prefix: the WAL that the second one needs is there by name, and is the first one's. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { type ProgramResult, runProgram } from "../support/run-program.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const SOON = { WALB_ARCHIVE_TIMEOUT: "3s" };

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
/** It has archived many segments. */
let first: PostgresServer;

beforeAll(async () => {
  repository = await temporaryRepository();
  first = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
  await pushBackup(first, repository.env);
});
afterAll(async () => {
  await first?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const runAhead = async () => {
  for (let n = 0; n < 20; n++) await first.switchWal();
  await archiveEverything(first, repository);
};
const backup = async (server: PostgresServer): Promise<ProgramResult> =>
  await runWalb(["backup-push", server.dataDirectory], { as: server, env: { ...repository.env, ...SOON } });

test("of another cluster: it is told before the server writes a checkpoint", async () => {
  await runAhead();
  await using other = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
  const before = await repository.keys();
  const { exitCode, stderr } = await backup(other);
  expect(stderr).toMatch(/^wal-b: ERROR: the archive at .* belongs to another cluster\n/);
  expect(exitCode).toBe(65);
  expect(await repository.keys()).toEqual(before);
});

test("of a copy of the server: its archive_command is refused, and no backup is listed on the WAL of the original", async () => {
  const directory = join(first.directory, "copy");
  await first.stop();
  expect(await runProgram(["cp", "-a", first.dataDirectory, directory])).toMatchObject({ exitCode: 0 });
  await first.start();
  await runAhead();
  await using copy = await startPostgresOn(directory, {
    env: repository.env,
    settings: { archive_command: `${await walbBinary()} wal-push %p` },
  });
  await copy.query("CREATE TABLE another AS SELECT generate_series(1, 1000) AS id");
  const before = await repository.keys();
  const { exitCode, stderr } = await backup(copy);
  expect(stderr).toMatch(/ERROR: "[0-9A-F]{24}" was not archived within 3 s\n/);
  expect(stderr).toMatch(
    /DETAIL: There is .*\.zst, but the server still waits to archive it: it may be of another server, such as a copy of this one\. /,
  );
  expect(exitCode).toBe(76);
  expect(await repository.keys()).toEqual(before);
});
