/** A tablespace that was created after the backup is replayed at its own place, which is the running server's: no drill goes there. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { chmod, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { archiveEverything, contentOf, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { documentOf, ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
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
