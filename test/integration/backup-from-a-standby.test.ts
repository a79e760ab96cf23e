/** A base backup taken from a standby, whose WAL its primary archives. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  listedBackups,
  pushBackup,
  recover,
  startArchiving,
  startLoad,
  startWalb,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

describe.each([13, 18])("PostgreSQL %i", (major) => {
  let repository: Awaited<ReturnType<typeof temporaryRepository>>;
  let primary: PostgresServer;
  let standby: PostgresServer;

  beforeAll(async () => {
    repository = await temporaryRepository();
    primary = await startArchiving(repository.env, { major, tablespaces: ["space"] });
    await primary.query("CREATE TABLE elsewhere TABLESPACE space AS SELECT generate_series(1, 1000) AS id");
    await pushBackup(primary, repository.env);
    const directory = join(primary.directory, "standby");
    await fetchBackup(primary, repository.env, { directory, args: ["--blind-restore"] });
    await writeFile(join(directory, "standby.signal"), "");
    await giveTo(primary.account, join(directory, "standby.signal"));
    standby = await startPostgresOn(directory, {
      env: repository.env,
      settings: {
        primary_conninfo: `host=${primary.socketDirectory} port=${primary.port} user=${primary.user}`,
        restore_command: `${await walbBinary()} wal-fetch %f %p`,
        hot_standby: "on",
      },
    });
    await standby.waitFor(async () => (await standby.psql("SELECT count(*) FROM pg_stat_wal_receiver")) === "1", {
      what: "streaming",
    });
  });
  afterAll(async () => {
    await standby?.[Symbol.asyncDispose]();
    await primary?.[Symbol.asyncDispose]();
    await repository?.[Symbol.asyncDispose]();
  });

  const backupObjects = async () =>
    (await repository.keys()).filter((key) => /\.(zst|json)$/.test(key) && key.startsWith("base"));

  /** Until the standby has replayed all that the primary has written. */
  async function replayed(): Promise<void> {
    const lsn = await primary.psql("SELECT pg_current_wal_lsn()");
    await standby.waitFor(
      async () => (await standby.psql(`SELECT pg_last_wal_replay_lsn() >= '${lsn}'::pg_lsn`)) === "t",
      { what: `the replay of ${lsn}` },
    );
  }

  test("while the primary is written to: recovery to the latest has every row of the primary", async () => {
    await primary.configure({ archive_timeout: "1s" });
    await using load = await startLoad(primary);
    await primary.query("CHECKPOINT");
    await replayed();
    const name = await pushBackup(standby, { ...repository.env, WALB_TAR_SIZE_THRESHOLD: "1MB" });
    await load.stop();
    await primary.configure({ archive_timeout: "0" });
    expect((await listedBackups(standby, repository.env)).at(-1)).toBe(name);
    await archiveEverything(primary, repository);

    const directory = join(primary.directory, "restored");
    await fetchBackup(primary, repository.env, { directory, name, args: ["--blind-restore"] });
    expect((await verifyBackup(directory, ["-i", "tablespaces"])).stdout).toBe("backup successfully verified\n");
    await using recovered = await recover(directory, repository.env);
    expect(await contentOf(recovered)).toEqual(await contentOf(primary));
    expect(await recovered.psql("SELECT timeline_id FROM pg_control_checkpoint()")).toBe("2");
  });

  test("a second one before the next restartpoint has the same name, and is told that there is one already", async () => {
    const before = await repository.keys();
    const [, name] = await listedBackups(standby, repository.env);
    const { exitCode, stderr } = await runWalb(["backup-push", standby.dataDirectory], {
      as: standby,
      env: repository.env,
    });
    expect({ exitCode, stderr }).toEqual({
      exitCode: 65,
      stderr: expect.stringContaining(`there is a backup "${name}" already`),
    });
    expect(stderr).toContain("On a standby, wait for the next restartpoint.");
    expect(await repository.keys()).toEqual(before);
  });

  test("a primary that writes nothing more: what to do there is told, and what was written is taken back", async () => {
    await primary.switchWal();
    await primary.query("CREATE TABLE quiet AS SELECT 1 AS id; CHECKPOINT");
    await replayed();
    const before = await backupObjects();
    const { exitCode, stderr } = await runWalb(["backup-push", standby.dataDirectory], {
      as: standby,
      env: { ...repository.env, WALB_ARCHIVE_TIMEOUT: "2s" },
    });
    expect({ exitCode, stderr }).toEqual({
      exitCode: 76,
      stderr: expect.stringMatching(/"[0-9A-F]{24}" was not archived within 2 s/),
    });
    expect(stderr).toContain("The primary archives a segment when it is full");
    expect(stderr).toContain("pg_switch_wal()");
    expect(stderr).toContain("archive_timeout");
    expect(await backupObjects()).toEqual(before);
  });

  test("stopped, with --while-offline: a copy without an archive has what the standby had replayed", async () => {
    // What makes it consistent goes over the end of the segment that holds the latest checkpoint.
    await primary.query("CREATE TABLE more AS SELECT generate_series(1, 20000) AS id; CHECKPOINT");
    for (const turn of [1, 2]) {
      await primary.query(`INSERT INTO more SELECT ${turn}`);
      await primary.switchWal();
    }
    await primary.query("UPDATE more SET id = -id");
    await replayed();
    const expected = await contentOf(standby);
    await standby.stop();
    await using own = await temporaryRepository();
    await pushBackup(standby, own.env, ["--while-offline"]);
    const directory = join(primary.directory, "offline");
    await fetchBackup(primary, own.env, { directory, args: ["--blind-restore"] });
    await using alone = await startPostgresOn(directory, { settings: { archive_mode: "off", primary_conninfo: "" } });
    expect(await contentOf(alone)).toEqual(expected);
    await standby.start();
    await standby.waitFor(async () => (await standby.psql("SELECT count(*) FROM pg_stat_wal_receiver")) === "1");
  });

  test("promoted during the backup: refused, and what was written is taken back", async () => {
    await primary.query("CREATE TABLE promoted AS SELECT 1 AS id; CHECKPOINT");
    await primary.switchWal();
    await primary.query("CHECKPOINT");
    await replayed();
    const before = await backupObjects();
    await using running = await startWalb(standby, ["backup-push", standby.dataDirectory], {
      ...repository.env,
      WALB_TAR_SIZE_THRESHOLD: "1MB",
    });
    await running.says('" started at ');
    running.signal("SIGSTOP");
    await standby.query("SELECT pg_promote()");
    running.signal("SIGCONT");
    expect(await running.ended()).toEqual({ exitCode: 76, signal: null });
    expect(running.stderr).toMatch(
      /ERROR: could not finish the backup\n.*the standby was promoted during online backup/,
    );
    expect(await backupObjects()).toEqual(before);
  });
});
