/** Which timeline and which backup lead to a target, from what the archive and the catalogue hold. */
import { IntegrityError, NotFoundError, UsageError } from "../errors.ts";
import { formatLsn, type Lsn } from "../postgres/lsn.ts";
import { describeTarget, formatTime, microsecondsOf, type RecoveryTarget } from "../postgres/recovery-target.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import { type Backup, checkOneCluster, findBackup, readCatalog, whyUnreadable } from "../repository/backup-catalog.ts";
import {
  type BackupBound,
  boundOf,
  chooseBackup,
  firstMissing,
  gapBehind,
  isBefore,
  isOnPath,
  pathTo,
  type RecoveryPath,
  segmentOnPath,
} from "./recovery-path.ts";
import { findTarget, newestTimeline, type Reading, readHistoryText, unsupportedAt } from "./recovery-reach.ts";
import { readSettledRuns } from "./restore-reach.ts";
import type { RestoreContext, RestoreRequest } from "./restore-request.ts";

/** @returns those of one cluster: of the named backup's, where one is named */
export async function readBackups(
  { backup: name }: Pick<RestoreRequest, "backup">,
  { store, log }: RestoreContext,
): Promise<readonly Backup[]> {
  const { backups, unreadable } = await readCatalog(store);
  for (const each of unreadable)
    log.warning(`backup "${each.name}" cannot be read, and is not considered`, whyUnreadable(each));
  if (backups.length === 0) throw new NotFoundError("there is no backup", { detail: `Looked in ${store.location}.` });
  if (name !== undefined) {
    // One that is not among them is refused with its own reason.
    const named = backups.find((backup) => backup.name === name) ?? (await findBackup(store, name));
    return backups.filter(({ systemIdentifier }) => systemIdentifier === named.systemIdentifier);
  }
  checkOneCluster(backups, { location: store.location, hint: "Say --backup with one of them." });
  return backups;
}

/** The timeline that is recovered to, and the backups that could lead there. */
export interface Way {
  readonly timeline: number;
  readonly hasHistory: boolean;
  readonly path: RecoveryPath;
  readonly backups: readonly Backup[];
  /** Where a transaction or a restore point is. */
  readonly located: Lsn | undefined;
}

export async function chooseWay(
  backups: readonly Backup[],
  request: RestoreRequest,
  context: RestoreContext,
): Promise<Way> {
  const { archive } = context;
  const timeline = await timelineOf(backups, request, context);
  const text = timeline === 1 ? undefined : await readHistoryText(timeline, archive);
  if (text === undefined && timeline !== 1 && !backups.some((backup) => backup.timeline === timeline)) {
    throw new NotFoundError(`there is no timeline ${timeline} in the archive`, {
      detail: `There is neither its history nor a backup of it. Backups are of timeline ${timelinesOf(backups)}.`,
    });
  }
  const path = pathTo(timeline, text === undefined ? [] : parseTimelineHistory(timeline, text));
  warnOfOthers(backups, path, request, context);
  const way = { timeline, hasHistory: text !== undefined, path, backups };
  return { ...way, located: await locate(way, request, context) };
}

/** The end of a backup is on its own timeline, whatever came later. */
async function timelineOf(backups: readonly Backup[], request: RestoreRequest, { store, archive }: RestoreContext) {
  if (request.timeline !== "latest") return request.timeline;
  if (request.target.kind === "immediate") {
    const backup = request.backup === undefined ? backups.at(-1) : await findBackup(store, request.backup);
    return backup?.timeline ?? 1;
  }
  return await newestTimeline(Math.max(...backups.map((backup) => backup.timeline)), archive);
}

function warnOfOthers(
  backups: readonly Backup[],
  path: RecoveryPath,
  request: RestoreRequest,
  { log }: RestoreContext,
) {
  const newest = backups.at(-1);
  if (request.timeline !== "latest" || newest === undefined || isOnPath(path, newest)) return;
  log.warning(`the newest backup, "${newest.name}", does not lead to timeline ${path.at(-1)?.timeline}`, {
    detail: `It is of timeline ${newest.timeline}, and that was left before it was finished. The newest timeline is recovered to, as PostgreSQL does.`,
    hint: `To stay on the other one, say --timeline ${newest.timeline}.`,
  });
}

