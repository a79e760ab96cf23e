/**
 * verify: reads backups and their WAL back, and writes nothing.
 *
 * choose → parts, several at once, each file against the manifest → every segment of WAL from the start of the backup to its
 * stop, or to the end of the archive → a report of all that is damaged or missing. What is wrong with one object stops
 * nothing; a failure of the store does, because it says nothing about the objects.
 */
import type { Zstd } from "../codec/zstd.ts";
import { AccessError, Failure, IntegrityError, NotFoundError, StorageError, UsageError } from "../errors.ts";
import { type Backup, readCatalog } from "../repository/backup-catalog.ts";
import { sentinelKey } from "../repository/keys.ts";
import { damagedPagesOf } from "../repository/sentinel.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { isStored, type ObjectKey, type ObjectStore } from "../storage/object-store.ts";
import { abortableDelay } from "../system/delay.ts";
import type { RunningProgress, StartProgress } from "../system/progress.ts";
import { NewestUnreadableError, selectBackup } from "./fetch.ts";
import { VerifiedSegments } from "./verified-segments.ts";
import { verifyParts } from "./verify-parts.ts";
import { findingOf, type VerifiedBackup, type VerifyReport } from "./verify-report.ts";
import { type VerifiedWal, verifyWal } from "./verify-wal.ts";

export interface VerifyContext {
  readonly store: ObjectStore;
  readonly archive: WalArchive;
  readonly zstd: Zstd;
  /** Parts, or segments, that are read side by side. */
  readonly atOnce: number;
  /** How long to wait for a gap at the end of the archive to close, a few times. */
  readonly gapPauseMs: number;
  readonly startProgress: StartProgress;
  readonly now: () => Date;
  readonly signal: AbortSignal;
}

export interface VerifyChoice {
  /** The name of a backup, "LATEST", or "all". */
  readonly backups: string | { readonly all: true };
  /** "newest": on to the end of the archive for the newest backup, and to its stop for any other. */
  readonly walToEnd: "newest" | "each";
}

/** @throws NotFoundError  there is no such backup, or none at all */
export async function verifyBackups(
  { backups, walToEnd }: VerifyChoice,
  context: VerifyContext,
): Promise<VerifyReport> {
  const { store, now } = context;
  const startedAt = now();
  const chosen = typeof backups === "string" ? await chooseOne(backups, store) : await chooseAll(store);
  const newest = walToEnd === "newest" ? await newestOf(chosen, store) : [];
  const known = new Map<string, VerifiedSegments>();
  using progress = context.startProgress("read");

  const verified: VerifiedBackup[] = [];
  let stoppedBy: Failure | undefined;
  for (const [n, each] of chosen.entries()) {
    const walReach = walToEnd === "each" || newest.includes(each.name) ? "end of the archive" : "stop of the backup";
    const title = chosen.length > 1 ? `backup ${n + 1} of ${chosen.length}, ` : "";
    try {
      verified.push(await verifyOne(each, { ...context, walReach, known, progress, title }));
    } catch (error) {
      context.signal.throwIfAborted();
      if (!(error instanceof StorageError || error instanceof AccessError)) throw error;
      stoppedBy = error;
      break;
    }
  }
  return { location: store.location, startedAt, finishedAt: now(), backups: verified, stoppedBy };
}

/** A backup, or why it cannot be one for us. */
interface Chosen {
  readonly name: string;
  /** Of its sentinel. */
  readonly key: ObjectKey;
  readonly backup: Backup | Failure;
}

async function chooseOne(name: string, store: ObjectStore): Promise<readonly Chosen[]> {
  try {
    const backup = await selectBackup(store, name);
    return [asChosen(backup)];
  } catch (failure) {
    // Of a named backup, it says what kind it is; of LATEST, that none is chosen.
    const isOfBackup = failure instanceof IntegrityError || (failure instanceof UsageError && name !== "LATEST");
    if (!isOfBackup) throw failure;
    if (failure instanceof NewestUnreadableError) return [{ ...failure.backup, backup: failure }];
    return [{ name, key: sentinelKey(name), backup: failure }];
  }
}

const asChosen = (backup: Backup): Chosen => ({ name: backup.name, key: sentinelKey(backup.name), backup });

