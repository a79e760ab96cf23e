/** A base backup under load, restored in every way that there is for tablespaces, row for row. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { lstat, mkdir, readdir, readFile, readlink, rename, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import {
  archiveEverything,
  contentOf,
  fetchBackup,
  pushBackup,
  recover,
  startArchiving,
  startLoad,
  temporaryRepository,
  verifyBackup,
} from "../support/backups.ts";
import { POSTGRES_MAJORS } from "../support/postgres-binaries.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runWalb } from "../support/walb.ts";

type Way = "mapping" | "source" | "inside" | "prepared";

interface Cluster {
  readonly dataChecksums: boolean;
  readonly walSegmentSizeMiB: number;
  readonly access: "owner" | "group";
  readonly wal: "inside" | "behind a link";
  /** Beside the mapping, which every major recovers from. */
  readonly recoverAlsoFrom: Way;
}

const CLUSTERS: Readonly<Record<number, Cluster>> = {
  12: { dataChecksums: true, walSegmentSizeMiB: 1, access: "owner", wal: "inside", recoverAlsoFrom: "source" },
  13: { dataChecksums: false, walSegmentSizeMiB: 16, access: "group", wal: "behind a link", recoverAlsoFrom: "inside" },
  14: { dataChecksums: true, walSegmentSizeMiB: 64, access: "owner", wal: "inside", recoverAlsoFrom: "prepared" },
  15: { dataChecksums: false, walSegmentSizeMiB: 1, access: "group", wal: "inside", recoverAlsoFrom: "source" },
  16: { dataChecksums: true, walSegmentSizeMiB: 16, access: "owner", wal: "inside", recoverAlsoFrom: "inside" },
  17: { dataChecksums: false, walSegmentSizeMiB: 64, access: "owner", wal: "inside", recoverAlsoFrom: "prepared" },
  18: { dataChecksums: true, walSegmentSizeMiB: 1, access: "group", wal: "behind a link", recoverAlsoFrom: "source" },
};

/** Files that somebody put into the data directory, as far as a file system allows. */
const ODD_NAMES = [
  "with blanks at the end  ",
  "-rf",
  `quotes ' " and \\backslash`,
  "line\nfeed",
  "ümläut €😀",
  `${"long".repeat(30)}.conf`,
  "empty",
];

const SMALL_PARTS = { WALB_TAR_SIZE_THRESHOLD: "1MB", WALB_UPLOAD_CONCURRENCY: "3" };

/** To a disk of its own, as initdb --waldir has it. */
async function moveWal(server: PostgresServer): Promise<void> {
  await server.stop();
  const [inside, elsewhere] = [join(server.dataDirectory, "pg_wal"), join(server.directory, "wal elsewhere")];
  await rename(inside, elsewhere);
  await symlink(elsewhere, inside);
  await server.start();
}

