/** What a power failure must not undo: every file and directory of a restore is on the disk before pg_control has its name. */
import { expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { PG_CONTROL_UNTIL_COMPLETE } from "../../src/backup/unpack.ts";
import { pushBackup, temporaryRepository } from "../support/backups.ts";
import { startSmallCluster } from "../support/small-cluster.ts";
import { runWatched } from "../support/system-calls.ts";
import { walbBinary } from "../support/walb.ts";

/** Large enough for a file that is synced when it is written (unpack.ts); the others are synced at the end. */
const TABLE_KIB = 6000;

test("every file and directory, and each directory around them that was made, is synced before pg_control gets its name", async () => {
  await using repository = await temporaryRepository();
  await using server = await startSmallCluster(TABLE_KIB, repository.env);
  await pushBackup(server, repository.env);
  const around = [server.directory, join(server.directory, "made"), join(server.directory, "made/too")];
  const target = join(server.directory, "made/too/restored");
  const command = [await walbBinary(server.account), "backup-fetch", target, "LATEST", "--blind-restore"];
  const options = { env: { ...server.env, ...repository.env }, cwd: server.directory, as: server.account };
  const { exitCode, stderr, calls } = await runWatched(command, options);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });

  const named = calls.findIndex((call) => call.startsWith("rename(") && call.includes("/global/pg_control"));
  expect(named).toBeGreaterThan(0);
  const synced = new Set(calls.slice(0, named).map((call) => /f(?:data)?sync\(\d+<(.*?)>/.exec(call)?.[1]));
  const below = await readdir(target, { recursive: true, withFileTypes: true });
  const restored = below
    .filter((entry) => !entry.isSymbolicLink())
    .map(({ parentPath, name }) => join(parentPath, name))
    // What a link leads to is here under its own path, below tablespaces/.
    .filter((path) => !path.startsWith(join(target, "pg_tblspc/")))
    .map((path) => (path.endsWith("/global/pg_control") ? join(target, PG_CONTROL_UNTIL_COMPLETE) : path));
  expect(restored.length).toBeGreaterThan(300);
  expect([...around, target, ...restored].filter((path) => !synced.has(path))).toEqual([]);
}, 180_000);
