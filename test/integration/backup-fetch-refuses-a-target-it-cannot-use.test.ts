/** What backup-fetch cannot restore into is refused before anything is changed. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmod, chown, lstat, mkdir, mkdtemp, readdir, rm, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, shortTemporaryDirectory } from "../support/account.ts";
import {
  contentOf,
  fetchBackup,
  pushBackup,
  recover,
  startArchiving,
  temporaryRepository,
} from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { runWalb } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
let oid: string;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { tablespaces: ["space"] });
  oid = await server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'space'");
  await server.query("CREATE TABLE elsewhere TABLESPACE space AS SELECT generate_series(1, 1000) AS id");
  await pushBackup(server, repository.env);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const fetch = (directory: string, args: readonly string[] = ["--blind-restore"]) =>
  runWalb(["backup-fetch", directory, "LATEST", ...args], { as: server, env: repository.env });

/** Everything below, with what a change would change. */
async function snapshot(directory: string): Promise<readonly string[]> {
  const names = await readdir(directory, { recursive: true });
  const facts = async (name: string) => {
    const { mode, size, mtimeMs, uid } = await lstat(join(directory, name));
    return `${name} ${mode.toString(8)} ${size} ${mtimeMs} ${uid}`;
  };
  return await Promise.all([".", ...names.toSorted()].map(facts));
}

async function refuses(
  directory: string,
  said: readonly string[],
  { args, code = 73, around = directory }: { args?: readonly string[]; code?: number; around?: string } = {},
): Promise<void> {
  const before = await snapshot(around);
  const { exitCode, stderr } = await fetch(directory, args);
  expect({ exitCode, stderr }).toEqual({ exitCode: code, stderr: expect.stringContaining(said[0] ?? "") });
  for (const text of said) expect(stderr).toContain(text);
  expect(await snapshot(around)).toEqual(before);
}

test.each(["PG_VERSION", ".hidden", "postgresql.conf"])("a directory with %s in it", async (name) => {
  const directory = await server.makeDirectory(`with ${name}`);
  await writeFile(join(directory, name), "precious");
  await refuses(directory, [`"${directory}" is not empty`, `It contains "${name}".`]);
});

test("a directory whose pg_tblspc holds more than links", async () => {
  const directory = await server.makeDirectory("with a tablespace");
  await mkdir(join(directory, "pg_tblspc", oid), { recursive: true });
  await giveTo(server.account, join(directory, "pg_tblspc"));
  await refuses(directory, [`It contains "pg_tblspc/${oid}".`]);
});

test("a prepared link to a directory that is not empty", async () => {
  const directory = await server.makeDirectory("with a link");
  const place = await server.makeDirectory("place of the link");
  await writeFile(join(place, "precious"), "");
  await mkdir(join(directory, "pg_tblspc"));
  await giveTo(server.account, join(directory, "pg_tblspc"));
  await symlink(place, join(directory, "pg_tblspc", oid));
  await refuses(directory, [`"${place}" is not empty`, 'It contains "precious".'], { args: [] });
});

test("a prepared link that leads elsewhere than the tablespace is to go", async () => {
  const directory = await server.makeDirectory("with another link");
  const place = await server.makeDirectory("where the link leads");
  await mkdir(join(directory, "pg_tblspc"));
  await giveTo(server.account, join(directory, "pg_tblspc"));
  await symlink(place, join(directory, "pg_tblspc", oid));
  const args = ["--tablespace-mapping", `${oid}=${directory}-mapped`];
  await refuses(
    directory,
    [
      "is there already, and leads elsewhere",
      `It leads to "${place}", and the tablespace is to go to "${directory}-mapped".`,
    ],
    { args },
  );
  expect(await readdir(place)).toEqual([]);
});

test("a tablespace mapping that is not absolute", async () => {
  const directory = await server.makeDirectory("with a mapping");
  const args = ["--tablespace-mapping", `${oid}=../outside`];
  await refuses(directory, ['"../outside" cannot be the place of a tablespace'], { args, code: 64 });
});

test("the data directory of a running server", async () => {
  const before = await contentOf(server);
  const { exitCode, stderr } = await fetch(server.dataDirectory);
  expect({ exitCode, stderr }).toEqual({
    exitCode: 73,
    stderr: expect.stringContaining(`a server runs in "${server.dataDirectory}"`),
  });
  expect(stderr).toContain(`Its process is ${server.pid}.`);
  expect(await readdir(server.dataDirectory)).not.toContain("backup_label");
  expect(await contentOf(server)).toEqual(before);
});

test("a directory that may not be written", async () => {
  const directory = await server.makeDirectory("read only");
  await chmod(directory, 0o555);
  await refuses(directory, [`could not prepare "${directory}"`, "Run the command as the account"]);
  const inside = join(directory, "not there");
  await refuses(inside, [`could not prepare "${inside}"`], { around: directory });
});

test("a directory that may not be read", async () => {
  const directory = await server.makeDirectory("closed");
  await chmod(directory, 0o300);
  await refuses(directory, [`could not read "${directory}"`, "EACCES"]);
});

test("a file", async () => {
  const directory = await server.makeDirectory("holds a file");
  await writeFile(join(directory, "file"), "precious");
  await refuses(join(directory, "file"), [`could not read "${join(directory, "file")}"`], { around: directory });
});

