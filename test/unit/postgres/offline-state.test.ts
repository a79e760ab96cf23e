import { describe, expect, test } from "bun:test";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PostgresError, SourceMissingError } from "../../../src/errors.ts";
import { readOfflineState } from "../../../src/postgres/offline-state.ts";
import { controlFile } from "./control-file.ts";

describe("readOfflineState()", () => {
  test.each([1, 2])("accepts state %i: shut down, also in recovery", async (state) => {
    await using cluster = await makeCluster({ state });
    const { control, majorVersion } = await readOfflineState(cluster.path);
    expect(majorVersion).toBe(15);
    expect(control.redoLsn).toBe(0x3000028n as never);
  });

  test.each([0, 3, 4, 5, 6])("refuses state %i: a server runs or has crashed", async (state) => {
    await using cluster = await makeCluster({ state });
    await expect(readOfflineState(cluster.path)).rejects.toThrow(PostgresError);
    await expect(readOfflineState(cluster.path)).rejects.toThrow("was not shut down cleanly");
  });

  test("refuses while postmaster.pid names a running process, and not when that is gone", async () => {
    await using cluster = await makeCluster({ state: 1 });
    await writeFile(join(cluster.path, "postmaster.pid"), `${process.pid}\n`);
    await expect(readOfflineState(cluster.path)).rejects.toThrow(`a server runs in "${cluster.path}"`);
    await writeFile(join(cluster.path, "postmaster.pid"), `${2 ** 22 + 1}\n`);
    expect((await readOfflineState(cluster.path)).majorVersion).toBe(15);
  });

  test("refuses a directory without PG_VERSION, or with nonsense in it", async () => {
    await using cluster = await makeCluster({ state: 1 });
    await writeFile(join(cluster.path, "PG_VERSION"), "9.6\n");
    await expect(readOfflineState(cluster.path)).rejects.toThrow("does not hold a major version");
    await rm(join(cluster.path, "PG_VERSION"));
    await expect(readOfflineState(cluster.path)).rejects.toThrow(SourceMissingError);
  });
});

async function makeCluster({ state }: { readonly state: number }) {
  const path = await mkdtemp(join(tmpdir(), "walb-offline-"));
  await mkdir(join(path, "global"));
  await writeFile(join(path, "global/pg_control"), controlFile({ state }));
  await writeFile(join(path, "PG_VERSION"), "15\n");
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}
