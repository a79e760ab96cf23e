/** What only the directory store has: a root that may be missing, files that others see, names that lead elsewhere. */
import { afterAll, describe, expect, test } from "bun:test";
import { link, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Failure, NotFoundError, StorageError, UsageError } from "../../../src/errors.ts";
import { openDirectoryStore } from "../../../src/storage/directory.ts";
import { readChunks } from "../../support/read-chunks.ts";

const root = await mkdtemp(join(tmpdir(), "walb-directory-"));
afterAll(() => rm(root, { recursive: true, force: true }));

async function setUp(signal = new AbortController().signal) {
  const directory = await mkdtemp(join(root, "repository-"));
  return { directory, store: await openDirectoryStore({ directory, signal }) };
}

async function failure(work: () => Promise<unknown>): Promise<Failure> {
  try {
    await work();
  } catch (error) {
    return error as Failure;
  }
  throw new Error("it did not fail");
}

const text = (content: string) => new TextEncoder().encode(content);

test("a directory that is not there is a usage error and is not created", async () => {
  const directory = join(root, "not-mounted");
  const error = await failure(() => openDirectoryStore({ directory, signal: new AbortController().signal }));
  expect(error).toBeInstanceOf(UsageError);
  expect(error.hint).toContain("never created by itself");
  expect(await readdir(root)).not.toContain("not-mounted");
});

test("a file in place of the directory is a usage error", async () => {
  const directory = join(root, "a-file");
  await writeFile(directory, "");
  const error = await failure(() => openDirectoryStore({ directory, signal: new AbortController().signal }));
  expect(error).toBeInstanceOf(UsageError);
});

test("a directory that vanishes proves nothing: every request is a StorageError, never NotFoundError, nothing is made", async () => {
  const { directory, store } = await setUp();
  await store.putIfAbsent("wal_005/a", text("x"));
  await rename(directory, `${directory}.away`);
  const requests = [
    () => store.get("wal_005/a", 1),
    () => store.head("wal_005/a"),
    () => readChunks(store, "wal_005/a"),
    () => Array.fromAsync(store.list("wal_005/")),
    () => store.listLevel(""),
    () => store.delete(["wal_005/a"]),
    () => store.putIfAbsent("wal_005/b", text("x")),
    () => store.replace("wal_005/b", text("x")),
    () => Array.fromAsync(store.listUnfinishedUploads("")),
  ];
  for (const request of requests) {
    const error = await failure(request);
    expect(error).toBeInstanceOf(StorageError);
    expect(error.message).toContain("is gone");
  }
  await expect(stat(directory)).rejects.toThrow("ENOENT");
});

test("a root that became another directory proves nothing and gets nothing: its file system was unmounted", async () => {
  const { directory, store } = await setUp();
  await store.putIfAbsent("wal_005/a", text("x"));
  await using underWay = store.upload("wal_005/c");
  await underWay.write(text("x"));
  await rename(directory, `${directory}.away`);
  // With the directories of a repository, so that nothing has to be made.
  await mkdir(join(directory, "wal_005"), { recursive: true });
  const requests = [
    () => store.get("wal_005/a", 1),
    () => store.head("wal_005/a"),
    () => Array.fromAsync(store.list("wal_005/")),
    () => store.listLevel(""),
    () => store.delete(["wal_005/a"]),
    () => store.putIfAbsent("wal_005/b", text("x")),
    () => store.replace("wal_005/b", text("x")),
    () => store.forCleanup().putIfAbsent("wal_005/b", text("x")),
    () => underWay.complete(),
  ];
  for (const request of requests) expect(await failure(request)).toBeInstanceOf(StorageError);
  expect((await failure(() => store.get("wal_005/a", 1))).detail).toBe(
    "Its file system was unmounted, or another one mounted over it.",
  );
  expect(await readdir(join(directory, "wal_005"))).toEqual([]);
});

test("an object is one file with exactly the bytes, and nothing else is left beside it", async () => {
  const { directory, store } = await setUp();
  await store.putIfAbsent("wal_005/a.zst", text("first"), { size: "5" });
  await store.putIfAbsent("wal_005/a.zst", text("second"));
  await store.replace("wal_005/b.json", text("one"));
  await store.replace("wal_005/b.json", text("two"));
  expect((await readdir(directory, { recursive: true })).sort()).toEqual([
    "wal_005",
    "wal_005/a.zst",
    "wal_005/b.json",
  ]);
  expect(await readFile(join(directory, "wal_005/a.zst"), "utf8")).toBe("first");
  expect(await readFile(join(directory, "wal_005/b.json"), "utf8")).toBe("two");
});

test("a link that is there already is created, and not taken: on NFS its answer may have got lost", async () => {
  const { directory, store } = await setUp();
  await using upload = store.upload("a");
  await upload.write(text("ours"));
  const [temporary = ""] = await readdir(directory);
  await link(join(directory, temporary), join(directory, "a"));
  expect(await upload.complete()).toBe("created");
  expect(await readdir(directory)).toEqual(["a"]);
  expect(await store.putIfAbsent("a", text("ours"))).toBe("exists");
});

test("files and directories take the modes of the umask", async () => {
  const { directory, store } = await setUp();
  const before = process.umask(0o027);
  try {
    await store.putIfAbsent("wal_005/a", text("x"));
  } finally {
    process.umask(before);
  }
  expect(((await stat(join(directory, "wal_005"))).mode & 0o777).toString(8)).toBe("750");
  expect(((await stat(join(directory, "wal_005/a"))).mode & 0o777).toString(8)).toBe("640");
});