test("a name that is no backup's", async () => {
  const directory = join(server.directory, "not made");
  const name = "base_0000000100000000000000FF";
  const { exitCode, stderr } = await runWalb(["backup-fetch", directory, name], { as: server, env: repository.env });
  expect(exitCode).toBe(74);
  expect(stderr).toContain(`there is no backup "${name}"`);
  expect(await readdir(server.directory)).not.toContain("not made");
});

test("an empty directory of any mode is used, and gets the mode that a server starts on", async () => {
  const directory = await server.makeDirectory("open to all");
  await chmod(directory, 0o777);
  await fetchBackup(server, repository.env, { directory, args: ["--blind-restore"] });
  expect(((await stat(directory)).mode & 0o777).toString(8)).toBe("700");
  await using recovered = await recover(directory, repository.env);
  expect(await recovered.psql("SELECT count(*) FROM elsewhere")).toBe("1000");
});

// Only root may give a directory away or mount a small file system, and only root restores for another account.
if (process.getuid?.() !== 0) {
  process.stderr.write(
    "not tested: directories of others, a file system that is too small, and restoring as root: that needs root\n",
  );
} else {
  test("a directory that the account may write and does not own: its mode could not be set, after hours", async () => {
    const group = server.account?.gid ?? -1;
    const directory = await server.makeDirectory("of root and the group");
    await chown(directory, 0, group);
    await chmod(directory, 0o770);
    await refuses(directory, [
      `"${directory}" belongs to another account`,
      `Its owner is account 0, and this one is ${server.account?.uid}.`,
      `Run "chown ${server.account?.uid} '${directory}'" as root`,
    ]);
    const prepared = await server.makeDirectory("with links that root made");
    await mkdir(join(prepared, "pg_tblspc"));
    await symlink(await server.makeDirectory("place that root prepared"), join(prepared, "pg_tblspc", oid));
    await refuses(prepared, [`"${prepared}/pg_tblspc" belongs to another account`], { args: [] });
  });

  test("a tablespace's directory that the account may write and does not own is used: its mode stays", async () => {
    const directory = await server.makeDirectory("beside a place of root");
    const place = await server.makeDirectory("place of root and the group");
    await chown(place, 0, server.account?.gid ?? -1);
    await chmod(place, 0o770);
    await fetchBackup(server, repository.env, { directory, args: ["--tablespace-mapping", `${oid}=${place}`] });
    await using recovered = await recover(directory, repository.env);
    expect(await recovered.psql("SELECT count(*) FROM elsewhere")).toBe("1000");
  });

  test("root into a directory of root's: a warning says that no server starts on it, and what to do", async () => {
    const around = await mkdtemp(join(shortTemporaryDirectory(), "walb-of-root-"));
    try {
      const args = ["backup-fetch", join(around, "data"), "LATEST", "--tablespace-mapping", `${oid}=${around}/space`];
      const { exitCode, stderr } = await runWalb(args, { env: repository.env });
      expect({ exitCode, stderr }).toEqual({
        exitCode: 0,
        stderr: expect.stringContaining(`WARNING: what is restored into "${around}/data" will belong to root\n`),
      });
      expect(stderr).toContain(`run "chown -R postgres: '${around}/data' '${around}/space'"`);
    } finally {
      await rm(around, { recursive: true });
    }
  });

  test("a file system that is too small, before anything is written", async () => {
    const directory = await server.makeDirectory("small");
    const mounted = await runProgram(["mount", "-t", "tmpfs", "-o", "size=4m", "small", directory]);
    if (mounted.exitCode !== 0) {
      process.stderr.write(`not tested: a file system that is too small: ${mounted.stderr}\n`);
      return;
    }
    try {
      await giveTo(server.account, directory);
      await refuses(directory, [`the backup does not fit into "${directory}"`, "4.0 MiB are free"]);
      // The same when only a tablespace goes there.
      const target = join(server.directory, "large enough");
      await mkdir(join(directory, "space"));
      await giveTo(server.account, join(directory, "space"));
      const fill = await runProgram(["dd", "if=/dev/zero", `of=${directory}/fill`, "bs=1M", "count=4"]);
      expect(fill.stderr).toContain("4");
      await refuses(target, [`the backup does not fit into "${directory}/space"`, "0.0 MiB are free"], {
        args: ["--tablespace-mapping", `${oid}=${directory}/space`],
        around: directory,
      });
      expect(await readdir(server.directory)).not.toContain("large enough");
    } finally {
      await runProgram(["umount", directory]);
    }
  });

  test("root restores for the owner of the directory that it restores into, with every directory in between", async () => {
    const around = await server.makeDirectory("restored by root");
    const directory = join(around, "data/18/main");
    const args = ["backup-fetch", directory, "LATEST", "--tablespace-mapping", `${oid}=${around}/spaces/one`];
    const { exitCode, stderr } = await runWalb(args, { env: repository.env });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.not.stringContaining("WARNING") });
    const names = await readdir(around, { recursive: true });
    const owners = await Promise.all(names.map(async (name) => `${name} ${(await stat(join(around, name))).uid}`));
    expect(owners.filter((owner) => !owner.endsWith(` ${server.account?.uid}`))).toEqual([]);
    await using recovered = await recover(directory, repository.env);
    expect(await recovered.psql("SELECT count(*) FROM elsewhere")).toBe("1000");
  });
}
