/** Tables and databases are made, grown, truncated and dropped while their files are read. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  pushBackup,
  pushBackupWhile,
  recover,
  startArchiving,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";

const BACKUPS = 2;

/** Until it is stopped; tells how often each was done. */
function comeAndGo(server: PostgresServer) {
  let stopped = false;
  const done = { tables: 0, databases: 0 };
  const tables = async () => {
    await using session = await server.connect();
    await session.query("CREATE TABLE truncated (id int, note text); CREATE TABLE shrunk (id int, note text)");
    for (let turn = 1; !stopped; turn++) {
      const name = `passing_${turn % 5}`;
      await session.query(`
        DROP TABLE IF EXISTS ${name};
        CREATE TABLE ${name} AS SELECT n AS id, repeat(md5(n::text), 4) AS note FROM generate_series(1, 2000) n;
        CREATE INDEX ON ${name} (id);
        TRUNCATE truncated; INSERT INTO truncated SELECT n, repeat('x', 200) FROM generate_series(1, 1000 + ${turn}) n;
        INSERT INTO shrunk SELECT n, repeat('y', 200) FROM generate_series(1, 3000) n`);
      await session.query("DELETE FROM shrunk WHERE id > 10");
      // Gives the pages at the end back to the file system.
      await session.query("VACUUM shrunk");
      await session.query("CREATE TABLE IF NOT EXISTS grown (id int, note text)");
      await session.query("INSERT INTO grown SELECT n, repeat('z', 100) FROM generate_series(1, 500) n");
      done.tables++;
    }
  };
  const databases = async () => {
    await using session = await server.connect();
    for (let turn = 1; !stopped; turn++) {
      await session.query(`CREATE DATABASE passing_${turn}`);
      if (turn > 2) await session.query(`DROP DATABASE passing_${turn - 2}`);
      done.databases++;
    }
  };
  const running = Promise.all([tables(), databases()]);
  running.catch(() => undefined);
  return {
    done,
    async [Symbol.asyncDispose]() {
      stopped = true;
      await running.catch(() => undefined);
    },
    async stop() {
      stopped = true;
      await running;
    },
  };
}

test.each([12, 17])(`PostgreSQL %i: each of ${BACKUPS} backups restores every row`, async (major) => {
  await using own = await temporaryRepository();
  await using server = await startArchiving(own.env, { major });
  await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, 20000) n");
  await using changes = comeAndGo(server);
  await server.waitFor(() => changes.done.tables > 2 && changes.done.databases > 2, { what: "changes" });

  const names: string[] = [];
  for (let turn = 0; turn < BACKUPS; turn++) {
    const before = { ...changes.done };
    names.push(await pushBackup(server, { ...own.env, WALB_TAR_SIZE_THRESHOLD: "1MB", WALB_UPLOAD_CONCURRENCY: "1" }));
    expect(changes.done.tables).toBeGreaterThan(before.tables);
    expect(changes.done.databases).toBeGreaterThan(before.databases);
  }
  await changes.stop();
  const expected = await contentOf(server);
  const databases = await server.psql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database");
  await archiveEverything(server, own);

  for (const name of names) {
    const directory = `${server.directory}/${name}`;
    await fetchBackup(server, own.env, { directory, name });
    expect((await verifyBackup(directory)).stdout).toBe("backup successfully verified\n");
    await using recovered = await recover(directory, own.env);
    expect(await contentOf(recovered)).toEqual(expected);
    expect(await recovered.psql("SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database")).toBe(databases);
  }
});

// Which file it reads is told by strace.
if (process.platform !== "linux") {
  process.stderr.write("not tested: a file that changes in the very moment it is read: that needs Linux\n");
} else {
  test("a file that shrinks, one that grows and one that vanishes in the moment they are read", async () => {
    await using own = await temporaryRepository();
    await using server = await startArchiving(own.env, { major: 16, settings: { autovacuum: "off" } });
    const content = (rows: number) =>
      `SELECT n AS id, repeat(md5(n::text), 30) AS note FROM generate_series(1, ${rows}) n`;
    // Made one after the other, so their files are next to each other in the order in which they are read.
    await server.query(`CREATE TABLE shrinking AS ${content(25000)}`);
    await server.query(`CREATE TABLE vanishing AS ${content(10)}`);
    await server.query(`CREATE TABLE growing AS ${content(25000)}; CHECKPOINT`);
    const pathOf = async (table: string) =>
      `${server.dataDirectory}/${await server.psql(`SELECT pg_relation_filepath('${table}')`)}`;
    const [shrinking, vanishing, growing] = [
      await pathOf("shrinking"),
      await pathOf("vanishing"),
      await pathOf("growing"),
    ];

    await pushBackupWhile(server, own.env, {
      [shrinking]: async () => {
        await server.query("TRUNCATE shrinking");
        await server.query("DROP TABLE vanishing");
        await server.query("CHECKPOINT");
        expect(existsSync(vanishing)).toBe(false);
      },
      [growing]: async () => {
        await server.query(`INSERT INTO growing ${content(10000)}`);
        await server.query("CHECKPOINT");
      },
    });
    await archiveEverything(server, own);

    const directory = `${server.directory}/restored`;
    await fetchBackup(server, own.env, { directory });
    expect((await verifyBackup(directory)).stdout).toBe("backup successfully verified\n");
    await using recovered = await recover(directory, own.env);
    expect(await contentOf(recovered)).toEqual(await contentOf(server));
  });
}
