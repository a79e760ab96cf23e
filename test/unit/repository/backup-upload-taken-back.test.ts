/** What happens to what a backup has written when a call of the store fails, whichever, or when its name is taken. */
import { expect, test } from "bun:test";
import { Failure, IntegrityError } from "../../../src/errors.ts";
import { beginBackupUpload } from "../../../src/repository/backup-upload.ts";
import { partName } from "../../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../../src/repository/overwrite-proof.ts";
import { type Fault, FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { beginUpload, CLAIM, KEYS, NAME, SENTINEL, upload, zstd } from "../../support/smallest-backup.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

async function keysOfCompleteBackup(): Promise<readonly string[]> {
  const store = new MemoryObjectStore();
  await upload(store);
  return store.keys;
}

test("a sentinel never stands without all that it stands for, whichever call of the store fails, before or after it took effect", async () => {
  const counted = new FaultStore(new MemoryObjectStore());
  await upload(counted);
  const complete = await keysOfCompleteBackup();

  for (let atCall = 1; atCall <= counted.calls.length; atCall++) {
    for (const when of ["before", "after"] as const satisfies Fault["when"][]) {
      const memory = new MemoryObjectStore();
      const { log, lines } = recordedLog();
      const faulty = new FaultStore(memory, { atCall, when });
      const failed = await upload(faulty, { log, lines }).catch((error: unknown) => error);
      expect(failed).toBeInstanceOf(Failure);
      expect({ atCall, when, keys: memory.keys }).toEqual({ atCall, when, keys: [] });
      expect(lines).toEqual([]);
    }
  }
  expect(complete).toContain(KEYS.sentinel);
});

/** Credentials that may write, and not delete. */
class NoDeletes extends FaultStore {
  override async delete(keys: readonly string[]): Promise<void> {
    throw new Error(`may not delete ${keys.length} objects`);
  }
}

test("a sentinel whose answer got lost stays with its whole backup when nothing may be deleted", async () => {
  const counted = new FaultStore(new MemoryObjectStore());
  await upload(counted);
  const memory = new MemoryObjectStore();
  const { log, lines } = recordedLog();
  const failed = upload(new NoDeletes(memory, { atCall: counted.calls.length, when: "after" }), { log, lines });
  await expect(failed).rejects.toThrow("planned fault");
  expect(memory.keys).toEqual(await keysOfCompleteBackup());
  expect(lines.join("\n")).toContain(`WARNING: could not remove the unfinished backup "${NAME}"`);
  expect(lines.join("\n")).toContain("then it is listed, and complete");
});

test("a backup of which anything was removed while it was made, or became another, is not listed, and what is left is taken back", async () => {
  const content = [`basebackups_005/${NAME}/tar_partitions/part_001.tar.zst`, KEYS.manifest, KEYS.filesMetadata];
  const gone = [KEYS.claim, ...content].map((key) => [key, "gone"] as const);
  const other = content.map((key) => [key, "other"] as const);
  for (const [key, meanwhile] of [...gone, ...other]) {
    const store = new MemoryObjectStore();
    const publish = async () => {
      await using backup = await beginUpload(store);
      await store.delete([key]);
      if (meanwhile === "other") await store.putIfAbsent(key, new Uint8Array(5));
      await backup.publish(SENTINEL);
    };
    const error = await publish().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(IntegrityError);
    expect((error as Failure).message).toBe(`somebody removed parts of backup "${NAME}" while it was made`);
    expect((error as Failure).detail).toContain("Of 5 objects, 1 are not there any more");
    expect((error as Failure).detail).toContain(key);
    expect({ key, meanwhile, keys: store.keys }).toEqual({ key, meanwhile, keys: [] });
  }
});

test("a backup that was removed while it was made takes nothing back of the one that has its name now", async () => {
  const context = { zstd, proof: NO_PROOF_NEEDED, log: recordedLog().log };
  for (const second of ["begun", "finished"] as const) {
    const store = new MemoryObjectStore();
    let keys: readonly string[] = [];
    const replaced = async () => {
      await using first = await beginBackupUpload(NAME, { ...CLAIM, processId: 2 }, { ...context, store });
      await first.putPart(partName(1), async () => {});
      await store.delete(store.keys);
      if (second === "finished") await upload(store);
      // Runs on.
      else await beginBackupUpload(NAME, CLAIM, { ...context, store });
      ({ keys } = store);
      await first.publish(SENTINEL);
    };
    await expect(replaced()).rejects.toThrow(IntegrityError);
    const left = second === "finished" ? [] : [KEYS.metadata];
    expect({ second, keys: store.keys }).toEqual({ second, keys: [...keys, ...left].toSorted() });
  }
});

test("the second of two backups that start in one segment is told that the first one exists", async () => {
  const store = new MemoryObjectStore();
  await upload(store);
  const before = store.keys;
  const error = await upload(store).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(IntegrityError);
  expect((error as Failure).message).toBe(`there is a backup "${NAME}" already`);
  expect((error as Failure).hint).toContain("On a standby, wait for the next restartpoint.");
  expect(store.keys).toEqual(before);
});

test("the second of two backups under one name is told that the first one was begun, and how to get rid of its rest", async () => {
  const store = new MemoryObjectStore();
  await using _first = await beginBackupUpload(NAME, CLAIM, {
    store,
    zstd,
    proof: NO_PROOF_NEEDED,
    log: recordedLog().log,
  });
  const error = await upload(store).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(IntegrityError);
  expect((error as Failure).message).toBe(`a backup with the name "${NAME}" has been begun already`);
  expect((error as Failure).detail).toContain(KEYS.claim);
  expect((error as Failure).hint).toContain("delete garbage --min-age 0s --confirm");
  expect(store.keys).toEqual([KEYS.claim]);
});

test("an object of another tool under the same name is neither overwritten nor removed, not even its sentinel", async () => {
  for (const key of [KEYS.sentinel, KEYS.metadata]) {
    const store = new MemoryObjectStore();
    await store.putIfAbsent(key, new TextEncoder().encode("theirs"));
    await expect(upload(store)).rejects.toThrow(`${key} exists already`);
    expect(store.keys).toEqual([key]);
    expect(new TextDecoder().decode((await store.get(key, 100)).body)).toBe("theirs");
  }
});
