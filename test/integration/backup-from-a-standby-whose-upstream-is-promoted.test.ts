/** A base backup taken from a standby that follows its upstream to a new timeline meanwhile. */
import { expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type BackupSession, startBackupSession } from "../../src/postgres/backup-session.ts";
import { connectToPostgres } from "../../src/postgres/connection.ts";
import { libpqSettings } from "../../src/postgres/libpq-settings.ts";
import { giveTo } from "../support/account.ts";
import {
  type Environment,
  fetchBackup,
  listedBackups,
  pushBackup,
  startArchiving,
  startWalb,
  temporaryRepository,
} from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { recordedLog } from "../unit/postgres/recorded-log.ts";

test.each([13, 18])("PostgreSQL %i: it is refused at once, and one after that succeeds", async (major) => {
  await using own = await temporaryRepository();
  await using primary = await startArchiving(own.env, { major });
  const first = await pushBackup(primary, own.env);
  await using upstream = await startStandby("upstream", primary, own.env);
  await using standby = await startStandby("standby", upstream, own.env);
  await primary.query("CREATE TABLE early AS SELECT 1 AS id; CHECKPOINT");
  await replayed(standby, primary);

  await using running = await startWalb(standby, ["backup-push", standby.dataDirectory], {
    ...own.env,
    WALB_ARCHIVE_TIMEOUT: "5s",
  });
  await running.says('" started at ');
  await using copying = await startPinging(standby);
  running.signal("SIGSTOP");
  await upstream.query("SELECT pg_promote()");
  await upstream.query("CREATE TABLE late AS SELECT 1 AS id; CHECKPOINT");
  await replayed(standby, upstream);
  // While files are copied it is learnt by asking now and then.
  await standby.waitFor(() => copying.lost.aborted, { what: "the session to be lost" });
  expect(String(copying.lost.reason)).toContain("the standby followed to timeline 2 during the backup");
  running.signal("SIGCONT");
  expect({ ...(await running.ended()), said: running.stderr }).toEqual({
    exitCode: 76,
    signal: null,
    said: expect.stringContaining("ERROR: the standby followed to timeline 2 during the backup"),
  });
  expect(running.stderr).toContain("HINT: Run the backup again.");
  expect(await listedBackups(standby, own.env)).toEqual([first]);

  await upstream.configure({ archive_timeout: "1s" });
  const again = await pushBackup(standby, own.env);
  expect(again).toStartWith("base_00000002");
});

/** A restored copy that streams from `from`, and archives only once it is promoted. */
async function startStandby(name: string, from: PostgresServer, env: Environment): Promise<PostgresServer> {
  const directory = join(from.directory, name);
  await fetchBackup(from, env, { directory });
  await writeFile(join(directory, "standby.signal"), "");
  await giveTo(from.account, join(directory, "standby.signal"));
  const settings = {
    primary_conninfo: `host=${from.socketDirectory} port=${from.port} user=${from.user}`,
    hot_standby: "on",
  };
  const standby = await startPostgresOn(directory, { env, major: from.major, settings });
  await standby.waitFor(async () => (await standby.psql("SELECT count(*) FROM pg_stat_wal_receiver")) === "1", {
    what: "streaming",
  });
  return standby;
}

async function startPinging(standby: PostgresServer): Promise<BackupSession> {
  const { log } = recordedLog();
  const account = { name: undefined, homeDirectory: undefined };
  const signal = new AbortController().signal;
  const connection = await connectToPostgres(libpqSettings({ env: standby.env, account }), { log, signal });
  return await startBackupSession({ connection, label: "a label", checkpoint: "fast", log, pingEveryMs: 50 });
}

async function replayed(standby: PostgresServer, primary: PostgresServer): Promise<void> {
  const lsn = await primary.psql("SELECT pg_current_wal_lsn()");
  await standby.waitFor(
    async () => (await standby.psql(`SELECT pg_last_wal_replay_lsn() >= '${lsn}'::pg_lsn`)) === "t",
    { what: `the replay of ${lsn}` },
  );
}
