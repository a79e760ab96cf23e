/** A whole repository with damage in any of its objects: what is restored is what was backed up, or nothing that starts. */
import { expect } from "bun:test";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { fetchBackup } from "../../src/backup/fetch.ts";
import { verifyBackups } from "../../src/backup/verify.ts";
import { checkReport } from "../../src/backup/verify-report.ts";
import { openZstd } from "../../src/codec/zstd.ts";
import { DestinationError, IntegrityError, NotFoundError, UsageError } from "../../src/errors.ts";
import { openWalArchive } from "../../src/repository/wal-archive.ts";
import { readInventory, readLeftovers } from "../../src/retention/inventory.ts";
import { NO_PROGRESS } from "../../src/system/progress.ts";
import { damagedBytes } from "../support/damage.ts";
import { recordingLog } from "../support/expect-log.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { answerOf, property } from "../support/property.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const zstd = await openZstd(3);
const CONTROL = "global/pg_control";
const DOCUMENTED = [IntegrityError, NotFoundError, UsageError, DestinationError];

property(
  "a backup with damage anywhere restores to what was backed up, or to nothing that starts",
  async (random) => {
    await using directory = await temporaryDirectory();
    const store = new MemoryObjectStore();
    const archive = openWalArchive(store, async () => zstd);
    const files = {
      "part_001.tar.zst": { "base/1/1259": random.bytes(random.below(20_000)), PG_VERSION: Buffer.from("18\n") },
      "part_002.tar.zst": { "base/5/2619": random.bytes(random.below(20_000)) },
      "pg_control.tar.zst": { [CONTROL]: random.bytes(8192) },
      "backup_label.tar.zst": { backup_label: Buffer.from("START WAL LOCATION") },
    };
    await putWal(store, zstd, [
      "000000010000000000000004",
      "000000010000000000000005",
      "00000002.history=1\t0/750000\tx",
    ]);
    const name = await putBackup(store, zstd, { startSegment: "000000010000000000000004", parts: files });

    for (const key of new Set(random.list(2, () => random.pick(store.keys), 1))) {
      const { body, metadata } = await store.get(key, 2 ** 30);
      if (random.once(8)) await store.delete([key]);
      else
        await store.replace(
          key,
          damagedBytes(body, random, [(await store.get(random.pick(store.keys), 2 ** 30)).body]),
          metadata,
        );
    }

    const log = recordingLog().log;
    const signal = new AbortController().signal;
    const target = join(directory.path, "target");
    const isRestored = await answerOf(DOCUMENTED, async () => {
      const tablespaces = { kind: "prepared links" } as const;
      const context = { store, zstd, partsAtOnce: 2, tablespaces, log, signal, now: () => new Date(0) };
      await fetchBackup(name, target, { ...context, interrupted: undefined, startProgress: NO_PROGRESS });
      return true;
    });
    if (isRestored) {
      for (const [path, content] of Object.values(files).flatMap((part) => Object.entries(part)))
        expect(Buffer.compare(await readFile(join(target, path)), content)).toBe(0);
    } else expect(existsSync(join(target, CONTROL))).toBe(false);

    const isVerified = await answerOf(DOCUMENTED, async () => {
      const context = { store, zstd, archive, atOnce: 2, gapPauseMs: 0, now: () => new Date(0), signal };
      const choice = { backups: name, walToEnd: "newest" } as const;
      checkReport(await verifyBackups(choice, { ...context, startProgress: NO_PROGRESS }));
      return true;
    });
    // verify says the same as a restore, and looks at WAL besides.
    if (isVerified) expect(isRestored).toBe(true);

    await answerOf(DOCUMENTED, () => readInventory(store, archive));
    await answerOf(DOCUMENTED, () => readLeftovers(store));
  },
  { oneOf: 2 },
);
