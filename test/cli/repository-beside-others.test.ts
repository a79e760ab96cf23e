/**
 * A repository in a directory that holds something else as well: at the root of a file system that is a lost+found, which only root
 * may read. It is nobody's business, and what is ours is found as if it were not there.
 */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdir, rename, rmdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, ordinaryAccount } from "../support/account.ts";
import { Site } from "../support/site.ts";

const [A, B] = ["000000010000000000000001", "000000010000000000000002"] as const;
const FETCH = ["wal-fetch", B, "pg_wal/RECOVERYXLOG"];
const GARBAGE = ["delete", "garbage", "--min-age", "0s", "--confirm"];
const TEMPORARY = ".wal-b.0b9e8f4e-6c1f-4a07-9a0b-3f8a3c5a7d11";

let site: Site;
beforeEach(async () => {
  site = await Site.create(ordinaryAccount());
  await site.segment(A);
  await site.write("recovery.signal");
  expect(await site.walb(["wal-push", `pg_wal/${A}`])).toMatchObject({ exitCode: 0 });
});
afterEach(async () => {
  // An ordinary user cannot remove what it may not read together with what is around it. Not chmod(), which follows a link.
  await rmdir(join(site.repository, "lost+found")).catch(() => {});
  await site[Symbol.asyncDispose]();
});

test.each([
  ["a directory that may not be read", (path: string) => mkdir(path, { mode: 0o000 })],
  ["a symbolic link", (path: string) => symlink(site.data, path)],
  [
    "a directory with a symbolic link in it",
    async (path: string) => {
      await mkdir(path);
      await symlink(site.data, join(path, "link"));
    },
  ],
])("beside %s, recovery ends where the archive ends, and garbage is removed", async (_, make) => {
  await make(join(site.repository, "lost+found"));
  const left = await site.store(`${TEMPORARY}.${B}.zst`, new Uint8Array(1));
  expect(await site.walb(FETCH)).toMatchObject({ exitCode: 74 });
  expect(await site.walb(GARBAGE)).toMatchObject({ exitCode: 0 });
  expect(await Bun.file(left).exists()).toBe(false);
});

test("beside a temporary file that is not below our directories, garbage is only what is", async () => {
  const theirs = join(site.repository, "other");
  await mkdir(theirs);
  await giveTo(site.account, theirs);
  await writeFile(join(theirs, `${TEMPORARY}.${A}.zst`), "half");
  expect(await site.walb(GARBAGE)).toMatchObject({ exitCode: 0 });
  expect(await Bun.file(join(theirs, `${TEMPORARY}.${A}.zst`)).exists()).toBe(true);
});

test("a link in place of our own directory proves nothing: nothing may be mounted where it leads", async () => {
  await rename(site.archive, join(site.directory, "elsewhere"));
  await symlink(join(site.directory, "elsewhere"), site.archive);
  expect(await site.walb(FETCH)).toMatchObject({
    exitCode: 200,
    stdout: "",
    stderr: `wal-b: ERROR: could not look into "${site.archive}"
  DETAIL: It is a symbolic link.
  HINT: Use a bind mount in its place, or make the link the repository itself.\n`,
  });
});
