import { describe, expect, test } from "bun:test";
import { openZstd } from "../../../src/codec/zstd.ts";
import { AccessError, IntegrityError, StorageError } from "../../../src/errors.ts";
import { parseWalFile, type WalFile } from "../../../src/postgres/wal-segment.ts";
import { backupKeys, partKey, walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import { carryOut, carryOutGarbage, deleteLeftovers } from "../../../src/retention/delete.ts";
import { keysOfBackup, readInventory, readLeftovers } from "../../../src/retention/inventory.ts";
import { planRetain } from "../../../src/retention/plan.ts";
import type { ObjectStore } from "../../../src/storage/object-store.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { readGolden } from "../../support/golden.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { historyContent, sourceOf, walContent } from "../../support/wal-content.ts";

const zstd = await openZstd(3);
const OLD = "base_0000000100000016000000BA";
const NEW = "base_0000000200000016000000BA";
const UNFINISHED = "base_0000000200000016000000C0";
const SEGMENTS = ["0000000100000016000000B9", "0000000100000016000000BA", "0000000200000016000000BB"];

const inventoryOf = (store: ObjectStore) =>
  readInventory(
    store,
    openWalArchive(store, async () => zstd),
  );

/** Two backups, the older one WAL-G's and permanent until told otherwise, WAL before and after them, and a failed backup. */
async function repository(now: () => Date = () => new Date(0)): Promise<MemoryObjectStore> {
  const store = new MemoryObjectStore({ now });
  const archive = openWalArchive(store, async () => zstd);
  await store.putIfAbsent(backupKeys(OLD).sentinel, readGolden("test/golden/wal-g-3.0-sentinel.json"));
  await store.putIfAbsent(backupKeys(OLD).metadata, Buffer.from('{"is_permanent":false}'));
  await store.putIfAbsent(backupKeys(NEW).sentinel, readGolden("test/golden/sentinel-format-1.json"));
  await store.putIfAbsent(backupKeys(NEW).metadata, readGolden("test/golden/metadata-format-1.json"));
  for (const name of [OLD, NEW, UNFINISHED]) {
    await store.putIfAbsent(backupKeys(name).claim, Buffer.from("{}"));
    await store.putIfAbsent(partKey(name, "part_001.tar.zst"), Buffer.from("part"));
  }
  for (const name of SEGMENTS)
    await archive.putIfAbsent(await archive.prepare(parseWalFile(name) as WalFile, sourceOf(walContent(name))));
  const history = historyContent("1\t16/BA915640\tno recovery target specified\n");
  await archive.putIfAbsent(await archive.prepare(parseWalFile("00000002.history") as WalFile, sourceOf(history)));
  return store;
}

describe("readInventory()", () => {
  test("reads backups, WAL and histories", async () => {
    const { backups, wal, histories } = await inventoryOf(await repository());
    expect(backups.map(({ name }) => name)).toEqual([OLD, NEW]);
    expect(wal.map(({ file }) => file?.name)).toEqual(
      [...SEGMENTS.slice(0, 2), "00000002.history", SEGMENTS[2]].toSorted(),
    );
    expect([...histories.keys()]).toEqual([2]);
  });

  test("knows a backup that runs by its folder", async () => {
    const { unfinished } = await inventoryOf(await repository());
    expect(unfinished).toMatchObject([{ name: UNFINISHED, startSegment: UNFINISHED.slice("base_".length) }]);
  });

  test("takes a folder that is listed without an object in it for nothing, as MinIO lists one whose backup was deleted", async () => {
    const store = await repository();
    const listLevel = store.listLevel.bind(store);
    store.listLevel = async (prefix) => {
      const { objects, folders } = await listLevel(prefix);
      return { objects, folders: [...folders, "basebackups_005/base_000000010000001600000001/"] };
    };
    expect((await inventoryOf(store)).unfinished.map(({ name }) => name)).toEqual([UNFINISHED]);
  });

  test.each(["before", "after"])("knows one that is published right %s the sentinels are listed", async (when) => {
    const store = await repository();
    const { sentinel } = backupKeys(NEW);
    const { body } = await store.get(sentinel, 2 ** 20);
    await store.delete([sentinel]);
    const listLevel = store.listLevel.bind(store);
    store.listLevel = async (prefix) => {
      if (when === "before") await store.putIfAbsent(sentinel, body);
      const level = await listLevel(prefix);
      await store.putIfAbsent(sentinel, body);
      return level;
    };
    const inventory = await inventoryOf(store);
    expect(inventory.backups.map(({ name }) => name)).toEqual(when === "before" ? [OLD, NEW] : [OLD]);
    expect(inventory.unfinished.map(({ name }) => name)).toEqual(when === "before" ? [UNFINISHED] : [NEW, UNFINISHED]);
  });

  test.each([
    ["a damaged sentinel", backupKeys(OLD).sentinel],
    ["a damaged mark of permanence", backupKeys(OLD).metadata],
    ["a damaged history", walKey("00000002.history")],
  ])("refuses to go on with %s: what it needs cannot be known", async (_, key) => {
    const store = await repository();
    await store.replace(key, Buffer.from("damaged"));
    await expect(inventoryOf(store)).rejects.toThrow(IntegrityError);
  });

  test("fails with the store's own failure, whichever call it is", async () => {
    const memory = await repository();
    const counting = new FaultStore(memory);
    await inventoryOf(counting);
    for (const error of [new StorageError("time-out"), new AccessError("403")]) {
      for (let atCall = 1; atCall <= counting.calls.length; atCall++) {
        for (const when of ["before", "cut"] as const) {
          // One object of a folder tells that there are some; what follows is not asked for.
          if (when === "cut" && counting.calls[atCall - 1] === `list basebackups_005/${UNFINISHED}/`) continue;
          await expect(inventoryOf(new FaultStore(memory, { atCall, when, error }))).rejects.toBe(error);
        }
      }
    }
  });
});

describe("carryOut()", () => {
  const plan = async (store: ObjectStore) => planRetain(1, await inventoryOf(store));

  test("deletes the sentinel first, then the contents with the claim last, then WAL", async () => {
    const memory = await repository();
    const store = new FaultStore(memory);
    const { log, expectLog } = recordingLog();
    await carryOut(await plan(memory), { store, log });
    const deleted = store.calls
      .filter((call) => call.startsWith("delete "))
      .map((call) => call.slice("delete ".length));
    expect(deleted).toEqual([
      backupKeys(OLD).sentinel,
      [backupKeys(OLD).metadata, partKey(OLD, "part_001.tar.zst"), backupKeys(OLD).claim].join(" "),
      walKey(SEGMENTS[0] ?? ""),
    ]);
    expect(memory.keys.filter((key) => key.includes(OLD))).toEqual([]);
    expectLog(
      `INFO: deleted the sentinel of backup "${OLD}": it is not listed any more`,
      "INFO: deleted 1 backups",
      "INFO: deleted 1 objects of the WAL archive",
    );
  });

  test("under every single fault, no backup is listed that is not whole, and running again finishes the work", async () => {
    const counting = new FaultStore(await repository());
    await carryOut(await plan(counting), { store: counting, log: recordingLog().log });
    for (let atCall = 1; atCall <= counting.calls.length; atCall++) {
      for (const when of ["before", "after"] as const) {
        const memory = await repository();
        const decided = await plan(memory);
        const before = memory.keys;
        const error = new StorageError("fault");
        await carryOut(decided, {
          store: new FaultStore(memory, { atCall, when, error }),
          log: recordingLog().log,
        }).catch((thrown: unknown) => expect(thrown).toBe(error));
        for (const name of [OLD, NEW]) {
          if (!memory.keys.includes(backupKeys(name).sentinel)) continue;
          expect(memory.keys.filter((key) => key.includes(name))).toEqual(before.filter((key) => key.includes(name)));
        }
        expect(memory.keys).toContain(backupKeys(NEW).sentinel);
        await carryOut(await plan(memory), { store: memory, log: recordingLog().log });
        expect(memory.keys).not.toContain(backupKeys(OLD).sentinel);
      }
    }
  });
});

describe("leftovers", () => {
  test("are what belongs to no complete backup, with when it was last written to", async () => {
    let clock = 1000;
    const store = await repository(() => new Date(++clock));
    const { backups } = await readLeftovers(store);
    expect(backups.map(({ name, keys, sizeBytes }) => ({ name, keys, sizeBytes }))).toEqual([
      {
        name: UNFINISHED,
        keys: [partKey(UNFINISHED, "part_001.tar.zst"), backupKeys(UNFINISHED).claim],
        sizeBytes: "part{}".length,
      },
    ]);
    expect(backups[0]?.lastWrite).toEqual((await store.head(partKey(UNFINISHED, "part_001.tar.zst"))).lastModified);
  });

  test("are removed, the claim last, and nothing else is touched", async () => {
    const store = await repository();
    const others = store.keys.filter((key) => !key.includes(UNFINISHED));
    const upload = store.upload("basebackups_005/x/tar_partitions/part_001.tar.zst");
    await upload.write(Buffer.from("begun"));
    const leftovers = await readLeftovers(store);
    expect(leftovers.uploads).toHaveLength(1);
    const { log, expectLog } = recordingLog();
    await deleteLeftovers(leftovers.backups, leftovers.uploads, { store, log });
    expect(store.keys).toEqual(others);
    expect((await readLeftovers(store)).uploads).toEqual([]);
    expectLog(
      `INFO: deleted what was left of the unfinished backup "${UNFINISHED}"`,
      "INFO: aborted 1 unfinished uploads",
    );
  });

  test("are spared when the backup was finished since they were found", async () => {
    const store = await repository();
    const { backups } = await readLeftovers(store);
    await store.putIfAbsent(backupKeys(UNFINISHED).sentinel, readGolden("test/golden/sentinel-format-1.json"));
    const { keys } = store;
    const { log, expectLog } = recordingLog();
    await deleteLeftovers(backups, [], { store, log });
    expect(store.keys).toEqual(keys);
    expectLog(`INFO: backup "${UNFINISHED}" has been finished meanwhile: it is kept`);
  });

  test("of which one was finished meanwhile leave it its WAL", async () => {
    const name = "base_0000000100000016000000B9";
    for (const isFinished of [false, true]) {
      const store = await repository();
      await store.putIfAbsent(backupKeys(name).claim, Buffer.from("{}"));
      const [inventory, leftovers] = [await inventoryOf(store), await readLeftovers(store)];
      if (isFinished) await store.putIfAbsent(backupKeys(name).sentinel, Buffer.from("a sentinel"));
      await carryOutGarbage(inventory, leftovers, { store, log: recordingLog().log });
      expect(store.keys.includes(backupKeys(name).claim)).toBe(isFinished);
      expect(store.keys.includes(walKey("0000000100000016000000B9"))).toBe(isFinished);
    }
  });

  test("stay when it cannot be known whether the backup was finished", async () => {
    const memory = await repository();
    const { backups } = await readLeftovers(memory);
    const { keys } = memory;
    const error = new StorageError("time-out");
    const store = new FaultStore(memory, { atCall: 2, when: "before", error });
    await expect(deleteLeftovers(backups, [], { store, log: recordingLog().log })).rejects.toBe(error);
    expect(store.calls.at(-1)).toBe(`head ${backupKeys(UNFINISHED).sentinel}`);
    expect(memory.keys).toEqual(keys);
  });

  test("keysOfBackup() begins with the sentinel and ends with the claim", async () => {
    const keys = await keysOfBackup(await repository(), NEW);
    expect([keys[0], keys.at(-1)]).toEqual([backupKeys(NEW).sentinel, backupKeys(NEW).claim]);
  });
});