/** Transactions and restore points have no order that a backup could be compared with: their place in WAL has. */
async function locate(
  { path, backups }: Omit<Way, "located">,
  { target, backup: name }: RestoreRequest,
  context: RestoreContext,
): Promise<Lsn | undefined> {
  if (target.kind !== "xid" && target.kind !== "name") return undefined;
  const usable = backups
    .filter((backup) => isOnPath(path, backup) && (name === undefined || backup.name === name))
    .toSorted((a, b) => Number(a.startLsn - b.startLsn));
  const oldest = usable[0];
  if (oldest === undefined) return undefined;

  const reading = readingOf(oldest, path, context);
  const first = oldest.startLsn / BigInt(oldest.segmentSize);
  const runs = await readSettledRuns(oldest, reading);
  // A name may have been given twice, and recovery stops at the first that it comes to.
  const goesOnTo = (found: Lsn) =>
    target.kind === "xid" ? undefined : chooseBackup(usable, path, { kind: "lsn", lsn: found })?.startLsn;
  const found = await findTarget(target, runs, { ...reading, goesOnTo });
  if (found.kind === "unknown") {
    context.log.warning(`cannot tell where ${describeTarget(target)} is`, {
      detail: found.why,
      hint: "The newest backup is taken. When the target is before its end, say --backup with an older one.",
    });
    return undefined;
  }
  if (found.kind === "not found") {
    const unsupported = await unsupportedAt(firstMissing(runs, first), reading);
    if (unsupported) throw unsupported;
    const gap = gapBehind(runs, first);
    if (gap !== undefined) {
      const { name: missing } = segmentOnPath(path, gap, oldest.segmentSize);
      throw new IntegrityError(
        `${describeTarget(target)} was not found, and the archive has a gap: "${missing}" is missing`,
        {
          detail: `There is no ${context.archive.urlOf(missing)}, and it may be in that.`,
          hint: "Nothing was written. Look for the segment in pg_wal of any server of this cluster, and archive it with wal-push.",
        },
      );
    }
    throw new NotFoundError(`${describeTarget(target)} is not in the archive`, {
      detail: [
        `All that is archived since backup "${oldest.name}" was looked at.`,
        found.newestEnd === undefined ? "" : `The newest transaction in it ended at ${formatTime(found.newestEnd)}.`,
        target.kind === "xid" && found.hasPrepared ? "Prepared transactions cannot be found by their number." : "",
      ]
        .join(" ")
        .trim(),
      hint: "Nothing was written. Check the spelling, and --timeline; or say a time or an LSN, or --to latest.",
    });
  }
  const [newest, older] = found.lsns;
  const from = newest === undefined ? undefined : goesOnTo(newest);
  if (older !== undefined && from !== undefined && older >= from) {
    throw new UsageError(`there is more than one ${describeTarget(target)}`, {
      detail: `At ${found.lsns
        .filter((lsn) => lsn >= from)
        .toReversed()
        .map(formatLsn)
        .join(" and at ")}; recovery would stop at the first.`,
      hint: `Say which by its LSN: --to ${newest === undefined ? "" : formatLsn(newest)} for the last one.`,
    });
  }
  return newest;
}

export const readingOf = (backup: Backup, path: RecoveryPath, { archive, log, signal }: RestoreContext): Reading => ({
  archive,
  path,
  log,
  signal,
  segmentSize: backup.segmentSize,
  systemIdentifier: backup.systemIdentifier,
});

export async function chooseForTarget(way: Way, { target, backup: name }: RestoreRequest, { store }: RestoreContext) {
  const { path, backups, located, timeline } = way;
  const bound = boundOf(target, located);
  if (name !== undefined) {
    const backup = await findBackup(store, name);
    if (!isOnPath(path, backup)) throw notOnPath(backup, timeline);
    if (!isBefore(backup, bound)) {
      throw new UsageError(`backup "${name}" cannot lead to ${describeTarget(target)}`, {
        detail: `${endOf(backup)} Recovery cannot go back behind that.`,
        hint: "Leave --backup out, and the right one is chosen.",
      });
    }
    return { backup, path, because: "it was named" };
  }

  const backup = chooseBackup(backups, path, bound);
  if (backup === undefined) throw noBackup(way, target, bound);
  const because = bound.kind === "any" ? "the newest one" : "the newest one that was finished before the target";
  return { backup, path, because };
}

const endOf = ({ finishedAt, stopLsn }: Backup) =>
  `It was finished at ${formatTime(microsecondsOf(finishedAt))}, LSN ${formatLsn(stopLsn)}.`;

const timelinesOf = (backups: readonly Backup[]) => [...new Set(backups.map(({ timeline }) => timeline))].join(", ");

function notOnPath(backup: Backup, timeline: number): UsageError {
  return new UsageError(`backup "${backup.name}" does not lead to timeline ${timeline}`, {
    detail: `It is of timeline ${backup.timeline}. ${endOf(backup)} Timeline ${timeline} does not come from there.`,
    hint: `Name another backup, or say --timeline ${backup.timeline}.`,
  });
}

function noBackup({ backups, path, timeline }: Way, target: RecoveryTarget, bound: BackupBound): NotFoundError {
  const onPath = backups.filter((backup) => isOnPath(path, backup));
  const elsewhere = backups.filter((backup) => isBefore(backup, bound));
  const oldest = onPath[0] ?? backups[0];
  const hint =
    onPath.length > 0
      ? "Nothing was written. Recovery can begin at the end of a backup only: say a later target."
      : "Nothing was written. Say --timeline with one that has a backup.";
  return new NotFoundError(`no backup leads to ${describeTarget(target)} on timeline ${timeline}`, {
    detail: [
      oldest &&
        `The oldest backup${onPath.length > 0 ? "" : " of all"} is "${oldest.name}", of timeline ${oldest.timeline}. ${endOf(oldest)}`,
      onPath.length === 0 || elsewhere.length === 0 ? "" : `Older ones are of timeline ${timelinesOf(elsewhere)}.`,
    ]
      .filter(Boolean)
      .join(" "),
    hint,
  });
}
