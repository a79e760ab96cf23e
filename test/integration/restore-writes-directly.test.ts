/**
 * Large files of a restored directory are written past the page cache, and all the same where the file system refuses that.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { canMount, withOwnMounts } from "../support/mounts.ts";
import { putBackup } from "../support/stored-backup.ts";
import { runWatched, runWithFailingCall } from "../support/system-calls.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { walbBinary } from "../support/walb.ts";

const [LARGE, SMALL] = ["base/5/16384", "base/5/16385"] as const;
const content = {
  [LARGE]: crypto
    .getRandomValues(Buffer.alloc(65_536))
    .toString("base64")
    .repeat(200)
    .slice(0, 17 * 2 ** 20 + 13),
  [SMALL]: "small".repeat(1000),
};

let directory: TemporaryDirectory;
beforeAll(async () => {
  directory = await temporaryDirectory();
  const repository = join(directory.path, "repository");
  await mkdir(repository);
  const store = await openDirectoryStore({ directory: repository, signal: new AbortController().signal });
  await putBackup(store, await openZstd(1), {
    startSegment: "000000010000000000000001",
    parts: {
      "part_001.tar.zst": {
        "global/pg_control": Buffer.alloc(8192),
        [SMALL]: Buffer.from(content[SMALL]),
        [LARGE]: Buffer.from(content[LARGE]),
      },
    },
  });
});
afterAll(async () => await directory?.[Symbol.asyncDispose]());

/** Where root restores for itself. */
const SAID =
  process.getuid?.() === 0
    ? expect.stringMatching(
        /^wal-b: WARNING: what is restored into "[^\n]*" will belong to root\n {2}DETAIL: .*\n {2}HINT: .*\n$/,
      )
    : "";
const target = () => join(directory.path, "restored");
const command = async () => [await walbBinary(), "--terse", "backup-fetch", target(), "LATEST"];
const env = () => ({ WALB_FILE_PREFIX: join(directory.path, "repository"), TMPDIR: directory.path });

async function expectRestored(restored: string): Promise<void> {
  for (const path of [LARGE, SMALL])
    expect(content[path] === (await readFile(join(restored, path), "utf8")), path).toBe(true);
}

test("a large file is written directly but for an end that is no whole sector, a small one is not", async () => {
  await rm(target(), { recursive: true, force: true });
  const { exitCode, stderr, calls } = await runWatched(await command(), { env: env(), calls: ["openat", "pwrite64"] });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: SAID });
  const opened = (path: string) =>
    calls.filter((call) => call.includes(`"${join(target(), path)}"`) && call.includes("O_WRONLY"));
  expect(opened(LARGE).join("\n")).toContain("O_DIRECT");
  const written = calls.filter((call) => call.startsWith("pwrite64(") && call.includes(`<${join(target(), LARGE)}>`));
  const refusedAt = written.findIndex((call) => call.includes("EINVAL"));
  // tmpfs takes any piece.
  if (refusedAt >= 0) expect(written.slice(refusedAt)).toHaveLength(2);
  expect(written.filter((call) => call.endsWith(" = 2097152")).length).toBeGreaterThan(6);
  expect(opened(SMALL).length).toBeGreaterThan(0);
  expect(opened(SMALL).join("\n")).not.toContain("O_DIRECT");
  await expectRestored(target());
});

test.skipIf(!(await canMount()))(
  "a file system that has no direct writes, and does not tell how large it is, holds the same",
  async () => {
    const copied = join(directory.path, "copied");
    const script = `mount -t ramfs ramfs /mnt && ! dd if=/dev/zero of=/mnt/probe oflag=direct count=1 2>/dev/null && rm -f /mnt/probe || exit 99
    "$WALB" --terse backup-fetch /mnt/restored LATEST && cp -r /mnt/restored "$COPIED"`;
    const { exitCode, stderr } = await withOwnMounts(script, {
      env: { ...env(), WALB: await walbBinary(), COPIED: copied },
    });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: SAID });
    await expectRestored(copied);
  },
);

test("a full disk is told, and not taken for a refusal", async () => {
  await rm(target(), { recursive: true, force: true });
  const path = join(target(), LARGE);
  const call = { call: "pwrite64", error: "ENOSPC", path };
  const { exitCode, stderr } = await runWithFailingCall(await command(), call, { env: env() });
  expect(exitCode).toBe(73);
  expect(stderr).toContain(`ERROR: could not write "${path}"`);
  expect(stderr).toContain("no space left on device");
});
