/** A tablespace that was created after the backup is replayed at its own place, which is the running server's: no drill goes there. */
import { describe, expect, test } from "bun:test";
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { archiveEverything, contentOf, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";

describe.each([POSTGRES_MAJORS[0] ?? 12, NEWEST_MAJOR])("PostgreSQL %i", (major) => {
  test("the live server's files stay as they are, and the next backup is drilled", async () => {
    await using repository = await temporaryRepository();
    await using server = await startArchiving(repository.env, { major, walSegmentSizeMiB: 1 });
    await using scratch = await ScratchParent.create(server);
    const backup = await pushBackup(server, repository.env);
    const place = await server.makeDirectory("made later");
    await server.query(`CREATE TABLESPACE later LOCATION '${place}'`);
    const oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'later'");
    const rows = "INSERT INTO kept SELECT repeat(md5(n::text), 10) FROM generate_series(1, 3000) n";
    await server.query("CREATE TABLE kept (text text) TABLESPACE later");
    await server.query(rows);
    await server.query("DELETE FROM kept");
    await server.query("VACUUM kept");
    await archiveEverything(server, repository);
    // Not in the archive: replay would cut the file short and not fill it again.
    await server.query(rows);
    await server.query("CHECKPOINT");
    const file = join(server.dataDirectory, await server.psql("SELECT pg_relation_filepath('kept')"));
    const before = { size: (await stat(file)).size, content: await contentOf(server) };
    const results = async () => (await repository.keys()).filter((key) => key.includes("walb_drill_"));

    const { exitCode, stderr } = await scratch.drill(repository.env, [], server);
    expect(exitCode).toBe(76);
    expect(stderr).toContain(`ERROR: replay would make tablespace ${oid} outside of the scratch directory
  DETAIL: It was created at "${place}" after backup "${backup}" had begun. Where the cluster itself runs, replay would work in its files.
  HINT: Take a new backup, `);
    expect(await scratch.left()).toEqual([]);
    expect(await results()).toEqual([]);
    expect((await stat(file)).size).toBe(before.size);
    await server.crash();
    await server.start();
    expect(await contentOf(server)).toEqual(before.content);

    await pushBackup(server, repository.env);
    expect(await scratch.drill(repository.env, [], server)).toMatchObject({ exitCode: 0 });
    expect((await stat(file)).size).toBe(before.size);
  }, 120_000);
});
