/** delete while a backup runs: the backup gets all WAL that it needs, and what it becomes restores. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  listedBackups,
  pushBackup,
  type RunningWalb,
  recover,
  startArchiving,
  startWalb,
  temporaryRepository,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runWalb } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
  await server.query("CREATE TABLE kept (id serial PRIMARY KEY, text text)");
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

async function write(): Promise<void> {
  await server.query("INSERT INTO kept (text) SELECT md5(n::text) FROM generate_series(1, 2000) n");
  await server.switchWal();
}

const isIn = (keys: readonly string[]) => (segment: string) => keys.includes(`wal_005/${segment}.zst`);

async function remove(...args: string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await runWalb(["delete", ...args], { as: server, env: repository.env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr });
  return stdout;
}

/** Begins a backup and stops it (SIGSTOP) when it has its folder. @returns its name too */
async function beginBackup(): Promise<{ running: RunningWalb; name: string }> {
  const before = await repository.keys();
  const running = await startWalb(server, ["backup-push", server.dataDirectory], {
    ...repository.env,
    WALB_ARCHIVE_TIMEOUT: "10s",
  });
  await running.says('" started at ');
  let claim: string | undefined;
  await server.waitFor(async () => {
    claim = (await repository.keys()).find((key) => key.endsWith("/walb_claim.json") && !before.includes(key));
    return claim !== undefined;
  });
  running.signal("SIGSTOP");
  return { running, name: claim?.split("/")[1] ?? "" };
}

test("a backup that began before all that are kept is spared by every delete, completes, and restores", async () => {
  await write();
  const first = await pushBackup(server, repository.env);
  await write();
  const { running: slow, name } = await beginBackup();
  await using running = slow;
  await write();
  const second = await pushBackup(server, repository.env);
  await write();
  const third = await pushBackup(server, repository.env);
  await archiveEverything(server, repository);
  expect(await listedBackups(server, repository.env)).toEqual([first, second, third]);

  const line = `keep    ${name}  not complete: it may still be running\n`;
  const [oldest, startSegment] = [first, name].map((backup) => backup.slice("base_".length)) as [string, string];
  expect(await remove("before", second, "--confirm")).toContain(line);
  expect([oldest, startSegment].filter(isIn(await repository.keys()))).toEqual([startSegment]);
  expect(await remove("retain", "1", "--confirm")).toContain(line);
  expect(await remove("garbage", "--confirm")).toContain(line);
  expect(await listedBackups(server, repository.env)).toEqual([third]);

  running.signal("SIGCONT");
  const { exitCode } = await running.ended();
  expect({ exitCode, stderr: running.stderr }).toEqual({ exitCode: 0, stderr: running.stderr });
  expect(await listedBackups(server, repository.env)).toEqual([third, name]);

  await write();
  await archiveEverything(server, repository);
  const directory = `${server.directory}/restored`;
  await fetchBackup(server, repository.env, { directory, name });
  await using recovered = await recover(directory, repository.env);
  expect(await contentOf(recovered)).toEqual(await contentOf(server));
}, 120_000);

test("what a killed backup has left keeps its WAL until garbage removes both", async () => {
  const { running, name } = await beginBackup();
  await running[Symbol.asyncDispose]();
  await write();
  const newest = await pushBackup(server, repository.env);
  await archiveEverything(server, repository);
  const [startSegment, kept] = [name, newest].map((backup) => backup.slice("base_".length)) as [string, string];

  expect(await remove("retain", "1", "--confirm")).toContain(`keep    ${name}  not complete`);
  expect([startSegment, kept].filter(isIn(await repository.keys()))).toEqual([startSegment, kept]);
  expect(await remove("garbage", "--confirm")).toContain(`keep    ${name}  not complete`);
  expect([startSegment, kept].filter(isIn(await repository.keys()))).toEqual([startSegment, kept]);

  const shown = await remove("garbage", "--min-age", "0s", "--confirm");
  expect(shown).toContain(`remove  ${name}  unfinished: `);
  expect(shown).not.toContain("not complete");
  expect([startSegment, kept].filter(isIn(await repository.keys()))).toEqual([kept]);
}, 120_000);

test("everything goes all the same: the plan tells what that does to a running backup, which is never listed", async () => {
  const { running: slow, name } = await beginBackup();
  await using running = slow;
  await write();
  await archiveEverything(server, repository);
  const line = `keep    ${name}  not complete: it may still be running, and then fails without its WAL\n`;
  expect(await remove("everything")).toContain(line);
  expect(await remove("everything", "--confirm")).toContain(line);
  running.signal("SIGCONT");
  expect({ ...(await running.ended()), stderr: running.stderr }).toMatchObject({ exitCode: 76 });
  expect(await listedBackups(server, repository.env)).toEqual([]);
}, 120_000);
