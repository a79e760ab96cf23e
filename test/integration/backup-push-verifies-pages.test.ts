/** Pages are compared with their checksums while they are read: what is right is never taken for damaged, and what is damaged is told. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { open, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { fetchBackup, startArchiving, startLoad, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runWalb } from "../support/walb.ts";

const PAGE_BYTES = 8192;
const GiB = 2 ** 30;

interface Pushed {
  readonly name: string;
  readonly walB: { readonly pages: { readonly verification: string; readonly damaged: number } };
  readonly damagedFiles: readonly {
    readonly path: string;
    readonly relation: string | null;
    readonly pages: number;
    readonly blocks: readonly number[];
  }[];
}

type Repository = Awaited<ReturnType<typeof temporaryRepository>>;

async function push(
  server: PostgresServer,
  repository: Repository,
  { args = [], env = {} }: { args?: readonly string[]; env?: Readonly<Record<string, string>> } = {},
) {
  const { exitCode, stdout, stderr } = await runWalb(["backup-push", server.dataDirectory, "--json", ...args], {
    as: server,
    env: { ...repository.env, ...env },
    timeoutMs: 120_000,
  });
  return { exitCode, stderr, pushed: (stdout === "" ? undefined : JSON.parse(stdout)) as Pushed };
}

async function flipBit(path: string, block: number, offset: number): Promise<void> {
  await using file = await open(path, "r+");
  const byte = Buffer.alloc(1);
  await file.read(byte, 0, 1, block * PAGE_BYTES + offset);
  byte[0] = (byte[0] as number) ^ 0x40;
  await file.write(byte, 0, 1, block * PAGE_BYTES + offset);
}

/** Every kind of relation that has pages, its forks, and pages that were changed without WAL of their own. */
const EVERY_KIND = `
  CREATE TABLE heap (id int PRIMARY KEY, words tsvector, place point, tags int[], long text);
  INSERT INTO heap SELECT n, to_tsvector('simple', 'word' || n), point(n, -n), ARRAY[n, n % 7], repeat(md5(n::text), 200)
    FROM generate_series(1, 600) n;
  ALTER TABLE heap ALTER long SET STORAGE EXTERNAL; UPDATE heap SET long = long || 'x' WHERE id < 50;
  CREATE INDEX ON heap USING hash (id); CREATE INDEX ON heap USING gin (words); CREATE INDEX ON heap USING gin (tags);
  CREATE INDEX ON heap USING gist (place); CREATE INDEX ON heap USING spgist (place); CREATE INDEX ON heap USING brin (id);
  CREATE UNLOGGED TABLE unlogged (id serial PRIMARY KEY, note text);
  INSERT INTO unlogged (note) SELECT repeat('u', 100) FROM generate_series(1, 1000);
  CREATE SEQUENCE numbers; SELECT nextval('numbers'); CREATE MATERIALIZED VIEW seen AS SELECT id FROM heap;
  DELETE FROM heap WHERE id % 3 = 0; VACUUM heap; SELECT count(*) FROM heap; CHECKPOINT`;

test.each([12, 18])(
  "PostgreSQL %i: no page of any kind of relation is taken for damaged, while running under load and when shut down",
  async (major) => {
    await using repository = await temporaryRepository();
    await using server = await startArchiving(repository.env, { major });
    for (const statement of EVERY_KIND.split(";")) await server.query(statement);
    {
      await using load = await startLoad(server);
      let stop = false;
      // Writes pages while they are read.
      const checkpoints = (async () => {
        while (!stop) await server.query("CHECKPOINT");
      })();
      const { exitCode, stderr, pushed } = await push(server, repository);
      stop = true;
      await checkpoints;
      await load.stop();
      expect(stderr).not.toContain("ERROR");
      expect(exitCode).toBe(0);
      expect(pushed.walB.pages).toEqual({ verification: "done", damaged: 0 });
    }
    await server.stop();
    const { stderr, pushed } = await push(server, repository, { args: ["--while-offline"] });
    expect(stderr).not.toContain("ERROR");
    expect(pushed.walB.pages).toEqual({ verification: "done", damaged: 0 });
  },
);

