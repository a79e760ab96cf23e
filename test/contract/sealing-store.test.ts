/** A store may seal what it is given: the promises hold, and nothing else in the program has to know. */
import { expect, test } from "bun:test";
import { verifyBackups } from "../../src/backup/verify.ts";
import { openZstd } from "../../src/codec/zstd.ts";
import { openWalArchive } from "../../src/repository/wal-archive.ts";
import { NO_PROGRESS } from "../../src/system/progress.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { isSealed, SealingStore } from "../support/sealing-store.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { walContent } from "../support/wal-content.ts";
import { objectStoreContract } from "./object-store.contract.ts";

const SECRET = new Uint8Array(32).fill(7);
const ZSTD_MAGIC = Buffer.from([0x28, 0xb5, 0x2f, 0xfd]);
const [FIRST, SECOND] = ["000000010000000000000004", "000000010000000000000005"];

objectStoreContract({
  name: "sealed, in memory",
  metadata: "kept",
  showsUploadAfterBytes: 0,
  open: async () => new SealingStore(new MemoryObjectStore(), SECRET),
});

test("backups and WAL go through a store that seals content, and come back; what is kept tells nothing of it", async () => {
  const zstd = await openZstd(3);
  const kept = new MemoryObjectStore();
  const store = new SealingStore(kept, SECRET);
  const parts = {
    "part_001.tar.zst": { "base/1/1259": walContent(FIRST, { fill: 3 }), PG_VERSION: Buffer.from("18\n") },
    "pg_control.tar.zst": { "global/pg_control": new Uint8Array(8192).fill(1) },
  };
  await putBackup(store, zstd, { startSegment: FIRST, parts });
  await putWal(store, zstd, [FIRST, SECOND]);

  const context = {
    store,
    zstd,
    archive: openWalArchive(store, async () => zstd),
    atOnce: 2,
    gapPauseMs: 1,
    startProgress: NO_PROGRESS,
    now: () => new Date(0),
    signal: new AbortController().signal,
  };
  const { backups } = await verifyBackups({ backups: { all: true }, walToEnd: "each" }, context);
  expect(backups).toMatchObject([{ findings: [], parts: { files: 3 }, wal: [{ segments: 2 }] }]);

  const content = kept.keys.filter(isSealed);
  expect(content.length).toBeGreaterThanOrEqual(5);
  for (const key of content) {
    const { body } = await kept.get(key, 2 ** 21);
    expect(Buffer.from(body).indexOf(ZSTD_MAGIC), key).toBe(-1);
  }
});
