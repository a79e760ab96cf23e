/** No lock-in: `zstd -d | tar -x` on every part, by hand as docs/repository.md has it, gives what backup-fetch gives. */
import { beforeAll, expect, test } from "bun:test";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { fetchBackup, pushBackup, temporaryRepository } from "../support/backups.ts";
import { runProgram } from "../support/run-program.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import { ensureProgram } from "../support/system-packages.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const BY_HAND = 'for part in "$1"/*.tar.zst; do zstd -dc "$part" | tar -x -p -C "$2" || exit 1; done';

const filesBelow = async (directory: string) =>
  (await readdir(directory, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(directory.length + 1))
    .sort();

beforeAll(async () => await ensureProgram("zstd"), 10 * 60_000);

test("every part, with zstd and tar alone", async () => {
  await using repository = await temporaryRepository();
  await using server = await startSmallCluster(1000, repository.env);
  const name = await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
  const restored = join(server.directory, "restored");
  await fetchBackup(server, repository.env, { directory: restored, args: ["--blind-restore"] });

  await using scratch = await temporaryDirectory();
  const byHand = join(scratch.path, "main");
  await mkdir(byHand);
  const parts = join(repository.directory, "basebackups_005", name, "tar_partitions");
  expect((await readdir(parts)).length).toBeGreaterThan(4);
  const { exitCode, stderr } = await runProgram(["/bin/sh", "-c", BY_HAND, "sh", parts, byHand]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.stringContaining("Removing leading") });

  const manifest = JSON.parse(await readFile(join(restored, "backup_manifest"), "utf8")) as {
    readonly Files: readonly { readonly Path: string }[];
  };
  const paths = manifest.Files.map(({ Path }) => Path).sort();
  expect(paths.some((path) => path.startsWith("pg_tblspc/"))).toBe(true);
  // The map is in the parts, and a restore has the links themselves.
  expect(await filesBelow(byHand)).toEqual([...paths, "tablespace_map"].sort());
  for (const path of paths) {
    const [one, other] = await Promise.all([byHand, restored].map((directory) => readFile(join(directory, path))));
    expect({ path, isSame: one?.equals(other ?? Buffer.alloc(0)) }).toEqual({ path, isSame: true });
  }
});
