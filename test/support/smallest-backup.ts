/** The smallest backup that there is: one empty part, published. */
import { openZstd } from "../../src/codec/zstd.ts";
import { asLsn } from "../../src/postgres/lsn.ts";
import { type BackupUpload, beginBackupUpload } from "../../src/repository/backup-upload.ts";
import { backupKeys, partName } from "../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../src/repository/overwrite-proof.ts";
import type { Sentinel } from "../../src/repository/sentinel.ts";
import type { ObjectStore } from "../../src/storage/object-store.ts";
import { recordedLog } from "../unit/postgres/recorded-log.ts";

export const NAME = "base_000000010000000000000004";
export const KEYS = backupKeys(NAME);
export const CLAIM = { hostname: "host", processId: 1, startedAt: new Date(0), version: "0.1.0" };
export const SENTINEL: Sentinel = {
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
export const zstd = await openZstd(3);

/** A whole backup of one part. */
export async function upload(store: ObjectStore, { log } = recordedLog()): Promise<void> {
  await using backup = await beginUpload(store, log);
  await backup.publish(SENTINEL);
}

/** The same before it is published. */
export async function beginUpload(store: ObjectStore, log = recordedLog().log): Promise<BackupUpload> {
  await using begun = new AsyncDisposableStack();
  const backup = begun.use(await beginBackupUpload(NAME, CLAIM, { store, zstd, proof: NO_PROOF_NEEDED, log }));
  await backup.putPart(partName(1), async () => {});
  await backup.putManifest("manifest");
  await backup.putFilesMetadata(new TextEncoder().encode("{}"));
  begun.move();
  return backup;
}
