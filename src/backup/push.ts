/**
 * backup-push: a base backup of a running cluster, published only when it can be restored.
 *
 * start → the WAL before it is archived → files, several parts at once → pg_control → stop → labels → every segment from
 * start to stop is archived → metadata → sentinel. On any failure the session ends, which takes the server out of backup
 * mode, and what was uploaded is taken back.
 */
import type { Zstd } from "../codec/zstd.ts";
import { PostgresError } from "../errors.ts";
import { isDoneWithArchiving } from "../postgres/archive-status.ts";
import { describeArchiver, readArchiverStatus, switchWal } from "../postgres/archiver.ts";
import { BACKUP_LABEL } from "../postgres/backup-label.ts";
import { BackupManifestWriter } from "../postgres/backup-manifest.ts";
import { checkArchiving, checkDataDirectory, checkSeesBackupStart } from "../postgres/backup-preflight.ts";
import { type BackupSession, type StoppedBackup, startBackupSession } from "../postgres/backup-session.ts";
import type { Connection } from "../postgres/connection.ts";
import { readTablespaceLinks, tablespaceVersionDirectory, walkDataDirectory } from "../postgres/data-directory.ts";
import { formatLsn } from "../postgres/lsn.ts";
import { readPgControl } from "../postgres/pg-control.ts";
import { readServerFacts } from "../postgres/server-facts.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import { segmentAt, segmentBefore, segmentNumber, type WalSegment } from "../postgres/wal-segment.ts";
import { beginBackupUpload } from "../repository/backup-upload.ts";
import { FilesMetadataWriter } from "../repository/files-metadata.ts";
import { BACKUP_LABEL_PART, backupNameOf } from "../repository/keys.ts";
import type { OverwriteProof } from "../repository/overwrite-proof.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import type { Log } from "../system/log.ts";
import type { StartProgress } from "../system/progress.ts";
import type { RateLimit } from "../system/rate-limit.ts";
import {
  fileModeOf,
  noTotals,
  type PackContext,
  type PackLimits,
  packParts,
  packPgControl,
  packSmallFiles,
  type SmallFile,
} from "./pack.ts";
import { PageVerification, pageFactsOf } from "./page-verification.ts";
import { type PushedBackup, publishBackup } from "./publish.ts";
import { inOtherFormat, type WaitForWalContext, waitForWal } from "./wait-for-wal.ts";

export interface BackupPushContext {
  readonly store: ObjectStore;
  readonly archive: WalArchive;
  readonly proof: OverwriteProof;
  readonly zstd: Zstd;
  readonly limits: PackLimits;
  readonly readRate: RateLimit;
  readonly maySend: (bytes: number) => Promise<void>;
  readonly archiveTimeoutMs: number;
  /** Whether pages are compared with their checksums. */
  readonly pages: "verify" | "skip";
  readonly permanence: "permanent" | "impermanent";
  readonly hostname: string;
  readonly processId: number;
  readonly version: string;
  readonly log: Log;
  readonly startProgress: StartProgress;
  readonly signal: AbortSignal;
  /** The backup has failed: ends what the store is still asked for, but for taking back. */
  readonly giveUp: (reason: unknown) => void;
  readonly now: () => Date;
  /** @throws IntegrityError  the repository belongs to another cluster */
  readonly checkCluster: (systemIdentifier: bigint) => Promise<void>;
}

/**
 * @param connection     used for this backup alone, and ended with it
 * @param dataDirectory  as it is seen from here
 * @throws PostgresError   the server is not in the state for a backup, or did not archive the WAL in time
 * @throws IntegrityError  the repository belongs to another cluster
 */
export async function pushBackup(
  connection: Connection,
  dataDirectory: string,
  context: BackupPushContext,
): Promise<PushedBackup> {
  const { log, now } = context;
  const startedAt = now();
  await using session = await startSession(connection, dataDirectory, context);
  const signal = AbortSignal.any([context.signal, session.lost]);
  const onLost = () => context.giveUp(session.lost.reason);
  if (session.lost.aborted) onLost();
  else session.lost.addEventListener("abort", onLost, { once: true });
  const tablespaces = await readTablespaceLinks(dataDirectory);
  const wait = waitContext(connection, session, { ...context, dataDirectory, signal });
  await waitForWalBefore(session, connection, wait);

  const claim = { hostname: context.hostname, processId: context.processId, startedAt, version: context.version };
  const name = backupNameOf(session.startSegment.name);
  await using upload = await beginBackupUpload(name, claim, context);
  log.info(`backup "${name}" started at ${formatLsn(session.startLsn)}`);

  const control = await readPgControl(dataDirectory);
  const pack: PackContext = {
    upload,
    manifest: new BackupManifestWriter(),
    filesMetadata: new FilesMetadataWriter(),
    totals: noTotals(),
    pages: new PageVerification(context.pages, control, pageFactsOf(connection, session.startLsn), log),
    readRate: context.readRate,
    startProgress: context.startProgress,
    log,
    signal,
    giveUp: context.giveUp,
  };
  const versionDirectory = tablespaceVersionDirectory(session.server.majorVersion, control.catalogVersion);
  const options = { versionDirectory, tablespaces, wal: "exclude" } as const;
  const walk = (to: Log) => walkDataDirectory(dataDirectory, { ...options, log: to });
  await packParts(walk, context.limits, pack);
  await packPgControl(dataDirectory, pack, now());

  const stopped = await session.stop();
  await packLabels(stopped, pack, { modifiedAt: now(), mode: await fileModeOf(dataDirectory) });
  const lastSegment = segmentBefore(session.timeline, stopped.stopLsn, wait.segmentSize);
  const elsewhere = await waitForWal(session.startSegment, lastSegment, wait);
  if (elsewhere) throw await archivesElsewhere(elsewhere, wait);

  const { server, startLsn, timeline } = session;
  const facts = {
    ...server,
    pgVersion: server.serverVersion,
    segmentSize: server.walSegmentSizeBytes,
    tablespaces,
    timeline,
    startLsn,
    stopLsn: stopped.stopLsn,
    startedAt,
    dataDirectory,
    holdsWal: false,
  };
  // Awaited here: leaving this function takes back what is not published.
  return await publishBackup(facts, pack, context);
}

