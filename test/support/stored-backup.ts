/** A repository without a server: complete backups of small files, and WAL, written by the program's own words. */
import type { Zstd } from "../../src/codec/zstd.ts";
import { BackupManifestWriter } from "../../src/postgres/backup-manifest.ts";
import { asLsn } from "../../src/postgres/lsn.ts";
import { parseWalFile, type SegmentSize, segmentNamed, segmentNumber } from "../../src/postgres/wal-segment.ts";
import { beginBackupUpload } from "../../src/repository/backup-upload.ts";
import { FilesMetadataWriter } from "../../src/repository/files-metadata.ts";
import { backupNameOf } from "../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../src/repository/overwrite-proof.ts";
import { openWalArchive } from "../../src/repository/wal-archive.ts";
import type { ObjectStore } from "../../src/storage/object-store.ts";
import { openS3Store } from "../../src/storage/s3.ts";
import { recordingLog } from "./expect-log.ts";
import type { TestRepository } from "./repositories.ts";
import type { S3Server } from "./s3-server.ts";
import { historyContent, MiB, SYSTEM_IDENTIFIER, sourceOf, type WalContentOptions, walContent } from "./wal-content.ts";

/** A repository's store, for the program's own words, with every right and past any proxy. */
export async function storeOf(server: S3Server, { env }: TestRepository): Promise<ObjectStore> {
  const [, bucket = "", prefix = ""] = /^s3:\/\/([^/]+)\/(.*)$/.exec(env["WALE_S3_PREFIX"] ?? "") ?? [];
  const { endpoint, region, accessKeyId, secretAccessKey } = server;
  const where = { bucket, prefix, endpoint, region, accessKeyId, secretAccessKey, forcePathStyle: true };
  const { signal } = new AbortController();
  return await openS3Store({ ...where, retryDeadlineMs: 60_000, signal, log: recordingLog().log });
}

export interface StoredBackup {
  /** It starts in this segment; segments have 1 MiB. */
  readonly startSegment: string;
  /** How many segments behind that it stops. */
  readonly segments?: number;
  /** Part → path → content; pg_control has a part of its own. */
  readonly parts: Readonly<Record<string, Readonly<Record<string, Uint8Array>>>>;
  readonly finishedAt?: Date;
  readonly systemIdentifier?: bigint;
}

/** @returns the name of the backup */
export async function putBackup(
  store: ObjectStore,
  zstd: Zstd,
  {
    startSegment,
    segments = 1,
    parts,
    finishedAt = new Date(1000),
    systemIdentifier = SYSTEM_IDENTIFIER,
  }: StoredBackup,
): Promise<string> {
  const name = backupNameOf(startSegment);
  const segmentSize = MiB as SegmentSize;
  const position = segmentNamed(startSegment);
  const start = segmentNumber(position, segmentSize) * BigInt(MiB);
  const [startLsn, stopLsn] = [asLsn(start + 0x28n), asLsn(start + BigInt(segments * MiB) + 0x100n)];

  const claim = { hostname: "host", processId: 1, startedAt: new Date(0), version: "0.1.0" };
  const context = { store, zstd, proof: NO_PROOF_NEEDED, log: recordingLog().log };
  await using upload = await beginBackupUpload(name, claim, context);
  const [manifest, filesMetadata] = [new BackupManifestWriter(), new FilesMetadataWriter()];
  const modifiedAt = new Date(0);
  let [uncompressedBytes, compressedBytes] = [0, 0];
  for (const [part, files] of Object.entries(parts)) {
    const size = await upload.putPart(part, async (tar) => {
      for (const [path, content] of Object.entries(files)) {
        const sizeBytes = content.byteLength;
        const header = { name: `/${path}`, mode: 0o600, uid: 0, gid: 0, modifiedAt, sizeBytes };
        await tar.add({ ...header, type: "file" }, [content]);
        const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");
        manifest.add({ path, sizeBytes, modifiedAt, sha256 });
        uncompressedBytes += sizeBytes;
      }
    });
    compressedBytes += size.storedBytes;
    filesMetadata.add({ part, files: Object.keys(files).map((path) => ({ memberName: `/${path}`, modifiedAt })) });
  }
  const wal = { timeline: position.timeline, startLsn, endLsn: stopLsn };
  const text = manifest.finish({ major: 18, systemIdentifier, wal });
  await upload.putManifest(text);
  await upload.putFilesMetadata(filesMetadata.finish());
  await upload.publish({
    ...{ startLsn, stopLsn, segmentSize, uncompressedBytes, compressedBytes, finishedAt },
    systemIdentifier,
    pgVersion: 180004,
    timeline: position.timeline,
    startedAt: new Date(0),
    hostname: "host",
    dataDirectory: "/data",
    isPermanent: false,
    tablespaces: [],
    walB: {
      version: "0.1.0",
      parts: Object.keys(parts).length,
      manifestSha256: new Bun.CryptoHasher("sha256").update(text).digest("hex"),
    },
  });
  return name;
}

/** Archives segments, by their names, and histories: "00000002.history=1\t0/750000\treason". */
export async function putWal(
  store: ObjectStore,
  zstd: Zstd,
  names: readonly string[],
  options: WalContentOptions = {},
): Promise<void> {
  const archive = openWalArchive(store, async () => zstd);
  for (const each of names) {
    const [name = "", text] = each.split("=");
    const file = parseWalFile(name);
    if (file === undefined) throw new Error(`"${name}" is no WAL file`);
    const content = text === undefined ? walContent(name, options) : historyContent(`${text}\n`);
    await archive.putIfAbsent(await archive.prepare(file, sourceOf(content)));
  }
}