describe("damaged pages", () => {
  let repository: Repository;
  let server: PostgresServer;
  let path: string;
  beforeAll(async () => {
    repository = await temporaryRepository();
    server = await startArchiving(repository.env, { major: 17, settings: { autovacuum: "off" } });
    await server.query(
      `CREATE TABLE "Orders" AS SELECT n AS id, repeat('x', 500) AS note FROM generate_series(1, 1000) n`,
    );
    // Sets the hint bits, so that nothing writes these pages later on.
    await server.query('VACUUM (FREEZE) "Orders"');
    await server.query("CHECKPOINT");
    path = await server.psql(`SELECT pg_relation_filepath('"Orders"')`);
    await flipBit(join(server.dataDirectory, path), 5, 4000);
    await flipBit(join(server.dataDirectory, path), 17, 100);
    // The upper half of its LSN: a page from the future, which no WAL replay puts right.
    await flipBit(join(server.dataDirectory, path), 20, 0);
  });
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]();
    await repository?.[Symbol.asyncDispose]();
  });

  test("are logged as errors with relation and block, noted in the backup, and the exit code is 0", async () => {
    const { exitCode, stderr, pushed } = await push(server, repository);
    expect(exitCode).toBe(0);
    expect(stderr).toContain(`wal-b: ERROR: "${path}" has 3 damaged pages
  DETAIL: What is in blocks 5, 17, 20 of relation public."Orders" in database "postgres" does not match its checksum.
  HINT: `);
    expect(stderr.match(/ERROR/g)).toHaveLength(1);
    const relation = 'relation public."Orders" in database "postgres"';
    expect(pushed.damagedFiles).toEqual([{ path, relation, pages: 3, blocks: [5, 17, 20] }]);
    expect(pushed.walB.pages).toEqual({ verification: "done", damaged: 3 });

    const directory = `${repository.directory}/basebackups_005`;
    const sentinel = JSON.parse(await readFile(`${directory}/${pushed.name}_backup_stop_sentinel.json`, "utf8"));
    expect(sentinel.WalB).toMatchObject({ PageVerification: "done", DamagedPages: 3 });
    const files = JSON.parse(await readFile(`${directory}/${pushed.name}/files_metadata.json`, "utf8")).Files;
    expect(files[`/${path}`]).toMatchObject({
      CorruptBlocks: { CorruptBlocksCount: 3, SomeCorruptBlocks: [5, 17, 20] },
    });
    expect(files["/PG_VERSION"]).not.toHaveProperty("CorruptBlocks");

    // What is damaged is restored as it is: that is all there is.
    const restored = `${server.directory}/restored`;
    await fetchBackup(server, repository.env, { directory: restored, name: pushed.name });
    expect(await readFile(join(restored, path))).toEqual(await readFile(join(server.dataDirectory, path)));
  });

  test("are told of by whatever has to do with the backup later", async () => {
    const { pushed } = await push(server, repository);
    const walb = async (...args: string[]) => await runWalb(args, { as: server, env: repository.env });
    expect(JSON.parse((await walb("backup-list", "LATEST", "--json")).stdout)).toMatchObject([{ damaged_pages: 3 }]);
    const [header = "", row = ""] = (await walb("backup-list", "LATEST", "--detail")).stdout.split("\n");
    expect(row.split("\t")[header.split("\t").indexOf("damaged_pages")]).toBe("3");

    const held = `backup "${pushed.name}" holds pages that were damaged when it was taken: 3`;
    const fetched = await walb("backup-fetch", `${server.directory}/fetched`, pushed.name);
    expect(fetched).toMatchObject({ exitCode: 0, stderr: expect.stringContaining(`WARNING: ${held}\n`) });
    const planned = await walb("restore", `${server.directory}/planned`, "--dry-run");
    expect(planned).toMatchObject({ exitCode: 0, stderr: expect.stringContaining(`WARNING: ${held}\n`) });
    // They are what the manifest has: the repository is as it should be.
    const verified = await walb("verify");
    expect(verified).toMatchObject({
      exitCode: 0,
      stdout: expect.stringContaining("      note: It holds pages that were damaged when it was taken: 3."),
    });
  });

  test("make the exit code 65 when that is asked for, and the backup is listed all the same", async () => {
    const { exitCode, stderr, pushed } = await push(server, repository, { args: ["--damaged-pages", "fail"] });
    expect(exitCode).toBe(65);
    expect(stderr).toContain(`ERROR: backup "${pushed.name}" has 3 damaged pages\n`);
    const list = await runWalb(["backup-list", pushed.name], { as: server, env: repository.env });
    expect(list.exitCode).toBe(0);
  });

  test("are not looked for when that is switched off, by WAL-G's variable too, unless --verify is given", async () => {
    const off = { WALG_VERIFY_PAGE_CHECKSUMS: "false" };
    const skipped = await push(server, repository, { args: ["--damaged-pages=fail"], env: off });
    expect(skipped.stderr).not.toContain("ERROR");
    expect(skipped.exitCode).toBe(0);
    expect(skipped.stderr).toContain("INFO: pages are not verified\n");
    expect(skipped.pushed.walB.pages).toEqual({ verification: "off", damaged: 0 });
    expect((await push(server, repository, { args: ["--verify"], env: off })).pushed.walB.pages.damaged).toBe(3);
  });

  test("of a database that the session is not in are told with the database's name", async () => {
    await server.query("CREATE DATABASE other");
    const { pushed } = await push(server, repository, { env: { PGDATABASE: "other" } });
    expect(pushed.damagedFiles[0]?.relation).toBe('a relation in database "postgres"');
  });

  test("in a file that the catalogues do not know are told by their file", async () => {
    await server.query("CREATE TABLE other AS SELECT 1 AS id; CHECKPOINT");
    const database = path.slice(0, path.lastIndexOf("/"));
    const left = join(server.dataDirectory, database, "999999");
    await Bun.write(left, Buffer.alloc(PAGE_BYTES, 1));
    const { exitCode, pushed } = await push(server, repository);
    expect(exitCode).toBe(0);
    expect(pushed.damagedFiles.find((file) => file.path === `${database}/999999`)).toEqual({
      path: `${database}/999999`,
      relation: `a relation in database "postgres"`,
      pages: 1,
      blocks: [0],
    });
    await Bun.file(left).delete();
  });
});

