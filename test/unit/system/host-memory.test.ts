import { expect, test } from "bun:test";
import { chmod, mkdir, readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { openHostMemory } from "../../../src/system/host-memory.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

const userId = process.geteuid?.() ?? 0;

test("openHostMemory() recalls what it was told, by any process of the same account", async () => {
  await using directory = await temporaryDirectory();
  expect(await openHostMemory(directory.path, userId).recall("whose?")).toBeUndefined();
  await openHostMemory(directory.path, userId).remember("whose?", "7");
  await openHostMemory(directory.path, userId).remember("another?", "8");
  expect(await openHostMemory(directory.path, userId).recall("whose?")).toBe("7");
});

test("openHostMemory() believes no directory that others could write, and no link", async () => {
  await using directory = await temporaryDirectory();
  const memory = openHostMemory(directory.path, userId);
  await memory.remember("whose?", "7");
  await chmod(join(directory.path, `wal-b-${userId}`), 0o770);
  expect(await memory.recall("whose?")).toBeUndefined();

  await using other = await temporaryDirectory();
  await symlink(join(directory.path), join(other.path, `wal-b-${userId}`));
  await openHostMemory(other.path, userId).remember("whose?", "7");
  expect(await readdir(directory.path)).toEqual([`wal-b-${userId}`]);

  await mkdir(join(other.path, `wal-b-${userId + 1}`));
  expect(await openHostMemory(other.path, userId + 1).recall("whose?")).toBeUndefined();
});

test("openHostMemory() takes a failure to remember for forgetting", async () => {
  const memory = openHostMemory("/proc/not there", userId);
  await memory.remember("whose?", "7");
  expect(await memory.recall("whose?")).toBeUndefined();
});
