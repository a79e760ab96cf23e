/** The end of a base backup: manifest, files metadata, and then the sentinel, which makes it exist. */
import { formatLsn } from "../postgres/lsn.ts";
import type { TablespaceLink } from "../postgres/tablespace-map.ts";
import type { Sentinel } from "../repository/sentinel.ts";
import type { Log } from "../system/log.ts";
import { formatBytes } from "../system/quantity.ts";
import type { PackContext } from "./pack.ts";
import type { DamagedFile } from "./page-verification.ts";

/** What the server, or pg_control of a stopped one, says of the backup. */
export interface BackupFacts
  extends Pick<
    Sentinel,
    | "startLsn"
    | "stopLsn"
    | "systemIdentifier"
    | "pgVersion"
    | "timeline"
    | "segmentSize"
    | "startedAt"
    | "dataDirectory"
  > {
  readonly tablespaces: readonly TablespaceLink[];
  readonly majorVersion: number;
  /** The WAL from start to stop is among the files. */
  readonly holdsWal: boolean;
}

export interface PublishContext {
  readonly permanence: "permanent" | "impermanent";
  readonly hostname: string;
  readonly version: string;
  readonly log: Log;
  readonly now: () => Date;
}

export interface PushedBackup {
  readonly name: string;
  readonly sentinel: Sentinel;
  readonly damagedFiles: readonly DamagedFile[];
}

export async function publishBackup(
  facts: BackupFacts,
  { upload, manifest, filesMetadata, totals, pages }: PackContext,
  context: PublishContext,
): Promise<PushedBackup> {
  const { majorVersion, startLsn, stopLsn, systemIdentifier, timeline } = facts;
  const manifestText = manifest.finish({
    major: majorVersion,
    systemIdentifier,
    wal: { timeline, startLsn, endLsn: stopLsn },
  });
  await upload.putManifest(manifestText);
  await upload.putFilesMetadata(filesMetadata.finish());

  const sentinel: Sentinel = {
    startLsn,
    stopLsn,
    systemIdentifier,
    pgVersion: facts.pgVersion,
    timeline,
    segmentSize: facts.segmentSize,
    startedAt: facts.startedAt,
    finishedAt: context.now(),
    hostname: context.hostname,
    dataDirectory: facts.dataDirectory,
    uncompressedBytes: totals.contentBytes,
    compressedBytes: totals.storedBytes,
    isPermanent: context.permanence === "permanent",
    tablespaces: facts.tablespaces.map(({ oid, location }) => ({ oid: String(oid), location })),
    walB: {
      version: context.version,
      parts: totals.objects,
      manifestSha256: new Bun.CryptoHasher("sha256").update(manifestText).digest("hex"),
      holdsWal: facts.holdsWal,
      pages: pages.found,
    },
  };
  await upload.publish(sentinel);
  context.log.info(
    `backup "${upload.name}" finished at ${formatLsn(stopLsn)}: ${totals.files} files, ${formatBytes(totals.contentBytes)}, stored as ${formatBytes(totals.storedBytes)}`,
  );
  return { name: upload.name, sentinel, damagedFiles: pages.damagedFiles };
}
