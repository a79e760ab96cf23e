/** pg_rewind and base backups, PostgreSQL's and ours, neither see what is prefetched nor disturb it. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { COMPLETE_MAJORS, completePostgres } from "../support/complete-postgres.ts";
import { NEWEST_MAJOR } from "../support/postgres-binaries.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import {
  type ArchivedHistory,
  archiveSegments,
  isReady,
  PREFETCHED,
  prefetchedIn,
  prefetchersOf,
  restoreBeside,
  restoredBy,
  rowsOf,
  startRecovery,
  untilNothingIsLeft,
  untilPromoted,
  writeSegments,
} from "../support/prefetching.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const inDirectory = async (primary: PostgresServer) => ({
  WALB_FILE_PREFIX: await primary.makeDirectory("repository"),
});

const STANDBY = {
  hot_standby: "on",
  wal_log_hints: "on",
  recovery_target_timeline: "latest",
  wal_retrieve_retry_interval: "200ms",
};

/** A standby that waits at a gate, with eight segments prefetched. */
async function standbyWithFullDirectory(history: ArchivedHistory, name: string, gateAt: string) {
  const data = await restoreBeside(history, name, "standby.signal");
  const recovering = await startRecovery(data, { ...history, gateAt, settings: STANDBY });
  await recovering.reached();
  const directory = join(data, "pg_wal", PREFETCHED);
  await waitFor(async () => ((await prefetchedIn(directory)) ?? []).filter(isReady).length >= 4);
  await recovering.server.waitFor(async () => await recovering.server.query("SELECT 1").catch(() => undefined));
  return { data, directory, ...recovering };
}

const namesBelow = async (directory: string) =>
  (await readdir(directory, { recursive: true })).filter((name) => /pgsql_tmp|\.loading|RECOVERYXLOG/.test(name));

// pg_rewind takes a standby for its source from 14 on.
describe.each(COMPLETE_MAJORS.filter((major) => major >= 14))("PostgreSQL %i", (major) => {
  let history: ArchivedHistory;
  beforeAll(async () => {
    history = await archiveSegments(await completePostgres(major), inDirectory);
  });
  afterAll(() => history?.[Symbol.asyncDispose]());

  test("pg_basebackup of a standby that prefetches holds none of it", async () => {
    const { server, data, directory, open } = await standbyWithFullDirectory(
      history,
      "backed-up",
      history.segments[8] ?? "",
    );
    await using _ = server;
    const copy = join(server.directory, "copy");
    const taken = await server.runAs([server.bin("pg_basebackup"), "-D", copy, "-X", "none", "-c", "fast"]);
    expect(taken.exitCode, taken.stderr).toBe(0);
    expect(await namesBelow(copy)).toEqual([]);

    expect((await prefetchedIn(directory))?.filter(isReady).length).toBeGreaterThan(3);
    await open();
    await server.stop();
    await untilNothingIsLeft(data);
  });

  test("pg_rewind from a standby that prefetches takes nothing of it, and fetches WAL with wal-fetch and no prefetcher", async () => {
    // "new" was promoted, and so was "old", by mistake: it is to follow a standby of "new" from now on.
    const walb = await walbBinary();
    const archiving = { archive_mode: "on", archive_command: `${walb} wal-push %p` };
    const newData = await restoreBeside(history, "new");
    const promoted = await startRecovery(newData, { ...history, settings: { ...STANDBY, ...archiving } });
    await using _new = promoted.server;
    await untilPromoted(promoted.server);
    const followed = await writeSegments(promoted.server, 12, 700_000);
    await promoted.server.query("CHECKPOINT");
    const expected = await rowsOf(promoted.server);

    const oldData = await restoreBeside(history, "old");
    const asOld = { ...STANDBY, archive_mode: "off", recovery_target_timeline: "current" };
    const { server: old } = await startRecovery(oldData, { ...history, settings: asOld });
    await using _old = old;
    await untilPromoted(old);
    await old.query("CREATE TABLE lost (id int)");
    await old.query("CHECKPOINT");
    await old.stop();

    const source = await standbyWithFullDirectory(history, "source", followed[2] ?? "");
    await using _source = source.server;
    const restoreCommand = `restore_command = '${walb} --envdir ${history.primary.directory}/env wal-fetch %f %p'\n`;
    await Bun.write(join(oldData, "postgresql.auto.conf"), restoreCommand);
    const connection = `host=${source.server.socketDirectory} port=${source.server.port} user=postgres dbname=postgres`;
    const rewound = await old.runAs(
      [old.bin("pg_rewind"), "-c", "-D", oldData, `--source-server=${connection}`, "--no-sync"],
      { env: history.env },
    );
    expect(rewound.exitCode, rewound.stderr).toBe(0);
    expect(rewound.stderr).toMatch(/restored "[0-9A-F]{24}" from the archive$/m);
    expect(rewound.stderr).toContain("Done!");
    expect(await namesBelow(oldData)).toEqual([]);
    expect(await prefetchersOf(oldData)).toEqual([]);

    await source.open();
    await source.server.waitFor(async () => (await rowsOf(source.server)) === expected);
    await source.server.stop();
    await untilNothingIsLeft(source.data);

    await rm(join(oldData, "standby.signal"), { force: true });
    await writeFile(join(oldData, "standby.signal"), "");
    await giveTo(old.account, join(oldData, "standby.signal"));
    await using again = await startPostgresOn(oldData, {
      ...(history.binaries && { binaries: history.binaries }),
      env: history.env,
      settings: { restore_command: `${walb} wal-fetch %f %p`, ...STANDBY, archive_mode: "off" },
    });
    await again.waitFor(async () => (await rowsOf(again)) === expected, { what: "the rewound server to catch up" });
    expect(await again.psql("SELECT to_regclass('lost') IS NULL")).toBe("t");
    expect((await restoredBy(again)).direct.length).toBeGreaterThan(0);
  });
});

test("backup-push --while-offline leaves out what a killed prefetcher left", async () => {
  await using history = await archiveSegments(NEWEST_MAJOR, inDirectory);
  const data = await restoreBeside(history, "offline");
  const { server } = await startRecovery(data, history);
  await untilPromoted(server);
  await server.stop();
  await using _ = server;
  const left = join(data, "pg_wal", PREFETCHED);
  await untilNothingIsLeft(data);
  await server.runAs(["mkdir", "-m", "700", left]);
  for (const name of ["prefetcher", `${history.segments[3]}.0123456789abcdef`]) {
    await writeFile(join(left, name), "left");
    await giveTo(server.account, join(left, name));
  }
  const env = { WALB_FILE_PREFIX: await server.makeDirectory("offline-repository") };
  const pushed = await runWalb(["backup-push", "--while-offline", data], { as: server, env });
  expect(pushed.exitCode, pushed.stderr).toBe(0);
  const restored = join(server.directory, "restored");
  const fetched = await runWalb(["backup-fetch", restored, "LATEST"], { as: server, env });
  expect(fetched.exitCode, fetched.stderr).toBe(0);
  expect(await namesBelow(restored)).toEqual([]);
  expect(await readdir(join(restored, "pg_wal"))).not.toEqual([]);
});
