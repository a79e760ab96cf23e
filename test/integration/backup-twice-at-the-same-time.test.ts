/** Two backups of one primary at the same time: each is either complete under a name of its own, or refused cleanly. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  listedBackups,
  recover,
  startArchiving,
  startLoad,
  startWalb,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { major: 18, walSegmentSizeMiB: 1 });
  await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 10000) n");
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const start = async () =>
  await startWalb(server, ["backup-push", server.dataDirectory], {
    ...repository.env,
    WALB_TAR_SIZE_THRESHOLD: "1MB",
  });

const sessions = async () =>
  Number(await server.psql("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'wal-b%'"));

test("started one after the other, with both in backup mode: both succeed under different names", async () => {
  await using load = await startLoad(server);
  await using first = await start();
  await first.says('" started at ');
  first.signal("SIGSTOP");
  await using second = await start();
  await second.says('" started at ');
  expect(await sessions()).toBe(2);
  first.signal("SIGCONT");
  expect([await first.ended(), await second.ended()]).toEqual([
    { exitCode: 0, signal: null },
    { exitCode: 0, signal: null },
  ]);
  await load.stop();
  expect(new Set(await listedBackups(server, repository.env)).size).toBe(2);
});

test("started in the same moment, several times: what is refused is refused for its name, and leaves nothing", async () => {
  for (let turn = 0; turn < 4; turn++) {
    const before = await listedBackups(server, repository.env);
    await using first = await start();
    await using second = await start();
    const both = [first, second];
    const codes = await Promise.all(both.map(async (running) => (await running.ended()).exitCode));
    expect(codes).toContain(0);
    for (const [index, running] of both.entries()) {
      if (codes[index] === 0) continue;
      expect({ code: codes[index], stderr: running.stderr }).toEqual({
        code: 65,
        stderr: expect.stringMatching(/ERROR: (there is a backup|a backup with the name) "base_[0-9A-F]{24}"/),
      });
    }
    const succeeded = codes.filter((code) => code === 0).length;
    expect(await listedBackups(server, repository.env)).toHaveLength(before.length + succeeded);
    expect(await sessions()).toBe(0);
  }
  const claims = (await repository.keys()).filter((key) => key.endsWith("/walb_claim.json"));
  expect(claims).toHaveLength((await listedBackups(server, repository.env)).length);
});

test("all of them restore every row", async () => {
  await archiveEverything(server, repository);
  const expected = await contentOf(server);
  for (const name of (await listedBackups(server, repository.env)).slice(0, 3)) {
    const directory = `${server.directory}/${name}`;
    await fetchBackup(server, repository.env, { directory, name });
    expect((await verifyBackup(directory)).stdout).toBe("backup successfully verified\n");
    await using recovered = await recover(directory, repository.env);
    expect(await contentOf(recovered)).toEqual(expected);
  }
});
