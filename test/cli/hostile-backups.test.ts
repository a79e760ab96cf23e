/**
 * Backups that somebody made to write outside of the directory that they are restored into, or over what is there: each is
 * refused by backup-fetch, restore and verify, or restored to inside; and nothing comes about that a server could start on.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { lstat, mkdir, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { encodeContent } from "../../src/codec/content.ts";
import { openZstd } from "../../src/codec/zstd.ts";
import { backupKeys, partKey } from "../../src/repository/keys.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { readGolden } from "../support/golden.ts";
import { type RawMember, rawTar } from "../support/raw-tar.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { runWalb } from "../support/walb.ts";

const START = "000000010000000000000001";
const NAME = `base_${START}`;
const PART = "part_001.tar.zst";
const HONEST = { "global/pg_control": Buffer.alloc(8192, 1), PG_VERSION: Buffer.from("18\n") };
const EVIL = "written by a backup";

const zstd = await openZstd(3);
let site: TemporaryDirectory;
/** Where members try to get to: with a file that must stay as it is. */
let outside: string;
let repository: string;
let target: string;

beforeAll(async () => {
  site = await temporaryDirectory();
  [outside, repository, target] = ["outside", "repository", "around/target"].map((name) => join(site.path, name)) as [
    string,
    string,
    string,
  ];
  await mkdir(outside);
  await mkdir(join(site.path, "around"));
  await writeFile(join(outside, "precious"), "precious");
});
afterAll(async () => await site[Symbol.asyncDispose]());

/** A repository with one backup, and the WAL that it needs. */
async function repositoryWith(files: Readonly<Record<string, Uint8Array>>): Promise<void> {
  await rm(repository, { recursive: true, force: true });
  await rm(target, { recursive: true, force: true });
  await mkdir(repository);
  await using store = await openDirectoryStore({ directory: repository, signal: new AbortController().signal });
  await putBackup(store, zstd, { startSegment: START, parts: { [PART]: files } });
  await putWal(store, zstd, [START, START.replace(/1$/, "2")]);
}

/** The part has other members, and the sentinel knows how large it is: as whoever may write to the repository can make it. */
async function replacePart(members: readonly RawMember[]): Promise<void> {
  const [part, sentinel] = [partKey(NAME, PART), backupKeys(NAME).sentinel].map((key) => join(repository, key)) as [
    string,
    string,
  ];
  const body = await encodeContent(rawTar(members), zstd);
  await writeFile(part, body);
  const text = await readFile(sentinel, "utf8");
  await writeFile(sentinel, text.replace(/"CompressedSize":\d+/, `"CompressedSize":${body.byteLength}`));
}

const COMMANDS = [
  ["backup-fetch", () => ["backup-fetch", target, NAME]],
  ["restore", () => ["restore", target, "--backup", NAME]],
  ["verify", () => ["verify", NAME]],
] as const;

const walb = (args: readonly string[]) => runWalb(args, { env: { WALB_FILE_PREFIX: repository } });

async function expectNothingOutside(): Promise<void> {
  expect(await readdir(outside)).toEqual(["precious"]);
  expect(await readFile(join(outside, "precious"), "utf8")).toBe("precious");
  expect((await readdir(join(site.path, "around"))).filter((name) => name !== "target")).toEqual([]);
  expect((await readdir(site.path)).sort()).toEqual(["around", "outside", "repository"]);
}

async function expectNothingToStart(): Promise<void> {
  const there = await readdir(target, { recursive: true }).catch(() => []);
  expect(there).not.toContain("global/pg_control");
  for (const name of there) expect((await lstat(join(target, name))).isSymbolicLink()).toBe(false);
}

const file = (name: string, content = EVIL): RawMember => ({ name, type: "file", content });
const honest = Object.entries(HONEST).map(([path, content]) => file(`/${path}`, content.toString("latin1")));

describe("a member that its manifest has,", () => {
  test.each([["../escaped"], ["../../outside/escaped"], ["base/../../escaped"], ["base/./x"], ["base//x"]])(
    "called %s, is refused by all",
    async (path) => {
      for (const [, args] of COMMANDS) {
        await repositoryWith({ ...HONEST, [path]: Buffer.from(EVIL) });
        const { exitCode, stdout, stderr } = await walb(args());
        expect({ exitCode, told: stdout + stderr }).toEqual({
          exitCode: 65,
          told: expect.stringContaining("the part has a member that would leave the directory"),
        });
        await expectNothingOutside();
        await expectNothingToStart();
      }
    },
  );

  test("called as an absolute path, is restored to inside", async () => {
    await repositoryWith({ ...HONEST, [join(outside, "escaped").slice(1)]: Buffer.from(EVIL) });
    expect(await walb(["backup-fetch", target, NAME])).toMatchObject({ exitCode: 0 });
    await expectNothingOutside();
    expect(await readFile(join(target, outside, "escaped"), "utf8")).toBe(EVIL);
  });

  test("that would be restored over another, as a file below a file, is refused by backup-fetch and restore", async () => {
    for (const [, args] of COMMANDS.slice(0, 2)) {
      await repositoryWith({ ...HONEST, "PG_VERSION/x": Buffer.from(EVIL) });
      expect(await walb(args())).toMatchObject({ exitCode: 73, stderr: expect.stringContaining("ENOTDIR") });
      await expectNothingToStart();
    }
  });

  test("that comes twice, is refused by all", async () => {
    for (const [command, args] of COMMANDS) {
      await repositoryWith(HONEST);
      await replacePart([...honest, file("/PG_VERSION", "18\n")]);
      const { exitCode } = await walb(args());
      expect({ command, exitCode }).toEqual({ command, exitCode: command === "verify" ? 65 : 73 });
      await expectNothingToStart();
    }
  });
});

