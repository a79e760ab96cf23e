/** A tablespace that was created after the backup is replayed at its own place, which is the running server's: no drill goes there. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { chmod, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  pushBackup,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import { documentOf, ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { waitFor } from "../support/wait-for.ts";

const ROWS = "INSERT INTO kept SELECT repeat(md5(n::text), 10) FROM generate_series(1, 3000) n";

/** All that is archived cuts a file of the tablespace short, which the server has filled again since. */
async function createTablespace(server: PostgresServer, archive: () => Promise<void>) {
  const place = await server.makeDirectory("made later");
  await server.query(`CREATE TABLESPACE later LOCATION '${place}'`);
  const oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'later'");
  await server.query("CREATE TABLE kept (text text) TABLESPACE later");
  await server.query(ROWS);
  await server.query("DELETE FROM kept");
  await server.query("VACUUM kept");
  await archive();
  await server.query(ROWS);
  await server.query("CHECKPOINT");
  const file = join(server.dataDirectory, await server.psql("SELECT pg_relation_filepath('kept')"));
  const sizeOf = async () => (await stat(file)).size;
  return { oid, place, sizeOf, size: await sizeOf(), content: await contentOf(server) };
}

/** A directory with a program "postgres" that says when it is started, and starts when it may. */
async function serverThatIsHeld(server: PostgresServer) {
  const directory = await server.makeDirectory("held");
  const [isAsked, mayStart] = [join(directory, "asked"), join(directory, "may start")];
  const original = server.bin("postgres");
  const hold = `touch '${isAsked}'; until [ -e '${mayStart}' ]; do sleep 0.1; done`;
  const script = `if [ "$1" = --version ]; then exec ${original} --version; fi\n${hold}\nexec ${original} "$@"`;
  await writeFile(join(directory, "postgres"), `#!/bin/sh\n${script}\n`);
  await chmod(join(directory, "postgres"), 0o755);
  return {
    directory,
    asked: () => waitFor(() => existsSync(isAsked), { what: "the drill to start its server", timeoutMs: 60_000 }),
    release: () => writeFile(mayStart, ""),
  };
}

describe.each([POSTGRES_MAJORS[0] ?? 12, NEWEST_MAJOR])("PostgreSQL %i", (major) => {
  test("the live server's files stay as they are, and the next backup is drilled", async () => {
    await using repository = await temporaryRepository();
    await using server = await startArchiving(repository.env, { major });
    await using scratch = await ScratchParent.create(server);
    const backup = await pushBackup(server, repository.env);
    const { oid, place, sizeOf, size, content } = await createTablespace(server, async () => {
      await archiveEverything(server, repository);
      await archiveEverything(server, repository);
    });
    const results = async () => (await repository.keys()).filter((key) => key.includes("walb_drill_"));

    const { exitCode, stderr } = await scratch.drill(repository.env, [], server);
    expect(exitCode).toBe(76);
    expect(stderr).toContain(`ERROR: replay would make tablespace ${oid} outside of the scratch directory
  DETAIL: It was created at "${place}" after backup "${backup}" had begun. Where the cluster itself runs, replay would work in its files.
  HINT: Take a new backup, `);
    // A damaged segment behind it hides nothing.
    const last = (await repository.keys()).findLast((key) => /^wal_005\/[0-9A-F]{24}\.zst$/.test(key)) ?? "";
    const whole = await readFile(join(repository.directory, last));
    await writeFile(join(repository.directory, last), whole.subarray(0, whole.byteLength / 2));
    expect(await scratch.drill(repository.env, [], server)).toMatchObject({
      exitCode: 76,
      stderr: expect.stringContaining(`replay would make tablespace ${oid} outside`),
    });
    await writeFile(join(repository.directory, last), whole);
    expect(await scratch.left()).toEqual([]);
    expect(await results()).toEqual([]);
    expect(await sizeOf()).toBe(size);
    await server.crash();
    await server.start();
    expect(await contentOf(server)).toEqual(content);

    await pushBackup(server, repository.env);
    expect(await scratch.drill(repository.env, [], server)).toMatchObject({ exitCode: 0 });
    expect(await sizeOf()).toBe(size);
  }, 120_000);

  test("also when it is created while the drill is on its way: that is not replayed", async () => {
    await using repository = await temporaryRepository();
    await using server = await startArchiving(repository.env, { major });
    await using scratch = await ScratchParent.create(server);
    await pushBackup(server, repository.env);
    await server.query("CREATE TABLE before AS SELECT 1 AS one");
    await archiveEverything(server, repository);

    const held = await serverThatIsHeld(server);
    const drilling = scratch.drill(repository.env, ["--postgres-bin", held.directory], server);
    await held.asked();
    const { sizeOf, size, content } = await createTablespace(server, () => archiveEverything(server, repository));
    await held.release();
    const result = await drilling;
    expect({ exitCode: result.exitCode, stderr: result.stderr }).toEqual({
      exitCode: 0,
      stderr: expect.not.stringContaining("ERROR"),
    });
    expect(documentOf(result)).toMatchObject({ verdict: "good", findings: [] });
    expect(await sizeOf()).toBe(size);
    await server.crash();
    await server.start();
    expect(await contentOf(server)).toEqual(content);
  }, 120_000);
});

