/**
 * restore: the right backup, in a directory that recovers to a target when a server is started on it.
 *
 * timeline → where the target is → the newest backup before it → every WAL segment from there on → the target can be reached →
 * what backup-fetch checks → fetch → settings and signal file, before pg_control gets its name. Nothing is written before all
 * of it has been checked, because what fails later fails after hours.
 */
import { IntegrityError, NotFoundError, UsageError } from "../errors.ts";
import type { ConfSettings } from "../postgres/auto-conf.ts";
import { formatLsn, type Lsn } from "../postgres/lsn.ts";
import {
  describeTarget,
  formatTime,
  microsecondsOf,
  type RecoveryTarget,
  targetSetting,
} from "../postgres/recovery-target.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import { segmentBefore, segmentNumber, type WalSegment } from "../postgres/wal-segment.ts";
import { type Backup, findBackup, readCatalog } from "../repository/backup-catalog.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { type BackupFetchContext, carryOutFetch, type FetchPlan, planFetch } from "./fetch.ts";
import {
  boundOf,
  chooseBackup,
  gapBehind,
  isBefore,
  isOnPath,
  pathTo,
  type RecoveryPath,
  type Run,
  runFrom,
  segmentOnPath,
} from "./recovery-path.ts";
import {
  findTarget,
  newestTimeline,
  type Reach,
  type Reading,
  reachLsn,
  reachTime,
  readHistoryText,
  readRuns,
} from "./recovery-reach.ts";
import { type SignalFile, writeRecoverySettings } from "./recovery-settings.ts";

export type TargetAction = "pause" | "promote" | "shutdown";

export interface RestoreRequest {
  readonly target: RecoveryTarget;
  readonly timeline: number | "latest";
  /** What the server does at the target; of no meaning at the end of the archive. */
  readonly action: TargetAction;
  readonly role: "primary" | "standby";
  /** Instead of the one that would be chosen. */
  readonly backup: string | undefined;
  /** For the settings, %f and %p in it. */
  readonly restoreCommand: string;
}

export interface RestoreContext extends BackupFetchContext {
  readonly archive: WalArchive;
  readonly now: () => Date;
}

export interface RestorePlan {
  readonly backup: Backup;
  /** Why this one. */
  readonly because: string;
  readonly target: RecoveryTarget;
  readonly timeline: number;
  readonly wal: { readonly first: WalSegment; readonly last: WalSegment; readonly segments: number };
  readonly fetch: FetchPlan;
  readonly settings: ConfSettings;
  readonly signalFile: SignalFile;
}

/** From 12 on, recovery is told by settings and signal files; before, by recovery.conf. */
const FIRST_VERSION = 120_000;

/**
 * @throws NotFoundError     no backup leads to the target, or the archive does not reach it
 * @throws IntegrityError    the archive has a gap on the way, or what was read is damaged
 * @throws DestinationError  the directory is not empty, in use, too small, or may not be written
 * @throws UsageError        the request contradicts itself or the repository
 */
export async function planRestore(
  directory: string,
  request: RestoreRequest,
  context: RestoreContext,
): Promise<RestorePlan> {
  const { target } = request;
  const backups = await readBackups(context);
  const way = await chooseWay(backups, request, context);
  const { backup, because, path } = await chooseForTarget(way, request, context);
  checkVersion(backup);

  const reading = readingOf(backup, path, context);
  const first = segmentNumber(
    segmentOnPath(path, backup.startLsn / BigInt(backup.segmentSize), backup.segmentSize),
    backup.segmentSize,
  );
  const runs = await readRuns(first, reading);
  const run = checkStart(backup, runs, reading);
  const last = await checkReach({ backup, run, runs, located: way.located, request, reading });

  const fetch = await planFetch(backup, directory, context);
  return {
    backup,
    because,
    target,
    timeline: way.timeline,
    wal: {
      first: segmentOnPath(path, first, backup.segmentSize),
      last: segmentOnPath(path, last, backup.segmentSize),
      segments: Number(last - first) + 1,
    },
    fetch,
    settings: settingsOf(request, way),
    signalFile: request.role === "standby" ? "standby.signal" : "recovery.signal",
  };
}

