/**
 * backup-push --while-offline: a base backup of a cluster that is shut down.
 *
 * A clean shutdown is its own consistent point. The segment with the shutdown's checkpoint is not finished, so it is in no
 * archive and must not be: it goes into the backup, and a restored directory starts with or without an archive.
 */
import { PostgresError } from "../errors.ts";
import { BackupManifestWriter } from "../postgres/backup-manifest.ts";
import { readTablespaceLinks, tablespaceVersionDirectory, walkDataDirectory } from "../postgres/data-directory.ts";
import type { DataEntry } from "../postgres/data-entry.ts";
import type { Lsn } from "../postgres/lsn.ts";
import { readOfflineState, refuseRunningServer } from "../postgres/offline-state.ts";
import type { PgControl } from "../postgres/pg-control.ts";
import {
  isSegmentSize,
  parseWalFile,
  type SegmentSize,
  segmentHolding,
  segmentNumber,
} from "../postgres/wal-segment.ts";
import { beginBackupUpload } from "../repository/backup-upload.ts";
import { FilesMetadataWriter } from "../repository/files-metadata.ts";
import { backupNameOf } from "../repository/keys.ts";
import type { Log } from "../system/log.ts";
import { noTotals, type PackContext, packParts, packPgControl } from "./pack.ts";
import { PAGE_FACTS_OFFLINE, PageVerification } from "./page-verification.ts";
import { type PushedBackup, publishBackup } from "./publish.ts";
import type { BackupPushContext } from "./push.ts";

/**
 * @throws PostgresError   a server runs in the directory, or was not shut down cleanly
 * @throws IntegrityError  the repository belongs to another cluster
 */
export async function pushOfflineBackup(dataDirectory: string, context: BackupPushContext): Promise<PushedBackup> {
  const { log, now, signal } = context;
  const startedAt = now();
  const { control, majorVersion } = await readOfflineState(dataDirectory);
  await context.checkCluster(control.systemIdentifier);
  const size = segmentSizeOf(control);
  const name = backupNameOf(segmentHolding(control.timeline, control.redoLsn, size).name);

  const claim = { hostname: context.hostname, processId: context.processId, startedAt, version: context.version };
  await using upload = await beginBackupUpload(name, claim, context);
  log.info(`backup "${name}" of the stopped cluster in "${dataDirectory}" started`);

  const pack: PackContext = {
    upload,
    manifest: new BackupManifestWriter(),
    filesMetadata: new FilesMetadataWriter(),
    totals: noTotals(),
    pages: new PageVerification(context.pages, control, PAGE_FACTS_OFFLINE, log),
    readRate: context.readRate,
    startProgress: context.startProgress,
    log,
    signal,
    giveUp: context.giveUp,
  };
  const tablespaces = await readTablespaceLinks(dataDirectory);
  const versionDirectory = tablespaceVersionDirectory(majorVersion, control.catalogVersion);
  const options = { versionDirectory, tablespaces, wal: "include" } as const;
  const needed = async function* (to: Log) {
    for await (const entry of walkDataDirectory(dataDirectory, { ...options, log: to })) {
      if (isNeeded(entry, control, size)) yield entry;
    }
  };
  await packParts(needed, context.limits, pack);
  await packPgControl(dataDirectory, pack, now());
  // A server that was started meanwhile has changed files under our hands.
  refuseRunningServer(dataDirectory);
  await refuseChanged(dataDirectory, control);

  const facts = {
    startLsn: control.redoLsn,
    stopLsn: consistentAt(control),
    systemIdentifier: control.systemIdentifier,
    pgVersion: majorVersion * 10_000,
    majorVersion,
    timeline: control.timeline,
    segmentSize: size,
    startedAt,
    dataDirectory,
    holdsWal: true,
    tablespaces,
  };
  return await publishBackup(facts, pack, context);
}

function segmentSizeOf({ walSegmentSizeBytes }: PgControl): SegmentSize {
  if (isSegmentSize(walSegmentSizeBytes)) return walSegmentSizeBytes;
  throw new PostgresError(`pg_control states a WAL segment size of ${walSegmentSizeBytes} bytes`);
}

/** A standby that was stopped has replayed, and so written to its files, more than its latest checkpoint. */
const consistentAt = ({ checkpointLsn, minRecoveryLsn }: PgControl): Lsn =>
  minRecoveryLsn > checkpointLsn ? minRecoveryLsn : checkpointLsn;

/** Of pg_wal: directories, timeline histories, and the segments from the checkpoint's redo to where the copy is consistent. */
function isNeeded({ kind, path }: DataEntry, control: PgControl, size: SegmentSize): boolean {
  if (!path.startsWith("pg_wal/") || kind !== "file") return true;
  const file = parseWalFile(path.slice("pg_wal/".length));
  if (file?.kind === "history") return true;
  if (file?.kind !== "segment") return false;
  if (file.timeline !== control.timeline && file.timeline !== control.minRecoveryTimeline) return false;
  const number = segmentNumber(file, size);
  const [first, last] = [control.redoLsn, consistentAt(control)].map((lsn) => lsn / BigInt(size));
  return first !== undefined && last !== undefined && number >= first && number <= last;
}

async function refuseChanged(dataDirectory: string, before: PgControl): Promise<void> {
  const { control } = await readOfflineState(dataDirectory);
  if (control.checkpointLsn === before.checkpointLsn) return;
  throw new PostgresError("the cluster was started during the backup", { hint: "Run the backup again." });
}