test("a cluster without data checksums says so", async () => {
  await using repository = await temporaryRepository();
  await using server = await startArchiving(repository.env, { major: 16, dataChecksums: false });
  const { exitCode, stderr, pushed } = await push(server, repository, { args: ["--verify"] });
  expect(exitCode).toBe(0);
  expect(stderr).toContain("INFO: pages are not verified: the cluster has no data checksums\n");
  expect(pushed.walB.pages).toEqual({ verification: "none", damaged: 0 });
});

test("a relation of more than 1 GiB: the blocks of its second file are counted on", async () => {
  await using repository = await temporaryRepository();
  await using server = await startArchiving(repository.env, { major: 17, settings: { autovacuum: "off" } });
  await server.query("CREATE TABLE large (id int, note text)");
  const path = await server.psql("SELECT pg_relation_filepath('large')");
  await server.stop();
  // A gigabyte of new pages, which takes no room on disk: the server goes on behind it.
  await using file = await open(join(server.dataDirectory, path), "r+");
  await file.truncate(GiB);
  await file.close();
  await server.start();
  await server.query("INSERT INTO large SELECT n, repeat('x', 200) FROM generate_series(1, 1000) n");
  await server.query("VACUUM (FREEZE) large");
  await server.query("CHECKPOINT");
  const second = join(server.dataDirectory, `${path}.1`);
  expect((await stat(second)).size).toBeGreaterThan(20 * PAGE_BYTES);
  await flipBit(second, 3, 5000);

  const { exitCode, pushed } = await push(server, repository);
  expect(exitCode).toBe(0);
  expect(pushed.damagedFiles).toEqual([
    { path: `${path}.1`, relation: 'relation public.large in database "postgres"', pages: 1, blocks: [131_075] },
  ]);
  const directory = `${server.directory}/restored`;
  await fetchBackup(server, repository.env, { directory });
  expect((await stat(join(directory, path))).size).toBe(GiB);
  expect(await readFile(join(directory, `${path}.1`))).toEqual(await readFile(second));
}, 180_000);
