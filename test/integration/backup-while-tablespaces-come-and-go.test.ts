/** Tablespaces are created and dropped while a backup is started, and while its files are read. */
import { expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  pushBackupWhile,
  recover,
  startArchiving,
  startWalb,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";

async function createTablespace(server: PostgresServer, name: string): Promise<string> {
  const location = await server.makeDirectory(name);
  await server.query(`CREATE TABLESPACE ${name} LOCATION '${location}'`);
  await server.query(`CREATE TABLE in_${name} TABLESPACE ${name} AS SELECT generate_series(1, 1000) AS id`);
  return location;
}

const oidOf = (server: PostgresServer, name: string) =>
  server.psql(`SELECT oid FROM pg_tablespace WHERE spcname = '${name}'`);

const MAJORS = [13, 18];

// Which file it reads is told by strace.
if (process.platform !== "linux") {
  process.stderr.write("not tested: tablespaces that come and go while files are read: that needs Linux\n");
} else {
  test.each(MAJORS)("PostgreSQL %i: one is created and one dropped while files are read", async (major) => {
    await using own = await temporaryRepository();
    await using server = await startArchiving(own.env, { major });
    await server.query("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 30) FROM generate_series(1, 25000) n");
    const dropped = await createTablespace(server, "dropped");
    const oid = await oidOf(server, "dropped");
    const filler = await server.psql("SELECT pg_relation_filepath('filler')");

    let created = "";
    await pushBackupWhile(server, own.env, {
      [`${server.dataDirectory}/${filler}`]: async () => {
        created = await createTablespace(server, "created");
        await server.query("DROP TABLE in_dropped");
        await server.query("DROP TABLESPACE dropped");
        await rm(dropped, { recursive: true });
        await server.query("CHECKPOINT");
      },
    });
    await archiveEverything(server, own);
    const expected = await contentOf(server);

    // Replay creates it where it was, which is to be there and nobody's.
    await server.stop();
    await rm(created, { recursive: true });
    await server.makeDirectory("created");
    const directory = `${server.directory}/restored`;
    const mapping = ["--tablespace-mapping", `${oid}=${server.directory}/mapped`];
    await fetchBackup(server, own.env, { directory, args: mapping });
    expect((await verifyBackup(directory)).stdout).toBe("backup successfully verified\n");
    await using recovered = await recover(directory, own.env);
    expect(await contentOf(recovered)).toEqual(expected);
    expect(await recovered.psql("SELECT string_agg(spcname, ' ' ORDER BY oid) FROM pg_tablespace")).toBe(
      "pg_default pg_global created",
    );
  });
}

test.each(MAJORS)("PostgreSQL %i: one is created before the checkpoint that the backup starts from", async (major) => {
  await using own = await temporaryRepository();
  await using server = await startArchiving(own.env, { major });
  const checkpointer = Number(
    await server.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"),
  );

  process.kill(checkpointer, "SIGSTOP");
  using _ = { [Symbol.dispose]: () => process.kill(checkpointer, "SIGCONT") };
  await using running = await startWalb(server, ["backup-push", server.dataDirectory], own.env);
  const isStarting = `SELECT count(*) FROM pg_stat_activity
                       WHERE application_name = 'wal-b' AND state = 'active' AND query ~ 'pg_(backup_start|start_backup)'`;
  await server.waitFor(async () => (await server.psql(isStarting)) === "1", { what: "wal-b to start the backup" });
  await createTablespace(server, "created");
  process.kill(checkpointer, "SIGCONT");
  await succeeds(running);
  await archiveEverything(server, own);

  const directory = `${server.directory}/restored`;
  const place = `${server.directory}/mapped`;
  const mapping = ["--tablespace-mapping", `${await oidOf(server, "created")}=${place}`];
  await fetchBackup(server, own.env, { directory, args: mapping });
  expect((await verifyBackup(directory)).stdout).toBe("backup successfully verified\n");
  await using recovered = await recover(directory, own.env);
  expect(await contentOf(recovered)).toEqual(await contentOf(server));
  const location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'created'";
  expect(await recovered.psql(location)).toBe(place);
});

async function succeeds(running: Awaited<ReturnType<typeof startWalb>>): Promise<void> {
  const { exitCode } = await running.ended();
  expect({ exitCode, said: running.stderr }).toEqual({ exitCode: 0, said: expect.any(String) });
}