export async function carryOutRestore(plan: RestorePlan, context: RestoreContext): Promise<void> {
  const { backup, settings, signalFile, target } = plan;
  const note = `wal-b restore, ${context.now().toISOString()}, backup "${backup.name}" to ${describeTarget(target)}`;
  await carryOutFetch(plan.fetch, {
    ...context,
    addBeforeStart: (prepared) => writeRecoverySettings(prepared, { settings, signalFile, note }, context.log),
  });
}

async function readBackups({ store, log }: RestoreContext): Promise<readonly Backup[]> {
  const { backups, unreadable } = await readCatalog(store);
  for (const { name, failure } of unreadable) {
    log.warning(`backup "${name}" cannot be read, and is not considered`, {
      detail: failure instanceof Error ? `${failure.message}.` : String(failure),
    });
  }
  if (backups.length === 0) throw new NotFoundError("there is no backup", { detail: `Looked in ${store.location}.` });
  return backups;
}

/** The timeline that is recovered to, and the backups that could lead there. */
interface Way {
  readonly timeline: number;
  readonly hasHistory: boolean;
  readonly path: RecoveryPath;
  readonly backups: readonly Backup[];
  /** Where a transaction or a restore point is. */
  readonly located: Lsn | undefined;
}

async function chooseWay(backups: readonly Backup[], request: RestoreRequest, context: RestoreContext): Promise<Way> {
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
  const runs = await readRuns(oldest.startLsn / BigInt(oldest.segmentSize), reading);
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

const readingOf = (backup: Backup, path: RecoveryPath, { archive, log, signal }: RestoreContext): Reading => ({
  archive,
  path,
  log,
  signal,
  segmentSize: backup.segmentSize,
  systemIdentifier: backup.systemIdentifier,
});

async function chooseForTarget(way: Way, { target, backup: name }: RestoreRequest, { store }: RestoreContext) {
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

function noBackup(
  { backups, path, timeline }: Way,
  target: RecoveryTarget,
  bound: ReturnType<typeof boundOf>,
): NotFoundError {
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

function checkVersion({ name, pgVersion }: Backup): void {
  if (pgVersion >= FIRST_VERSION) return;
  throw new UsageError(
    `backup "${name}" is of PostgreSQL ${Math.floor(pgVersion / 10_000)}, which "restore" cannot set up`,
    {
      hint: "Restore it with backup-fetch, and write recovery.conf by hand.",
    },
  );
}

/** @returns what recovery can go along @throws IntegrityError  not even all that the backup itself needs */
function checkStart(backup: Backup, runs: readonly Run[], { path, archive }: Reading): Run {
  const size = BigInt(backup.segmentSize);
  const first = backup.startLsn / size;
  const stop = segmentNumber(segmentBefore(backup.timeline, backup.stopLsn, backup.segmentSize), backup.segmentSize);
  const run = runFrom(runs, first);
  if (run && run.last >= stop) return run;
  const { name } = segmentOnPath(path, run === undefined ? first : run.last + 1n, backup.segmentSize);
  throw new IntegrityError(`"${name}" is missing, and backup "${backup.name}" cannot be restored without it`, {
    detail: `There is no ${archive.urlOf(name)}.`,
    hint: "Nothing was written. Look for the segment in pg_wal of any server of this cluster, and archive it with wal-push; or name an older backup with --backup.",
  });
}

interface ReachCheck {
  readonly backup: Backup;
  readonly run: Run;
  readonly runs: readonly Run[];
  readonly located: Lsn | undefined;
  readonly request: RestoreRequest;
  readonly reading: Reading;
}

/** @returns the last segment that recovery needs, as far as that is known @throws NotFoundError, IntegrityError  it cannot get there */
async function checkReach(check: ReachCheck): Promise<bigint> {
  const { backup, run, runs, located, request, reading } = check;
  const { target, role } = request;
  const size = BigInt(backup.segmentSize);
  const gap = gapBehind(runs, run.first);
  switch (target.kind) {
    case "immediate":
      return segmentNumber(segmentBefore(backup.timeline, backup.stopLsn, backup.segmentSize), backup.segmentSize);
    case "latest":
      if (gap !== undefined && role === "primary") throw gapFailure(gap, check);
      if (gap !== undefined) warnOfGap(gap, check);
      return run.last;
    case "xid":
    case "name":
      if (located !== undefined && located / size > run.last) throw gapFailure(gap ?? run.last + 1n, check);
      return located === undefined ? run.last : located / size;
    case "lsn":
    case "time": {
      // What is behind the backup's end counts; a whole segment less is read for a time that is far from it.
      const rest = { first: backup.stopLsn / size > run.last ? run.last : backup.stopLsn / size, last: run.last };
      const reach =
        target.kind === "lsn"
          ? await reachLsn(target.lsn, rest, reading)
          : await reachTime(target.time, backup.stopLsn, rest, reading);
      if (reach.kind === "not reached" && gap !== undefined) throw gapFailure(gap, check);
      if (reach.kind === "not reached") throw notReached(target, reach, check);
      if (reach.kind === "unknown") {
        reading.log.warning(`cannot tell whether the archive reaches ${describeTarget(target)}`, {
          detail: reach.why,
          hint: "If it does not, the server says so at the end of recovery, and does not start.",
        });
      }
      return target.kind === "lsn" ? target.lsn / size : run.last;
    }
  }
}

function gapFailure(missing: bigint, { backup, request, runs, reading }: ReachCheck): IntegrityError {
  const { name } = segmentOnPath(reading.path, missing, backup.segmentSize);
  const later = runs.find(({ first }) => first > missing)?.first;
  const next = later === undefined ? "" : ` "${segmentOnPath(reading.path, later, backup.segmentSize).name}" is there.`;
  return new IntegrityError(`the archive has a gap before ${describeTarget(request.target)}: "${name}" is missing`, {
    detail: `There is no ${reading.archive.urlOf(name)}.${next} Recovery from backup "${backup.name}" would end there.`,
    hint: "Nothing was written. Look for the segment in pg_wal of any server of this cluster, and archive it with wal-push. To get what is before the gap, say a target before it.",
  });
}

function warnOfGap(missing: bigint, { backup, reading }: ReachCheck): void {
  const { name } = segmentOnPath(reading.path, missing, backup.segmentSize);
  reading.log.warning(`the archive has a gap: "${name}" is missing`, {
    detail: `There is no ${reading.archive.urlOf(name)}.`,
    hint: "The standby waits there, unless it streams from a primary that still has it.",
  });
}

function notReached(
  target: RecoveryTarget,
  reach: Extract<Reach, { kind: "not reached" }>,
  { run, reading, backup }: ReachCheck,
) {
  const { name } = segmentOnPath(reading.path, run.last, backup.segmentSize);
  const found =
    reach.newestEnd !== undefined
      ? `The newest transaction in it ended at ${formatTime(reach.newestEnd)}; recovery stops at the first one after the time.`
      : reach.lastRecord !== undefined
        ? `The last record in it begins at ${formatLsn(reach.lastRecord)}.`
        : `No transaction ended in it after backup "${backup.name}".`;
  return new NotFoundError(`the archive does not reach ${describeTarget(target)}`, {
    detail: `It ends with "${name}". ${found}`,
    hint: "Nothing was written. For all that is archived, say --to latest. If the server still runs, SELECT pg_switch_wal() there archives what it has.",
  });
}

function settingsOf({ target, action, role, timeline, restoreCommand }: RestoreRequest, way: Way): ConfSettings {
  const setting = targetSetting(target);
  return [
    ["restore_command", restoreCommand],
    ...(setting ? [setting, ["recovery_target_action", action] as const] : []),
    ["recovery_target_timeline", timelineSetting(role, timeline, way)],
  ];
}

/** A number needs the history in the archive, but for 1; a standby follows a primary that is promoted later. */
function timelineSetting(
  role: RestoreRequest["role"],
  asked: RestoreRequest["timeline"],
  { timeline, hasHistory }: Way,
) {
  if (role === "standby" && asked === "latest") return "latest";
  return timeline === 1 || hasHistory ? String(timeline) : "current";
}