/** Those that cannot be read, then the others, oldest first. */
async function chooseAll(store: ObjectStore): Promise<readonly Chosen[]> {
  const { backups, unreadable } = await readCatalog(store);
  if (backups.length + unreadable.length === 0)
    throw new NotFoundError("there is no backup", { detail: `Looked in ${store.location}.` });
  return [...unreadable.map((each) => ({ ...each, backup: each.failure })), ...backups.map(asChosen)];
}

/** Of each cluster, where there are several: WAL that is another's is told as such, and the archive's own is read. */
async function newestOf(chosen: readonly Chosen[], store: ObjectStore): Promise<readonly string[]> {
  if (chosen.every(({ backup }) => backup instanceof Failure)) return [];
  const { backups } = await readCatalog(store);
  return [...new Map(backups.map(({ name, systemIdentifier }) => [systemIdentifier, name])).values()];
}

interface OneContext extends VerifyContext {
  readonly walReach: VerifiedBackup["walReach"];
  /** By cluster: what is good for one is another's for the other. */
  readonly known: Map<string, VerifiedSegments>;
  readonly progress: RunningProgress;
  /** Of the backup, in what is told of the progress. */
  readonly title: string;
}

async function verifyOne({ name, key, backup }: Chosen, context: OneContext): Promise<VerifiedBackup> {
  const { store, now, walReach, progress, title } = context;
  const begun = now().getTime();
  const duration = () => now().getTime() - begun;
  if (backup instanceof Failure) {
    const findings = [findingOf(key, store.urlOf(key), backup)];
    return { name, parts: undefined, wal: [], walReach, findings, notes: [], durationMs: duration() };
  }

  progress.turnTo(`${title}parts: read`);
  progress.expect(backup.uncompressedBytes);
  const onRead = (bytes: number) => progress.advance(bytes);
  const parts = await verifyParts(backup, { ...context, partsAtOnce: context.atOnce, onRead });
  progress.turnTo(`${title}WAL: read`);
  const wal = await verifyItsWal(backup, { ...context, onRead });

  const damagedPages = damagedPagesOf(backup) ?? 0;
  const notes = [
    ...(damagedPages > 0
      ? [
          `It holds pages that were damaged when it was taken: ${damagedPages}. They are as they were, and no server reads them.`,
        ]
      : []),
    ...(backup.walB
      ? []
      : ["Another tool made it, and kept no checksums of its files: they can be read, and compared with nothing."]),
    ...wal.notes,
  ];
  const findings = [...parts.findings, ...wal.findings];
  if (findings.length > 0 && (await isGone(backup, store))) {
    return {
      ...{ name, parts: parts.read, wal: wal.read, walReach, findings: [], durationMs: duration() },
      notes: [...notes, "It was deleted while it was read."],
    };
  }
  return { name, parts: parts.read, wal: wal.read, walReach, findings, notes, durationMs: duration() };
}

/** What segments that are read at once may take, stored and unpacked. */
const SEGMENT_MEMORY_BYTES = 256 * 2 ** 20;

async function verifyItsWal(
  backup: Backup,
  context: OneContext & { readonly onRead: (bytes: number) => void },
): Promise<VerifiedWal> {
  const { atOnce, gapPauseMs, signal, walReach, known, progress } = context;
  const cluster = `${backup.systemIdentifier} ${backup.segmentSize}`;
  const knownOfIt = known.get(cluster) ?? new VerifiedSegments(backup.segmentSize);
  known.set(cluster, knownOfIt);
  const fitting = Math.floor(SEGMENT_MEMORY_BYTES / (2 * backup.segmentSize));
  return await verifyWal(backup, walReach, {
    ...context,
    known: knownOfIt,
    onPlan: (bytes) => progress.expect(bytes),
    segmentsAtOnce: Math.max(1, Math.min(atOnce, fitting)),
    pause: () => abortableDelay(gapPauseMs, signal),
  });
}

/** Retention may have been faster; its sentinel goes first. */
async function isGone({ name }: Backup, store: ObjectStore): Promise<boolean> {
  return !(await isStored(store, sentinelKey(name)));
}