describe.each(POSTGRES_MAJORS.map((major) => ({ major, ...(CLUSTERS[major] as Cluster) })))(
  "PostgreSQL $major, checksums $dataChecksums, $walSegmentSizeMiB MiB segments, for the $access, pg_wal $wal",
  ({ major, dataChecksums, walSegmentSizeMiB, access, wal, recoverAlsoFrom }) => {
    const [directoryMode, fileMode] = access === "group" ? [0o750, 0o640] : [0o700, 0o600];
    let repository: Awaited<ReturnType<typeof temporaryRepository>>;
    let server: PostgresServer;
    let oid: string;
    let expected: Record<string, string>;
    /** Files of unlogged and temporary tables, relative to the data directory. */
    let passing: readonly string[];

    beforeAll(async () => {
      repository = await temporaryRepository();
      server = await startArchiving(repository.env, {
        major,
        dataChecksums,
        walSegmentSizeMiB,
        initdbArgs: access === "group" ? ["--allow-group-access"] : [],
        tablespaces: ["space"],
        settings: { max_wal_size: "256MB", ...(major >= 15 && { allow_in_place_tablespaces: "on" }) },
      });
      if (wal === "behind a link") await moveWal(server);
      oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
      await server.query(`
        CREATE TABLE large AS SELECT n AS id, repeat(md5(n::text), 8) AS note FROM generate_series(1, 40000) n;
        CREATE TABLE elsewhere TABLESPACE space AS SELECT n AS id, md5(n::text) AS note FROM generate_series(1, 5000) n;
        CREATE TABLE "Odd ""Name""" (id int, note text); INSERT INTO "Odd ""Name""" VALUES (1, 'ä'), (2, NULL);
        CREATE UNLOGGED TABLE forgotten AS SELECT generate_series(1, 5000) AS id;
        CREATE UNLOGGED TABLE forgotten_elsewhere TABLESPACE space AS SELECT generate_series(1, 5000) AS id`);
      if (major >= 15) {
        await server.query("CREATE TABLESPACE in_place LOCATION ''");
        await server.query("CREATE TABLE in_place TABLESPACE in_place AS SELECT generate_series(1, 1000) AS id");
      }
      await mkdir(join(server.dataDirectory, "odd names"), { mode: 0o700 });
      await giveTo(server.account, join(server.dataDirectory, "odd names"));
      for (const name of ODD_NAMES) {
        const path = join(server.dataDirectory, "odd names", name);
        await writeFile(path, name === "empty" ? "" : `content of ${name}`, { mode: 0o600 });
        await giveTo(server.account, path);
      }

      await using temporary = await server.connect();
      await temporary.query(`CREATE TEMPORARY TABLE passing AS SELECT generate_series(1, 1000) AS id;
                             CREATE TEMPORARY TABLE passing_elsewhere TABLESPACE space AS SELECT 1 AS id`);
      const tables = ["forgotten", "forgotten_elsewhere", "passing", "passing_elsewhere"];
      const { rows } = await temporary.query<{ path: string }>(
        "SELECT pg_relation_filepath(name::regclass) AS path FROM unnest($1::text[]) AS name",
        [tables],
      );
      passing = rows.map(({ path }) => path);
      await using load = await startLoad(server);
      await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
      await load.stop();
      expected = await contentOf(server);
      await archiveEverything(server, repository);
      await server.stop();
    });
    afterAll(async () => {
      await server?.[Symbol.asyncDispose]();
      await repository?.[Symbol.asyncDispose]();
    });

    /** @param way  of the tablespace; where it is then: the directory that its link leads to */
    async function restore(way: Way, directory: string): Promise<string> {
      const place = {
        mapping: join(server.directory, "mapped", "deep", "space"),
        source: server.tablespaceDirectory("space"),
        inside: join(directory, "tablespaces", oid),
        prepared: join(server.directory, "prepared"),
      }[way];
      const args = {
        mapping: ["--tablespace-mapping", `${oid}=${place}`],
        source: ["--restore-spec", "SOURCE"],
        inside: ["--blind-restore"],
        prepared: [],
      }[way];
      if (way === "prepared") {
        const links = join(directory, "pg_tblspc");
        await mkdir(links, { recursive: true, mode: 0o700 });
        await server.makeDirectory("prepared");
        await symlink(place, join(links, oid));
        for (const path of [directory, links]) await giveTo(server.account, path);
      }
      await fetchBackup(server, repository.env, { directory, args });
      expect(await readlink(join(directory, "pg_tblspc", oid))).toBe(place);
      return place;
    }

    test("has many parts, and a table larger than one of them", async () => {
      const keys = await repository.keys();
      expect(keys.filter((key) => /tar_partitions\/part_\d+\.tar\.zst$/.test(key)).length).toBeGreaterThan(8);
      expect(Number(expected["large"]?.split(" ")[0])).toBe(40000);
      expect(Number(expected["history"]?.split(" ")[0])).toBeGreaterThan(0);
    });

    test("a backup with tablespaces is refused without a word where they go, and nothing is made", async () => {
      const directory = join(server.directory, "refused");
      const { exitCode, stderr } = await runWalb(["backup-fetch", directory, "LATEST"], {
        as: server,
        env: repository.env,
      });
      expect(exitCode).toBe(64);
      expect(stderr).toContain("the backup has tablespaces, and it is not said where they go");
      expect(stderr).toContain(`--tablespace-mapping ${oid}=`);
      expect(await readdir(server.directory)).not.toContain("refused");
    });

    test("SOURCE is refused while the old tablespace is there, and nothing is made", async () => {
      const directory = join(server.directory, "refused");
      const { exitCode, stderr } = await runWalb(["backup-fetch", directory, "LATEST", "--restore-spec", "SOURCE"], {
        as: server,
        env: repository.env,
      });
      expect(exitCode).toBe(73);
      expect(stderr).toContain(`"${server.tablespaceDirectory("space")}" is not empty`);
      expect(await readdir(server.directory)).not.toContain("refused");
    });

    test("every way for tablespaces makes a directory that pg_verifybackup finds complete", async () => {
      // Last in the list: nobody restores to the source's own directories while the source is there.
      for (const way of ["mapping", "inside", "prepared", "source"] as const) {
        if (way === "source") await rm(server.tablespaceDirectory("space"), { recursive: true });
        const directory = join(server.directory, `restored-${way}`);
        const place = await restore(way, directory);

        const { exitCode, stdout, stderr } = await verifyBackup(
          directory,
          way === "inside" ? ["-i", "tablespaces"] : [],
        );
        expect({ way, stderr, stdout, exitCode }).toEqual({
          way,
          stderr: "",
          stdout: "backup successfully verified\n",
          exitCode: 0,
        });
        const modeOf = async (path: string) => (await stat(path)).mode & 0o777;
        for (const path of [directory, join(directory, "base"), join(directory, "pg_tblspc")])
          expect(`${path} ${(await modeOf(path)).toString(8)}`).toBe(`${path} ${directoryMode.toString(8)}`);
        for (const name of ["global/pg_control", "backup_label", "PG_VERSION"])
          expect(`${name} ${(await modeOf(join(directory, name))).toString(8)}`).toBe(
            `${name} ${fileMode.toString(8)}`,
          );
        if (way !== "prepared") expect((await modeOf(place)).toString(8)).toBe(directoryMode.toString(8));

        expect(passing).toHaveLength(4);
        for (const path of passing) {
          expect(existsSync(join(directory, path))).toBe(false);
          expect(existsSync(join(directory, `${path}_init`))).toBe(!path.includes("/t"));
        }

        const names = await readdir(directory);
        for (const name of ["tablespace_map", "postmaster.pid", "postmaster.opts", "recovery.signal"])
          expect(names).not.toContain(name);
        expect((await readdir(join(directory, "odd names"))).sort()).toEqual(ODD_NAMES.toSorted());
        for (const name of ODD_NAMES.filter((each) => each !== "empty"))
          expect(await readFile(join(directory, "odd names", name), "utf8")).toBe(`content of ${name}`);
        expect((await lstat(join(directory, "pg_wal"))).isDirectory()).toBe(true);
        expect(await readdir(join(directory, "pg_wal"))).toContain("archive_status");
        expect((await readdir(join(directory, "pg_wal"))).filter((name) => /^[0-9A-F]{24}/.test(name))).toEqual([]);
      }
    });

    test.each(["mapping", recoverAlsoFrom])("recovery to the latest has every row, from %s", async (way) => {
      await using recovered = await recover(join(server.directory, `restored-${way}`), repository.env);
      expect(await contentOf(recovered)).toEqual(expected);
      expect(
        await recovered.psql("SELECT (SELECT count(*) FROM forgotten), (SELECT count(*) FROM forgotten_elsewhere)"),
      ).toBe("0|0");
      expect(await recovered.psql("SELECT count(*) FROM pg_class WHERE relname LIKE 'passing%'")).toBe("0");
      expect(await recovered.psql("SHOW data_checksums")).toBe(dataChecksums ? "on" : "off");
      await recovered.query("INSERT INTO forgotten_elsewhere VALUES (1); INSERT INTO elsewhere VALUES (0, 'new')");
    });
  },
);
