import { describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { lstat, mkdir, mkdtemp, rename, rm, symlink, unlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { SourceMissingError } from "../../../src/errors.ts";
import {
  readTablespaceLinks,
  tablespaceVersionDirectory,
  type WalkOptions,
  walkDataDirectory,
} from "../../../src/postgres/data-directory.ts";
import type { DataEntry } from "../../../src/postgres/data-entry.ts";
import { recordedLog } from "./recorded-log.ts";

const VERSION_DIRECTORY = tablespaceVersionDirectory(15, 202209061);

describe("walkDataDirectory()", () => {
  test("yields directories before their content, in byte order, without the data directory itself", async () => {
    await using cluster = await makeCluster("PG_VERSION", "base/1/1259", "base/1/1247", "base/10/1259", "global/1260");
    expect(await cluster.walk()).toEqual([
      "file PG_VERSION",
      "directory base",
      "directory base/1",
      "file base/1/1247",
      "file base/1/1259",
      "directory base/10",
      "file base/10/1259",
      "directory global",
      "file global/1260",
    ]);
  });

  test("tells size, mode, owner and time to the nanosecond", async () => {
    await using cluster = await makeCluster("base/1/1259");
    execFileSync("touch", ["-d", "2025-01-02T03:04:05.123456789Z", cluster.at("base/1/1259")]);
    execFileSync("chmod", ["640", cluster.at("base/1/1259")]);
    const { uid, gid } = await lstat(cluster.at("base/1/1259"));
    const file = (await cluster.entries()).find(({ path }) => path === "base/1/1259");
    expect(file).toEqual({
      kind: "file",
      path: "base/1/1259",
      absolutePath: cluster.at("base/1/1259"),
      mode: 0o640,
      uid,
      gid,
      mtimeNs: 1735787045123456789n,
      sizeBytes: "base/1/1259".length,
    });
  });

  test.each([
    // Left out wherever they are.
    ["base/pgsql_tmp/pgsql_tmp1.0", "base"],
    ["base/1/pg_internal.init", "base base/1"],
    ["global/pg_internal.init.4711", "global"],
    ["lost+found/x", ""],
    // Left out of the data directory only.
    ["postmaster.pid", ""],
    ["postmaster.opts", ""],
    ["backup_label", ""],
    ["backup_label.old", ""],
    ["tablespace_map", ""],
    ["backup_manifest", ""],
    ["recovery.signal", ""],
    ["standby.signal", ""],
    ["postgresql.auto.conf.tmp", ""],
    [".wal-e/prefetch/x", ""],
    ["pg_log/backup_label", "pg_log pg_log/backup_label"],
    // Put in place last by a restore, and so not part of the walk.
    ["global/pg_control", "global"],
    ["base/1/pg_control", "base base/1 base/1/pg_control"],
    // Directories that stay, empty.
    ["pg_stat_tmp/global.stat", "pg_stat_tmp"],
    ["pg_replslot/slot/state", "pg_replslot"],
    ["pg_dynshmem/mmap.1", "pg_dynshmem"],
    ["pg_notify/0000", "pg_notify"],
    ["pg_serial/0000", "pg_serial"],
    ["pg_snapshots/x", "pg_snapshots"],
    ["pg_subtrans/0000", "pg_subtrans"],
    ["pg_wal/000000010000000000000001", "pg_wal pg_wal/archive_status"],
    ["pg_wal/summaries/x.summary", "pg_wal pg_wal/archive_status pg_wal/summaries"],
    ["pg_wal/.wal-b/prefetch/x", "pg_wal pg_wal/archive_status"],
    // Temporary relations.
    ["base/1/t3_16385", "base base/1"],
    ["base/1/t3_16385_fsm.1", "base base/1"],
    ["pg_log/t3_16385", "pg_log pg_log/t3_16385"],
    // Kept.
    ["pg_stat/pgstat.stat", "pg_stat pg_stat/pgstat.stat"],
    ["pg_logical/replorigin_checkpoint", "pg_logical pg_logical/replorigin_checkpoint"],
    ["postgresql.auto.conf", "postgresql.auto.conf"],
    ["current_logfiles", "current_logfiles"],
    ["pg_xact/0000", "pg_xact pg_xact/0000"],
    ["base/1/PG_VERSION", "base base/1 base/1/PG_VERSION"],
  ])("of %s backs up %j", async (file, expected) => {
    await using cluster = await makeCluster(file);
    expect((await cluster.entries()).map(({ path }) => path).join(" ")).toBe(expected);
  });

  test("keeps of an unlogged relation only the fork that makes it empty", async () => {
    const unlogged = ["16385", "16385.1", "16385_fsm", "16385_vm", "16385_init"].map((name) => `base/5/${name}`);
    await using cluster = await makeCluster(...unlogged, "base/5/16386", "base/5/163851", "base/6/16385");
    expect((await cluster.walk()).filter((line) => line.startsWith("file"))).toEqual([
      "file base/5/163851",
      "file base/5/16385_init",
      "file base/5/16386",
      "file base/6/16385",
    ]);
  });

  test("includes pg_wal of a stopped server when asked to", async () => {
    await using cluster = await makeCluster("pg_wal/000000010000000000000001", "pg_wal/archive_status/x.done");
    expect(await cluster.walk({ wal: "include" })).toEqual([
      "directory pg_wal",
      "file pg_wal/000000010000000000000001",
      "directory pg_wal/archive_status",
      "file pg_wal/archive_status/x.done",
    ]);
  });

  test("makes a pg_wal that is a link, and its archive_status, plain directories, without a warning", async () => {
    await using cluster = await makeCluster("PG_VERSION");
    await mkdir(join(cluster.outside, "wal"));
    await symlink(join(cluster.outside, "wal"), cluster.at("pg_wal"));
    expect(await cluster.walk()).toEqual(["file PG_VERSION", "directory pg_wal", "directory pg_wal/archive_status"]);
    expect(cluster.lines).toEqual([]);
  });
});

describe("a tablespace", () => {
  test("comes under pg_tblspc with its link, and only with the directory of this version", async () => {
    await using cluster = await makeCluster("pg_tblspc/");
    const target = join(cluster.outside, "space");
    await makeFiles(target, `${VERSION_DIRECTORY}/5/16401`, `${VERSION_DIRECTORY}/pgsql_tmp/x`, "PG_14_202107181/5/1");
    await makeFiles(target, `${VERSION_DIRECTORY}/5/16402`, `${VERSION_DIRECTORY}/5/16402_init`, "stray");
    await symlink(target, cluster.at("pg_tblspc/16400"));

    expect(await cluster.walk()).toEqual([
      "directory pg_tblspc",
      `directory pg_tblspc/16400/${VERSION_DIRECTORY}`,
      `directory pg_tblspc/16400/${VERSION_DIRECTORY}/5`,
      `file pg_tblspc/16400/${VERSION_DIRECTORY}/5/16401`,
      `file pg_tblspc/16400/${VERSION_DIRECTORY}/5/16402_init`,
    ]);
    expect(await readTablespaceLinks(cluster.at(""))).toEqual([{ oid: 16400, location: target }]);
  });

  test("that was created since the backup started is left out", async () => {
    await using cluster = await makeCluster("pg_tblspc/");
    for (const name of ["old", "new"]) await makeFiles(join(cluster.outside, name), `${VERSION_DIRECTORY}/5/16401`);
    await symlink(join(cluster.outside, "old"), cluster.at("pg_tblspc/16400"));
    const tablespaces = await readTablespaceLinks(cluster.at(""));
    await symlink(join(cluster.outside, "new"), cluster.at("pg_tblspc/16402"));
    expect((await cluster.walk({ tablespaces })).filter((line) => line.startsWith("file"))).toEqual([
      `file pg_tblspc/16400/${VERSION_DIRECTORY}/5/16401`,
    ]);
  });

  test("that was dropped since the backup started is passed over", async () => {
    await using cluster = await makeCluster("pg_tblspc/");
    const tablespaces = [{ oid: 16400, location: join(cluster.outside, "gone") }];
    expect(await cluster.walk({ tablespaces })).toEqual(["directory pg_tblspc"]);
  });

  test("whose link is relative has its location told all the same", async () => {
    await using cluster = await makeCluster("pg_tblspc/", "PG_VERSION");
    await symlink("../../outside", cluster.at("pg_tblspc/16400"));
    expect(await readTablespaceLinks(cluster.at(""))).toEqual([{ oid: 16400, location: cluster.outside }]);
  });

  test("in place is a directory", async () => {
    await using cluster = await makeCluster(`pg_tblspc/16400/${VERSION_DIRECTORY}/5/16401`);
    expect(await cluster.walk()).toEqual([
      "directory pg_tblspc",
      "directory pg_tblspc/16400",
      `directory pg_tblspc/16400/${VERSION_DIRECTORY}`,
      `directory pg_tblspc/16400/${VERSION_DIRECTORY}/5`,
      `file pg_tblspc/16400/${VERSION_DIRECTORY}/5/16401`,
    ]);
    expect(await readTablespaceLinks(cluster.at(""))).toEqual([]);
  });

  test("inside the data directory comes once", async () => {
    await using cluster = await makeCluster(`spaces/one/${VERSION_DIRECTORY}/5/16401`, "pg_tblspc/");
    await symlink(cluster.at("spaces/one"), cluster.at("pg_tblspc/16400"));
    expect((await cluster.walk()).filter((line) => line.startsWith("file"))).toEqual([
      `file pg_tblspc/16400/${VERSION_DIRECTORY}/5/16401`,
    ]);
  });

  test("at a location that is not UTF-8 is a failure", async () => {
    await using cluster = await makeCluster("pg_tblspc/");
    const target = Buffer.concat([Buffer.from(`${cluster.outside}/caf`), Buffer.from([0xe9])]);
    await mkdir(target);
    await symlink(target, cluster.at("pg_tblspc/16400"));
    expect((await cluster.failure()).message).toBe("the location of tablespace 16400 is not UTF-8");
  });

  test("whose file system is not mounted is a failure", async () => {
    await using cluster = await makeCluster("pg_tblspc/");
    await symlink("/nonexistent/space", cluster.at("pg_tblspc/16400"));
    const failure = await cluster.failure();
    expect(failure.message).toBe("the directory of tablespace 16400 does not exist");
    expect(failure.hint).toBe("Check that its file system is mounted.");
  });

  test.each(["pg_tblspc/16400", "elsewhere"])(
    "whose file system is not mounted, at a mount point that is there, is a failure: %s",
    async (mountPoint) => {
      await using cluster = await makeCluster("pg_tblspc/", `${mountPoint}/`);
      if (mountPoint === "elsewhere") await symlink(cluster.at(mountPoint), cluster.at("pg_tblspc/16400"));
      const failure = await cluster.failure();
      expect(failure.message).toBe(`there is no directory "${VERSION_DIRECTORY}" of tablespace 16400`);
      expect(failure.hint).toBe("Check that its file system is mounted.");
    },
  );

  test("that is dropped at this moment, first its content and then the link, is passed over", async () => {
    await using cluster = await makeCluster("pg_tblspc/", "elsewhere/");
    await symlink(cluster.at("elsewhere"), cluster.at("pg_tblspc/16400"));
    setTimeout(() => void unlink(cluster.at("pg_tblspc/16400")), 150);
    expect(await cluster.walk()).toEqual(["directory elsewhere", "directory pg_tblspc"]);
  });
});

describe("a symbolic link elsewhere", () => {
  test("to a file or directory is backed up as what it points to, with a warning", async () => {
    await using cluster = await makeCluster("base/");
    await makeFiles(cluster.outside, "pg_xact/0000", "my.conf");
    await symlink(join(cluster.outside, "pg_xact"), cluster.at("pg_xact"));
    await symlink(join(cluster.outside, "my.conf"), cluster.at("postgresql.conf"));
    expect(await cluster.walk()).toEqual([
      "directory base",
      "directory pg_xact",
      "file pg_xact/0000",
      "file postgresql.conf",
    ]);
    expect(cluster.lines.map((line) => line.split("\n")[0])).toEqual([
      'WARNING: "pg_xact" is a symbolic link; what it points to is backed up in its place',
      'WARNING: "postgresql.conf" is a symbolic link; what it points to is backed up in its place',
    ]);
  });

  test("to a moved database keeps the rules for databases", async () => {
    await using cluster = await makeCluster("base/");
    await makeFiles(cluster.outside, "5/16385", "5/16385_init", "5/t3_1");
    await symlink(join(cluster.outside, "5"), cluster.at("base/5"));
    expect((await cluster.walk()).slice(1)).toEqual(["directory base/5", "file base/5/16385_init"]);
  });

  test("to nothing is skipped with a warning", async () => {
    await using cluster = await makeCluster("PG_VERSION");
    await symlink("/nonexistent/x", cluster.at("server.key"));
    expect(await cluster.walk()).toEqual(["file PG_VERSION"]);
    expect(cluster.lines).toEqual([
      'WARNING: "server.key" is a symbolic link to nothing and is not backed up\n  DETAIL: It points to "/nonexistent/x".',
    ]);
  });

  test.each([
    ["..", '"base/up" is a symbolic link to a directory that it lies in'],
    ["up", "could not read"], // ELOOP
  ])("to %s is a failure, not an endless walk", async (target, message) => {
    await using cluster = await makeCluster("base/");
    await symlink(target, cluster.at("base/up"));
    expect((await cluster.failure()).message).toContain(message);
  });
});

describe("what cannot be read", () => {
  test("is passed over when it is gone: files, directories and links that vanish under the walk", async () => {
    await using cluster = await makeCluster("base/1/1259", "base/2/1259", "global/1260");
    const seen: string[] = [];
    for await (const { path } of cluster.start()) {
      seen.push(path);
      if (path === "base/1") await rm(cluster.at("base/1"), { recursive: true });
    }
    expect(seen).toEqual(["base", "base/1", "base/2", "base/2/1259", "global", "global/1260"]);
  });

  test("is passed over when a directory became a file", async () => {
    await using cluster = await makeCluster("base/1/1259", "global/1260");
    const seen: string[] = [];
    for await (const { path } of cluster.start()) {
      seen.push(path);
      if (path !== "base/1") continue;
      await rename(cluster.at("base/1"), join(cluster.outside, "1"));
      await writeFile(cluster.at("base/1"), "");
    }
    expect(seen).toEqual(["base", "base/1", "global", "global/1260"]);
  });

  test("is a failure when the data directory itself is not there", async () => {
    const walk = walkDataDirectory("/nonexistent/data", {
      versionDirectory: "",
      tablespaces: [],
      wal: "exclude",
      log: recordedLog().log,
    });
    await expect(walk.next()).rejects.toThrow('data directory "/nonexistent/data" does not exist');
  });

  test("is a failure when its name is not UTF-8, but not when the name has a replacement character", async () => {
    await using cluster = await makeCluster("pg_log/ok\uFFFD");
    expect(await cluster.walk()).toEqual(["directory pg_log", "file pg_log/ok\uFFFD"]);
    await writeFile(Buffer.concat([Buffer.from(`${cluster.at("pg_log")}/caf`), Buffer.from([0xe9])]), "");
    const failure = await cluster.failure();
    expect(failure.message).toBe(`a file in "${cluster.at("pg_log")}" has a name that is not UTF-8`);
    expect(failure.detail).toBe('In Latin-1 it reads "caf\xe9".');
  });

  test("is skipped with a warning when it is a socket or a fifo", async () => {
    await using cluster = await makeCluster("PG_VERSION");
    execFileSync("mkfifo", [cluster.at("fifo")]);
    expect(await cluster.walk()).toEqual(["file PG_VERSION"]);
    expect(cluster.lines).toEqual(['WARNING: "fifo" is a special file and is not backed up']);
  });
});

/** A directory of files; a name that ends in "/" is a directory. */
async function makeCluster(...files: readonly string[]) {
  const top = await mkdtemp(join(tmpdir(), "walb-walk-"));
  const directory = join(top, "data");
  const outside = join(top, "outside");
  await mkdir(directory);
  await mkdir(outside);
  await makeFiles(directory, ...files);
  await utimes(directory, 0, 0);

  const { log, lines } = recordedLog();
  const start = async function* (options: Partial<WalkOptions> = {}) {
    const tablespaces = options.tablespaces ?? (await readTablespaceLinks(directory));
    yield* walkDataDirectory(directory, {
      ...{ versionDirectory: VERSION_DIRECTORY, wal: "exclude", log, ...options },
      tablespaces,
    });
  };
  const entries = async (options: Partial<WalkOptions> = {}) => {
    const found: DataEntry[] = [];
    for await (const entry of start(options)) found.push(entry);
    return found;
  };
  return {
    outside,
    lines,
    start,
    entries,
    at: (path: string) => join(directory, path),
    walk: async (options: Partial<WalkOptions> = {}) =>
      (await entries(options)).map(({ kind, path }) => `${kind} ${path}`),
    failure: async () => {
      const failure: unknown = await entries().then(
        () => undefined,
        (error) => error,
      );
      if (failure instanceof SourceMissingError) return failure;
      throw new Error(`not the failure that was expected: ${failure}`);
    },
    [Symbol.asyncDispose]: () => rm(top, { recursive: true }),
  };
}

async function makeFiles(directory: string, ...files: readonly string[]): Promise<void> {
  for (const file of files) {
    const path = join(directory, file);
    await mkdir(file.endsWith("/") ? path : dirname(path), { recursive: true });
    if (!file.endsWith("/")) await writeFile(path, file);
  }
}