async function startSession(
  connection: Connection,
  dataDirectory: string,
  { log, checkCluster }: BackupPushContext,
): Promise<BackupSession> {
  const label = "wal-b";
  // What is wrong is found before the server is made to write a checkpoint.
  const server = await readServerFacts(connection);
  await checkArchiving(connection, server);
  await checkDataDirectory(dataDirectory, server);
  // wal-push asks too; but a standby may have none, and where it is refused, all names that the backup needs may be taken already.
  await checkCluster(server.systemIdentifier);
  log.info("waiting for the server's checkpoint");
  const session = await startBackupSession({ connection, label, checkpoint: "fast", log });
  try {
    await checkSeesBackupStart(dataDirectory, session.startLsn);
    return session;
  } catch (error) {
    await session[Symbol.asyncDispose]();
    throw error;
  }
}

function waitContext(
  connection: Connection,
  session: BackupSession,
  context: BackupPushContext & { readonly dataDirectory: string },
): WaitForWalContext {
  const { dataDirectory, archive, archiveTimeoutMs: timeoutMs, log, signal, now } = context;
  const { role } = session.server;
  const describe = async () => {
    const status = await readArchiverStatus(connection);
    if (role === "standby" && status.archiveMode !== "always") return "On a standby, its primary archives.";
    return describeArchiver(status);
  };
  return {
    archive,
    segmentSize: session.server.walSegmentSizeBytes,
    timeoutMs,
    log,
    signal,
    now,
    archiver: role === "standby" ? "primary" : "server",
    async archiving({ name }) {
      if (role === "standby") return undefined;
      return (await isDoneWithArchiving(dataDirectory, name)) ? "done" : "waits";
    },
    describeArchiver: describe,
  };
}

/**
 * The segment before the start was filled by the start itself, so a working archive_command has it here soon. Finds a broken
 * one before hours of copying.
 *
 * Where the server says that it has archived that segment, but the repository has not: it may have been deleted since, on a
 * server where nothing was written. Then the first segment of the backup decides, which is ended early for that.
 */
async function waitForWalBefore(
  session: BackupSession,
  connection: Connection,
  wait: WaitForWalContext,
): Promise<void> {
  const size = wait.segmentSize;
  const number = segmentNumber(session.startSegment, size);
  if (session.server.role === "standby" || number === 0n) return;
  const before = segmentAt(session.timeline, number - 1n, size);

  if ((await waitForWal(before, before, wait)) === undefined) return;
  await switchWal(connection);
  const elsewhere = await waitForWal(session.startSegment, session.startSegment, wait);
  if (elsewhere) throw await archivesElsewhere(elsewhere, wait);
}

async function archivesElsewhere(segment: WalSegment, { archive }: WaitForWalContext): Promise<PostgresError> {
  const elsewhere = new PostgresError("the server archives WAL, but not to this repository", {
    detail: `The server says that it has archived "${segment.name}"; there is no ${archive.urlOf(segment.name)}.`,
    hint: "Compare the prefix in archive_command with the one used here.",
  });
  return (await inOtherFormat(segment, archive)) ?? elsewhere;
}

/** The labels as the server returned them, byte for byte; WAL-G's names for them have no slash. */
async function packLabels(
  { backupLabel, tablespaceMap }: StoppedBackup,
  pack: PackContext,
  as: Pick<SmallFile, "modifiedAt" | "mode">,
): Promise<void> {
  const files = [
    { path: BACKUP_LABEL, memberName: BACKUP_LABEL, content: backupLabel, ...as },
    { path: TABLESPACE_MAP, memberName: TABLESPACE_MAP, content: tablespaceMap, ...as },
  ];
  // An empty tablespace_map stands for none.
  await packSmallFiles(
    BACKUP_LABEL_PART,
    files.filter(({ content }) => content.byteLength > 0),
    pack,
  );
}