test("WAL that the backup of a stopped standby has of its own is looked through, or not replayed", async () => {
  await using repository = await temporaryRepository();
  await using primary = await startArchiving(repository.env);
  await using scratch = await ScratchParent.create(primary);
  await pushBackup(primary, repository.env);
  const directory = join(primary.directory, "standby");
  await fetchBackup(primary, repository.env, { directory });
  await writeFile(join(directory, "standby.signal"), "");
  await giveTo(primary.account, join(directory, "standby.signal"));
  const primary_conninfo = `host=${primary.socketDirectory} port=${primary.port} user=${primary.user}`;
  await using standby = await startPostgresOn(directory, { settings: { primary_conninfo, hot_standby: "on" } });

  /** Its restartpoint is in a segment that is archived; what is done then is in one that is not. */
  const stopBehind = async (statement: string) => {
    await primary.query("CHECKPOINT");
    await archiveEverything(primary, repository);
    await primary.query(statement);
    const lsn = await primary.psql("SELECT pg_current_wal_lsn()");
    const isReplayed = `SELECT pg_last_wal_replay_lsn() >= '${lsn}'::pg_lsn`;
    await standby.waitFor(async () => (await standby.psql(isReplayed)) === "t", { what: `the replay of ${lsn}` });
    await standby.stop();
    return await pushBackup(standby, repository.env, ["--while-offline"]);
  };
  const drill = (...args: readonly string[]) => scratch.drill(repository.env, args, primary);

  const backup = await stopBehind("CREATE TABLE rows AS SELECT generate_series(1, 1000) AS id");
  for (const args of [[], ["--to", "immediate"]]) {
    const unknown = await drill(...args);
    expect({ exitCode: unknown.exitCode, stderr: unknown.stderr }).toEqual({
      exitCode: 76,
      stderr: expect.stringContaining("cannot tell whether replay would stay inside the scratch directory"),
    });
    expect(unknown.stderr).toContain(` is not in the archive. Backup "${backup}" is of a standby that was stopped`);
  }
  await archiveEverything(primary, repository);
  expect(await drill("--to", "immediate")).toMatchObject({ exitCode: 0 });

  await standby.start();
  const place = await primary.makeDirectory("made later");
  await stopBehind(`CREATE TABLESPACE later LOCATION '${place}'`);
  await archiveEverything(primary, repository);
  expect(await drill("--to", "immediate")).toMatchObject({
    exitCode: 76,
    stderr: expect.stringContaining(`outside of the scratch directory\n  DETAIL: It was created at "${place}"`),
  });

  // A primary that was shut down has nothing behind its checkpoint, although the archive does not have that yet.
  await primary.stop();
  await pushBackup(primary, repository.env, ["--while-offline"]);
  expect(await drill()).toMatchObject({ exitCode: 0 });
  expect(await scratch.left()).toEqual([]);
}, 180_000);
