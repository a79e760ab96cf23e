/** A server refuses to start on what a killed backup-fetch leaves, whenever it was killed. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import {
  contentOf,
  fetchBackup,
  pushBackup,
  recover,
  startArchiving,
  startWalb,
  temporaryRepository,
  walbInSteps,
} from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import type { runInSteps, SteppedOptions } from "../support/system-calls.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb } from "../support/walb.ts";

const MOMENTS = 9;
/** The second when it was killed before PG_VERSION had its two digits. */
const REFUSED = /could not find the database system|could not open file ".*pg_control"|is not a valid data directory/;
const SMALL_PARTS = { WALB_TAR_SIZE_THRESHOLD: "1MB" };

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let directory: string;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { major: 16 });
  await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n");
  await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
  directory = join(server.directory, "restored");
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

/**
 * What the server says when it is started on the directory, which it refuses. Its configuration is elsewhere, as on Debian, so
 * that a missing postgresql.conf is not what saves us.
 */
async function refusedStart(): Promise<string> {
  const settings = {
    config_file: join(server.dataDirectory, "postgresql.conf"),
    hba_file: join(server.dataDirectory, "pg_hba.conf"),
  };
  await using started = await startPostgresOn(directory, { major: 16, until: "spawned", settings });
  const { exitCode } = await started.exited(20_000);
  expect(exitCode).toBeGreaterThan(0);
  return await started.logText();
}

/** Restores the newest backup, stopped behind some of its calls. */
async function inSteps(at: Pick<SteppedOptions, "calls" | "only">, look: Parameters<typeof runInSteps>[2]) {
  return await walbInSteps(server, repository.env, ["backup-fetch", directory, "LATEST"], at, look);
}

/** How many files and directories are there. */
const filesThere = async () => (await readdir(directory, { recursive: true }).catch(() => [])).length;

test(`killed at ${MOMENTS} moments, from its first files to its last`, async () => {
  await fetchBackup(server, repository.env, { directory });
  const whole = await filesThere();

  let unfinished = 0;
  for (let moment = 1; moment <= MOMENTS; moment++) {
    await rm(directory, { recursive: true, force: true });
    await using fetching = await startWalb(server, ["backup-fetch", directory, "LATEST"], repository.env);
    const wanted = (whole * moment) / (MOMENTS + 1);
    await waitFor(async () => (await filesThere()) >= wanted, { intervalMs: 1, what: `${wanted} files` });
    fetching.signal("SIGKILL");
    const { exitCode } = await fetching.ended();
    if (exitCode === 0 || !existsSync(join(directory, "PG_VERSION"))) continue;
    unfinished++;
    expect(existsSync(join(directory, "global/pg_control"))).toBe(false);
    expect(await refusedStart()).toMatch(REFUSED);
  }
  expect(unfinished).toBeGreaterThan(MOMENTS / 3);
});

test("killed when everything is there but pg_control's name", async () => {
  await rm(directory, { recursive: true, force: true });
  const { signal } = await inSteps({ calls: ["fsync"] }, async () =>
    existsSync(join(directory, "backup_manifest")) ? "kill" : "go on",
  );
  expect(signal).toBe("SIGKILL");
  expect(existsSync(join(directory, "global/pg_control.walb-incomplete"))).toBe(true);
  expect(await refusedStart()).toMatch(REFUSED);
});

test("what is there is refused by the next backup-fetch, which says --resume and succeeds once the directory is empty", async () => {
  const { exitCode, stderr } = await runWalb(["backup-fetch", directory, "LATEST"], {
    as: server,
    env: repository.env,
  });
  expect({ exitCode, stderr }).toEqual({ exitCode: 73, stderr: expect.stringContaining("was interrupted") });

  await rm(directory, { recursive: true });
  await fetchBackup(server, repository.env, { directory });
  await using recovered = await recover(directory, repository.env);
  expect(await contentOf(recovered)).toEqual(await contentOf(server));
});

test.each([
  ["SIGTERM", 143],
  ["SIGINT", 130],
] as const)("%s ends it with %i, and a server does not start either", async (signal, code) => {
  await rm(directory, { recursive: true, force: true });
  const { exitCode, stderr } = await inSteps(
    { calls: ["openat"], only: [join(directory, "PG_VERSION")] },
    async ({ pid }) => {
      process.kill(pid, signal);
      return "go on";
    },
  );
  expect({ exitCode, stderr }).toEqual({ exitCode: code, stderr: expect.stringContaining(`interrupted by ${signal}`) });
  expect(await refusedStart()).toMatch(REFUSED);
});
