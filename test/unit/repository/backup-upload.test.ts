import { expect, test } from "bun:test";
import { decodeContent } from "../../../src/codec/content.ts";
import { readTar, type TarHeader } from "../../../src/codec/tar.ts";
import { beginBackupUpload } from "../../../src/repository/backup-upload.ts";
import { partName } from "../../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../../src/repository/overwrite-proof.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { CLAIM, KEYS, NAME, upload, zstd } from "../../support/smallest-backup.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

const header = (name: string, sizeBytes: number): TarHeader => ({
  name,
  type: "file",
  sizeBytes,
  mode: 0o600,
  uid: 0,
  gid: 0,
  modifiedAt: new Date(0),
});

test("the claim is written first and the sentinel last", async () => {
  const store = new FaultStore(new MemoryObjectStore());
  await upload(store);
  const written = store.calls.filter((call) => /^(putIfAbsent|upload\.complete) /.test(call));
  expect(written.map((call) => call.slice(call.indexOf(" ") + 1))).toEqual([
    KEYS.claim,
    `basebackups_005/${NAME}/tar_partitions/part_001.tar.zst`,
    KEYS.manifest,
    KEYS.filesMetadata,
    KEYS.metadata,
    KEYS.sentinel,
  ]);
});

test("a second backup of one name is refused, begun or complete, and takes nothing back of the first", async () => {
  const store = new MemoryObjectStore();
  const context = { store, zstd, proof: NO_PROOF_NEEDED, log: recordedLog().log };
  {
    await using _first = await beginBackupUpload(NAME, CLAIM, context);
    await expect(beginBackupUpload(NAME, CLAIM, context)).rejects.toThrow("has been begun already");
    expect(store.keys).toEqual([KEYS.claim]);
  }
  await upload(store);
  const { keys } = store;
  await expect(beginBackupUpload(NAME, CLAIM, context)).rejects.toThrow(`there is a backup "${NAME}" already`);
  expect(store.keys).toEqual(keys);
});

test("a part is a tar archive of what was added, and its size is told", async () => {
  const store = new MemoryObjectStore();
  await using backup = await beginBackupUpload(NAME, CLAIM, {
    store,
    zstd,
    proof: NO_PROOF_NEEDED,
    log: recordedLog().log,
  });
  const size = await backup.putPart(partName(1), async (part) => {
    await part.add(header("/a", 3), [Buffer.from("abc")]);
    await part.add(header("/b", 2), [Buffer.from("de")]);
    expect(part.contentBytes).toBe(5);
  });
  const { body } = await store.get(`basebackups_005/${NAME}/tar_partitions/part_001.tar.zst`, 2 ** 20);
  const tar = await decodeContent(body, zstd, 2 ** 20);
  expect(size).toEqual({ contentBytes: tar.byteLength, storedBytes: body.byteLength });
  const names: string[] = [];
  for await (const { name } of readTar(new Blob([Buffer.from(tar)]).stream())) names.push(name);
  expect(names).toEqual(["/a", "/b"]);
});

test("a part whose content cannot be read fails with that reason, and is taken back with everything else", async () => {
  const store = new MemoryObjectStore();
  const unreadable = async function* () {
    yield Buffer.alloc(10);
    throw new Error("input/output error");
  };
  const put = async () => {
    await using backup = await beginBackupUpload(NAME, CLAIM, {
      store,
      zstd,
      proof: NO_PROOF_NEEDED,
      log: recordedLog().log,
    });
    await backup.putManifest("manifest");
    await backup.putPart(partName(1), (part) => part.add(header("/a", 20), unreadable()));
  };
  await expect(put()).rejects.toThrow("input/output error");
  expect(store.keys).toEqual([]);
  expect(await Array.fromAsync(store.listUnfinishedUploads(""))).toEqual([]);
});

test("every byte of a part waits until it may be sent", async () => {
  const asked: number[] = [];
  let [isAllowed, allow] = [Promise.resolve(), () => {}];
  const maySend = async (bytes: number) => {
    asked.push(bytes);
    await isAllowed;
  };
  const store = new FaultStore(new MemoryObjectStore());
  const context = { store, zstd, proof: NO_PROOF_NEEDED, log: recordedLog().log, maySend };
  await using backup = await beginBackupUpload(NAME, CLAIM, context);
  ({ promise: isAllowed, resolve: allow } = Promise.withResolvers<void>());
  const content = new Uint8Array(100).fill(7);
  const putting = backup.putPart(partName(1), (tar) => tar.add(header("/base/1/1", 100), [content]));
  while (asked.length === 0) await Bun.sleep(1);
  expect(store.calls.filter((call) => call.startsWith("upload.write"))).toEqual([]);
  allow();
  const { storedBytes } = await putting;
  expect(asked.reduce((sum, bytes) => sum + bytes)).toBe(storedBytes);
});
