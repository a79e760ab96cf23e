import { expect, test } from "bun:test";
import { decodeContent } from "../../../src/codec/content.ts";
import { readTar, type TarHeader } from "../../../src/codec/tar.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { beginBackupUpload } from "../../../src/repository/backup-upload.ts";
import { backupKeys, partName } from "../../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../../src/repository/overwrite-proof.ts";
import type { Sentinel } from "../../../src/repository/sentinel.ts";
import type { ObjectStore } from "../../../src/storage/object-store.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

const NAME = "base_000000010000000000000004";
const KEYS = backupKeys(NAME);
const CLAIM = { hostname: "host", processId: 1, startedAt: new Date(0), version: "0.1.0" };
const SENTINEL: Sentinel = {
  startLsn: asLsn(0x4000028n),
  stopLsn: asLsn(0x4000100n),
  systemIdentifier: 7420325342344323423n,
  pgVersion: 180004,
  timeline: 1,
  segmentSize: (16 * 2 ** 20) as Sentinel["segmentSize"],
  startedAt: new Date(0),
  finishedAt: new Date(1000),
  hostname: "host",
  dataDirectory: "/data",
  uncompressedBytes: 3,
  compressedBytes: 100,
  isPermanent: false,
  tablespaces: [],
  walB: { version: "0.1.0", parts: 1, manifestSha256: "0".repeat(64) },
};
const zstd = await openZstd(3);

/** A whole backup of one part. */
async function upload(store: ObjectStore, { log } = recordedLog()): Promise<void> {
  await using backup = await beginBackupUpload(NAME, CLAIM, { store, zstd, proof: NO_PROOF_NEEDED, log });
  await backup.putPart(partName(1), async () => {});
  await backup.putManifest("manifest");
  await backup.putFilesMetadata(new TextEncoder().encode("{}"));
  await backup.publish(SENTINEL);
}

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
