/** Which zstd compresses: the addon becomes a file in the temporary directory, Bun's own does not. */
import { expect, test } from "bun:test";
import { mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { runWalb } from "../support/walb.ts";

const SEGMENTS = ["000000010000000000000001", "000000010000000000000002"] as const;

test.each([
  ["1, the initial one", undefined, 0],
  ["2", "2", 0],
  ["3", "3", 1],
])("at level %s, so many addons are in the temporary directory: %p, %d", async (_, level, addons) => {
  await using directory = await temporaryDirectory();
  const [repository, temporary] = ["repository", "tmp"].map((name) => join(directory.path, name)) as [string, string];
  for (const path of [repository, temporary]) await mkdir(path);
  const store = await openDirectoryStore({ directory: repository, signal: new AbortController().signal });
  const zstd = await openZstd(1);
  await putBackup(store, zstd, {
    startSegment: SEGMENTS[0],
    parts: { "part_001.tar.zst": { "global/pg_control": Buffer.alloc(8192) } },
  });
  await putWal(store, zstd, SEGMENTS);

  const env = { WALB_FILE_PREFIX: repository, TMPDIR: temporary, WALB_COMPRESSION_LEVEL: level };
  const { exitCode, stderr } = await runWalb(["--terse", "verify"], { env });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  expect((await readdir(temporary)).filter((name) => name.endsWith(".node"))).toHaveLength(addons);
});