describe("a member that is no file, with a file behind it that would go through it,", () => {
  const kinds: readonly (readonly [string, () => RawMember])[] = [
    ["a symbolic link", () => ({ name: "/base", type: "symbolic link", target: outside })],
    ["a hard link", () => ({ name: "/base", type: "hard link", target: join(outside, "precious") })],
    ["a device", () => ({ name: "/base", type: "device" })],
    ["a fifo", () => ({ name: "/base", type: "fifo" })],
  ];

  test.each(kinds)("%s, is refused by all", async (_, member) => {
    for (const [, args] of COMMANDS) {
      await repositoryWith({ ...HONEST, "base/escaped": Buffer.from(EVIL) });
      await replacePart([...honest, member(), file("/base/escaped")]);
      const { exitCode, stdout, stderr } = await walb(args());
      expect({ exitCode, told: stdout + stderr }).toEqual({
        exitCode: 65,
        told: expect.stringContaining('the part has "base", which is neither a file nor a directory'),
      });
      await expectNothingOutside();
      await expectNothingToStart();
    }
  });

  test.each(kinds)("%s, in a backup that WAL-G made, is passed over with a warning", async (_, member) => {
    await repositoryWith(HONEST);
    const keys = backupKeys(NAME);
    const spec = { LSN: 2 ** 20 + 40, FinishLSN: 2 ** 20 + 256, Spec: null };
    const text = JSON.stringify({
      ...(JSON.parse(readGolden("test/golden/wal-g-3.0-sentinel.json").toString()) as object),
      ...spec,
    });
    await writeFile(join(repository, keys.sentinel), text);
    for (const key of [keys.metadata, keys.filesMetadata, keys.manifest]) await rm(join(repository, key));
    await writeFile(
      join(repository, partKey(NAME, PART)),
      await encodeContent(rawTar([...honest, member(), file("/base/inside")]), zstd),
    );
    const { exitCode, stderr } = await walb(["backup-fetch", target, NAME]);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.stringContaining('WARNING: "base" is a ') });
    await expectNothingOutside();
    expect(await readFile(join(target, "base/inside"), "utf8")).toBe(EVIL);
    expect((await lstat(join(target, "base"))).isDirectory()).toBe(true);
  });
});

describe("a link in the target", () => {
  /** Empty, so that it could be restored into. */
  let leadsTo: string;
  const linkAt = async (path: string) => {
    leadsTo = join(site.path, "empty");
    await mkdir(leadsTo);
    await mkdir(join(target, path, ".."), { recursive: true });
    await symlink(leadsTo, join(target, path));
  };
  afterEach(async () => await rm(leadsTo, { recursive: true }));

  test.each([
    ["that is that of a tablespace which the backup does not have", "pg_tblspc/16388", "is a link, and not that of a"],
    ["that is pg_tblspc itself", "pg_tblspc", "is a link, and not that of a"],
    ["under any other name", "base", "is not empty"],
  ])("%s, is refused by backup-fetch and restore", async (_, link, said) => {
    await repositoryWith({ ...HONEST, [`${link}/escaped`]: Buffer.from(EVIL) });
    await linkAt(link);
    for (const [, args] of COMMANDS.slice(0, 2)) {
      const { exitCode, stderr } = await walb(args());
      expect({ exitCode, stderr }).toEqual({ exitCode: 73, stderr: expect.stringContaining(said) });
      expect(stderr).toContain(`"${link}"`.replace(/^"(pg_tblspc.*)"$/, `"${target}/$1"`));
      expect(await readdir(leadsTo)).toEqual([]);
    }
  });
});

test("what its sentinel says makes no lines of its own, no columns, and nothing that a terminal obeys", async () => {
  await repositoryWith(HONEST);
  for (const key of [backupKeys(NAME).sentinel, backupKeys(NAME).metadata]) {
    const text = await readFile(join(repository, key), "utf8");
    const host = JSON.stringify("host\t\u001b]0;title\u0007\nbase_2\u001b[2K").slice(1, -1);
    await writeFile(join(repository, key), text.replace(/("Hostname":|"hostname":)"[^"]*"/, `$1"${host}"`));
  }
  const { exitCode, stdout, stderr } = await walb(["backup-list", "--detail"]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  const lines = stdout.split("\n");
  expect(lines).toHaveLength(3);
  expect(lines[1]).toContain("\thost\ufffd\ufffd]0;title\ufffd\ufffdbase_2\ufffd[2K\t");
  expect(stdout.replaceAll(/[\n\t]/g, "")).not.toMatch(/\p{Cc}/u);
});