test("a temporary file of a killed process is no object, and is listed as an unfinished upload", async () => {
  const { directory, store } = await setUp();
  await mkdir(join(directory, "wal_005"));
  const name = ".wal-b.0b9e8f4e-6c1f-4a07-9a0b-3f8a3c5a7d11.0000A.zst";
  await writeFile(join(directory, "wal_005", name), "half");
  expect(await Array.fromAsync(store.list(""))).toEqual([]);
  expect((await store.listLevel("wal_005/")).objects).toEqual([]);
  const [found] = await Array.fromAsync(store.listUnfinishedUploads("wal_005/0000A"));
  expect(found).toMatchObject({ key: "wal_005/0000A.zst", uploadId: name });
  if (found) await store.abortUpload(found);
  expect(await readdir(join(directory, "wal_005"))).toEqual([]);
});

test.each(["../outside", "wal_005/../../outside", "/etc/passwd", ".."])(
  "abortUpload() removes nothing at %j",
  async (uploadId) => {
    const { store } = await setUp();
    const upload = { key: "a", uploadId, initiated: new Date(0) };
    expect(await failure(() => store.abortUpload(upload))).toBeInstanceOf(UsageError);
    expect(await failure(() => store.abortUpload({ ...upload, key: "../a" }))).toBeInstanceOf(UsageError);
  },
);

describe("a prefix never leaves the root", () => {
  test.each(["../", "a/../../", "/etc/"])("%j", async (prefix) => {
    const { store } = await setUp();
    expect(await failure(() => Array.fromAsync(store.list(prefix)))).toBeInstanceOf(UsageError);
    expect(await failure(() => store.listLevel(prefix))).toBeInstanceOf(UsageError);
  });
});

test("a symbolic link is neither followed nor passed over", async () => {
  const { directory, store } = await setUp();
  await symlink(root, join(directory, "wal_005"));
  const error = await failure(() => Array.fromAsync(store.list("")));
  expect(error).toBeInstanceOf(StorageError);
  expect(error.detail).toContain('"wal_005" is a symbolic link');
});

test("what does not begin with the prefix is not looked at", async () => {
  const { directory, store } = await setUp();
  await store.putIfAbsent("wal_005/A.zst", text("x"));
  const temporary = ".wal-b.0b9e8f4e-6c1f-4a07-9a0b-3f8a3c5a7d11.B.zst";
  await writeFile(join(directory, "wal_005", temporary), "half");
  // A link is what no account may look at, not even root.
  await symlink(root, join(directory, "lost+found"));
  expect(await Array.fromAsync(store.listUnfinishedUploads("wal_005/"))).toHaveLength(1);
  expect(await Array.fromAsync(store.listUnfinishedUploads("wal_005/A"))).toEqual([]);
  expect((await store.listLevel("wal")).folders).toEqual(["wal_005/"]);
  await symlink(root, join(directory, "wal_005/B.zst"));
  expect((await Array.fromAsync(store.list("wal_005/A"))).map(({ key }) => key)).toEqual(["wal_005/A.zst"]);
  expect((await store.listLevel("wal_005/A")).objects).toHaveLength(1);
  expect(await failure(() => Array.fromAsync(store.list("wal_005/")))).toBeInstanceOf(StorageError);
});

test("a list that begins behind a key goes into directories of which the name alone is before it", async () => {
  const { store } = await setUp();
  for (const key of ["a/1/x", "a/1-", "a/1/y", "a/2/x", "a/0"]) await store.putIfAbsent(key, text("x"));
  const behind = async (after: string) => (await Array.fromAsync(store.list("a/", after))).map(({ key }) => key);
  expect(await behind("a/0")).toEqual(["a/1-", "a/1/x", "a/1/y", "a/2/x"]);
  expect(await behind("a/1-")).toEqual(["a/1/x", "a/1/y", "a/2/x"]);
  expect(await behind("a/1/x")).toEqual(["a/1/y", "a/2/x"]);
});

test("what another program put in place under the name is kept, even while an upload runs", async () => {
  const { directory, store } = await setUp();
  await using upload = store.upload("a");
  await upload.write(text("ours"));
  await writeFile(join(directory, "theirs"), "theirs");
  await link(join(directory, "theirs"), join(directory, "a"));
  expect(await upload.complete()).toBe("exists");
  expect(await readFile(join(directory, "a"), "utf8")).toBe("theirs");
});

test("a file that cannot be made is a StorageError that says why, and leaves nothing behind", async () => {
  const { store } = await setUp();
  // The temporary name is longer than any file system takes.
  const error = await failure(() => store.putIfAbsent("x".repeat(250), text("x")));
  expect(error).toBeInstanceOf(StorageError);
  expect(error.detail).toContain("ENAMETOOLONG");
  expect(await Array.fromAsync(store.listUnfinishedUploads(""))).toEqual([]);
});

test("a stop ends what is under way with its reason, and leaves nothing behind", async () => {
  const stopping = new AbortController();
  const { directory, store } = await setUp(stopping.signal);
  const reason = new Error("stopped");
  const attempt = async () => {
    await using upload = store.upload("a");
    await upload.write(text("x"));
    stopping.abort(reason);
    await upload.complete();
  };
  expect(await attempt().catch((error) => error)).toBe(reason);
  expect(await readdir(directory)).toEqual([]);
  expect(await store.get("a", 1).catch((error) => error)).toBe(reason);
});

test("a missing file below an existing root is proved to be missing", async () => {
  const { store } = await setUp();
  expect(await failure(() => store.get("wal_005/none", 1))).toBeInstanceOf(NotFoundError);
});
