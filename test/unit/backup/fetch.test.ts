/** What backup-fetch finds out of a backup before it makes the target. */
import { describe, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { fetchBackup } from "../../../src/backup/fetch.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { backupKeys, partKey } from "../../../src/repository/keys.ts";
import { NO_PROGRESS } from "../../../src/system/progress.ts";
import { readGolden } from "../../support/golden.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

const zstd = await openZstd(3);

describe("fetchBackup() of a backup that WAL-G made", () => {
  const name = "base_0000000200000016000000BA";

  test.each(["lz4", "br", "lzma", "zst.gpg"])("with parts that end in .%s is refused by name", async (suffix) => {
    await using around = await temporaryDirectory();
    const store = new MemoryObjectStore();
    const { sentinel, filesMetadata } = backupKeys(name);
    const part = `part_001.tar.${suffix}`;
    await store.putIfAbsent(sentinel, readGolden("test/golden/wal-g-3.0-sentinel.json"));
    await store.putIfAbsent(filesMetadata, Buffer.from(JSON.stringify({ TarFileSets: { [part]: ["/PG_VERSION"] } })));
    await store.putIfAbsent(partKey(name, part), Buffer.from("?"));
    const fetching = fetchBackup(name, join(around.path, "main"), {
      store,
      zstd,
      partsAtOnce: 2,
      tablespaces: { kind: "inside" },
      interrupted: undefined,
      log: recordedLog().log,
      startProgress: NO_PROGRESS,
      now: () => new Date(0),
      signal: new AbortController().signal,
    });
    await expect(fetching).rejects.toMatchObject({
      exitCode: 65,
      message: `backup "${name}" is in a format that is not supported`,
      detail: `It has memory://test/${partKey(name, part)}; only parts that end in ".zst" can be read.`,
      hint: "Restore it with the tool that made it, or restore another backup.",
    });
    expect(await readdir(around.path)).toEqual([]);
  });
});
