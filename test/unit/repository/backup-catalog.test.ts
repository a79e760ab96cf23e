import { expect, test } from "bun:test";
import {
  AccessError,
  IntegrityError,
  InterruptedError,
  NotFoundError,
  StorageError,
  UsageError,
} from "../../../src/errors.ts";
import { findBackup, readCatalog } from "../../../src/repository/backup-catalog.ts";
import { backupKeys } from "../../../src/repository/keys.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { readGolden } from "../../support/golden.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";

const OURS = "base_0000000200000016000000BA";
const THEIRS = "base_0000000100000016000000BA";

const sentinelName = (backup: string) => `${backup}_backup_stop_sentinel.json`;

async function repository(): Promise<MemoryObjectStore> {
  const store = new MemoryObjectStore();
  await store.putIfAbsent(backupKeys(OURS).sentinel, readGolden("test/golden/sentinel-format-1.json"));
  await store.putIfAbsent(backupKeys(OURS).metadata, readGolden("test/golden/metadata-format-1.json"));
  await store.putIfAbsent(backupKeys(THEIRS).sentinel, readGolden("test/golden/wal-g-3.0-sentinel.json"));
  return store;
}

test("readCatalog() lists ours and WAL-G's, by the time they finished", async () => {
  const { backups, unreadable } = await readCatalog(await repository());
  expect(backups.map(({ name, startSegment, isPermanent }) => [name, startSegment, isPermanent])).toEqual([
    [THEIRS, "0000000100000016000000BA", true],
    [OURS, "0000000200000016000000BA", false],
  ]);
  expect(unreadable).toEqual([]);
});

test("readCatalog() believes the metadata, where backup-mark writes, more than the sentinel", async () => {
  const store = await repository();
  await store.replace(backupKeys(OURS).metadata, Buffer.from('{"is_permanent":true}'));
  await store.replace(backupKeys(THEIRS).metadata, Buffer.from('{"is_permanent":false}'));
  expect((await readCatalog(store)).backups.map(({ isPermanent }) => isPermanent)).toEqual([false, true]);
});

test("readCatalog() tells which backups cannot be read, and lists the others", async () => {
  const store = await repository();
  const damaged = "base_000000010000000000000001";
  await store.putIfAbsent(backupKeys(damaged).sentinel, Buffer.from("{"));
  await store.delete([backupKeys(OURS).metadata]);
  const [changed, foreign] = [`${sentinelName("base_000000010000000000000003")}.bak`, sentinelName("readme")];
  const passedOver = [`${sentinelName(THEIRS)}.bak`, "README"];
  for (const name of [changed, foreign, ...passedOver])
    await store.putIfAbsent(`basebackups_005/${name}`, Buffer.from("?"));
  await store.putIfAbsent(backupKeys("base_000000010000000000000002").claim, Buffer.from("begun, not published"));
  const { backups, unreadable } = await readCatalog(store);
  expect(backups.map(({ name }) => name)).toEqual([THEIRS]);
  expect(unreadable.map(({ name, key }) => [name, key])).toEqual([
    [changed, `basebackups_005/${changed}`],
    [foreign, `basebackups_005/${foreign}`],
    [damaged, backupKeys(damaged).sentinel],
    [OURS, backupKeys(OURS).sentinel],
  ]);
  for (const { failure } of unreadable) expect(failure).toBeInstanceOf(IntegrityError);
});

test.each([
  ["a store that fails", new StorageError("time-out")],
  ["a store that refuses", new AccessError("403")],
  ["a bucket that is not there", new UsageError("404 NoSuchBucket")],
  ["a signal", new InterruptedError("SIGTERM", 15)],
  ["a bug", new TypeError("undefined is not a function")],
])("readCatalog() takes %s for no property of a backup", async (_, error) => {
  const memory = await repository();
  const counting = new FaultStore(memory);
  await readCatalog(counting);
  for (let atCall = 1; atCall <= counting.calls.length; atCall++) {
    await expect(readCatalog(new FaultStore(memory, { atCall, when: "before", error }))).rejects.toBe(error);
  }
});

test("findBackup() names a backup that is not there, whatever the name is", async () => {
  const store = await repository();
  for (const name of ["base_000000010000000000000009", "nonsense", "../../etc/passwd", ""]) {
    await expect(findBackup(store, name)).rejects.toThrow(NotFoundError);
    await expect(findBackup(store, name)).rejects.toThrow(`there is no backup "${name}"`);
  }
  expect((await findBackup(store, OURS)).name).toBe(OURS);
});
