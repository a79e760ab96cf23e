/**
 * Decides what may go, and why what stays stays. Pure: reads nothing, deletes nothing.
 *
 * Never by an object's age: by the times and LSNs in the sentinels, by timeline ancestry, and always in favour of keeping
 * when something is not known.
 */
import { switchPointOf, type TimelineHistory } from "../postgres/timeline-history.ts";
import {
  type SegmentSize,
  segmentBefore,
  segmentHolding,
  segmentNumber,
  type WalFile,
} from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import type { BackupName } from "../repository/keys.ts";

export type RetainedBackup = Pick<
  Backup,
  | "name"
  | "startSegment"
  | "timeline"
  | "startLsn"
  | "stopLsn"
  | "finishedAt"
  | "isPermanent"
  | "segmentSize"
  | "systemIdentifier"
>;

/** A backup of which only the name is known. */
export type NamedBackup = Pick<BackupName, "name" | "startSegment"> & Partial<Pick<BackupName, "parentSegment">>;

export interface WalEntry {
  readonly key: string;
  readonly sizeBytes: number;
  /** undefined: nothing that PostgreSQL archives; such objects are never deleted. */
  readonly file?: WalFile | undefined;
}

/** What lies in the repository. */
export interface Inventory {
  /** Oldest first, by the time they finished. */
  readonly backups: readonly RetainedBackup[];
  readonly wal: readonly WalEntry[];
  /** Complete backups that this program cannot restore, such as WAL-E's: kept, with all WAL from their start on, and their bases. */
  readonly others: readonly NamedBackup[];
  /** Backups without a sentinel, which may be running: all WAL from their start on is kept, for they are listed when they have it. */
  readonly unfinished: readonly NamedBackup[];
  /** Of each timeline whose history is archived; timeline 1 has none and needs none. */
  readonly histories: ReadonlyMap<number, TimelineHistory>;
}

export interface RetentionPlan {
  readonly keep: readonly { readonly name: string; readonly because: string }[];
  readonly removeBackups: readonly { readonly name: string; readonly because: string }[];
  readonly removeWal: readonly WalEntry[];
  readonly keptWal: number;
  /** Objects under wal_005/ that are none of ours; they stay. */
  readonly foreign: readonly string[];
}

/**
 * Keeps the newest `count` backups of each cluster and every permanent one. `count` is at least 1.
 *
 * Where no backup goes, no WAL goes either: with fewer backups than asked for there is nothing to do.
 */
export function planRetain(count: number, inventory: Inventory): RetentionPlan {
  const newestFirst = inventory.backups.toReversed();
  const plan = planKeeping(inventory, (backup) => {
    const rank =
      newestFirst.filter(({ systemIdentifier }) => systemIdentifier === backup.systemIdentifier).indexOf(backup) + 1;
    return { keep: rank <= count, because: `${ordinal(rank)} newest; ${count} ${count === 1 ? "is" : "are"} kept` };
  });
  return plan.removeBackups.length > 0 ? plan : { ...plan, removeWal: [], keptWal: inventory.wal.length };
}

/** 1st, 2nd, 3rd, 4th … 11th … 21st. */
function ordinal(n: number): string {
  const suffix = n % 100 >= 11 && n % 100 <= 13 ? "th" : (["th", "st", "nd", "rd"][n % 10] ?? "th");
  return `${n}${suffix}`;
}

/**
 * Keeps a backup, all that finished after it, and all of other clusters.
 *
 * @throws RangeError  no backup has this name
 */
export function planBefore(name: string, inventory: Inventory): RetentionPlan {
  const position = inventory.backups.findIndex((backup) => backup.name === name);
  const named = inventory.backups[position];
  if (named === undefined) throw new RangeError(`no backup "${name}"`);
  return planKeeping(inventory, (backup) => {
    if (backup.systemIdentifier !== named.systemIdentifier)
      return { keep: true, because: `of another cluster, ${backup.systemIdentifier}` };
    if (backup === named) return { keep: true, because: "the one named" };
    const isOlder = inventory.backups.indexOf(backup) < position;
    return isOlder
      ? { keep: false, because: `finished before ${name}` }
      : { keep: true, because: `finished after ${name}` };
  });
}

/**
 * Keeps every backup: what goes is WAL that none of them needs.
 *
 * @param leftovers  names of unfinished backups that are removed before the WAL, and so need none
 */
export function planGarbage(inventory: Inventory, leftovers: readonly string[] = []): RetentionPlan {
  const unfinished = inventory.unfinished.filter(({ name }) => !leftovers.includes(name));
  return planKeeping({ ...inventory, unfinished }, () => ({ keep: true, because: "complete" }));
}

/**
 * Everything goes: permanent backups too, timeline histories too. The caller has made sure that this is meant.
 *
 * What unfinished backups have written is left to planGarbage(): one that runs could be listed without it in the end. Without its
 * WAL, which it looks for before it is listed, it fails.
 */
export function planEverything({ backups, others, unfinished, wal }: Inventory): RetentionPlan {
  const [removeWal, foreign] = [
    wal.filter(({ file }) => file !== undefined),
    wal.filter(({ file }) => file === undefined),
  ];
  return {
    keep: unfinished.map(({ name }) => ({ name, because: `${UNFINISHED}, and then fails without its WAL` })),
    removeBackups: [...others, ...backups].map(({ name }) => ({ name, because: "everything goes" })),
    removeWal,
    keptWal: foreign.length,
    foreign: foreign.map(({ key }) => key),
  };
}

const UNFINISHED = "not complete: it may still be running";

type Verdict = { readonly keep: boolean; readonly because: string };

function planKeeping(inventory: Inventory, judge: (backup: RetainedBackup) => Verdict): RetentionPlan {
  const others = [...inventory.others, ...inventory.unfinished];
  const judged = inventory.backups.map((backup) => ({ backup, ...sparingBase(backup, judge(backup), others) }));
  const retained = judged.filter(({ keep }) => keep).map(({ backup }) => backup);
  const permanent = judged.filter(({ keep, backup }) => !keep && backup.isPermanent).map(({ backup }) => backup);

  const isNeeded = (file: WalFile) =>
    retained.some((backup) => continues(backup, file, inventory.histories)) ||
    permanent.some((backup) => completes(backup, file));
  const othersNeed = (file: WalFile) => others.some(({ startSegment }) => isBehind(file, startSegment));
  // Without any complete backup nothing tells what is still needed; the WAL of a cluster that has no backup yet must survive.
  const removable = ({ file }: WalEntry) =>
    file !== undefined && retained.length + inventory.others.length > 0 && !isNeeded(file) && !othersNeed(file);

  return {
    keep: [
      ...inventory.others.map(({ name }) => ({ name, because: "of a kind that this program does not know" })),
      ...judged.flatMap(({ backup, keep, because }) => {
        if (keep) return { name: backup.name, because };
        return backup.isPermanent ? { name: backup.name, because: "permanent" } : [];
      }),
      ...inventory.unfinished.map(({ name }) => ({ name, because: UNFINISHED })),
    ],
    removeBackups: judged
      .filter(({ backup, keep }) => !keep && !backup.isPermanent)
      .map(({ backup, because }) => ({ name: backup.name, because })),
    removeWal: inventory.wal.filter(removable),
    keptWal: inventory.wal.filter((entry) => !removable(entry)).length,
    foreign: inventory.wal.filter(({ file }) => file === undefined).map(({ key }) => key),
  };
}

/**
 * A delta has only what changed since the backup that it is made on: without that one, no tool restores it, nor a delta that is made
 * on it in turn. WAL-G writes the parent's start into a delta's name, so one link after the other is seen without reading any.
 */
function sparingBase(backup: RetainedBackup, verdict: Verdict, others: readonly NamedBackup[]): Verdict {
  const delta = others.find(({ parentSegment }) => parentSegment === backup.startSegment);
  return verdict.keep || delta === undefined
    ? verdict
    : { keep: true, because: `the delta ${delta.name} is made on it` };
}

/**
 * Whether recovery from this backup to any later point may ask for the file.
 *
 * A segment on another timeline is spared unless it lies before the start, or the backup's own history shows that its timeline
 * was left before.
 */
function continues(backup: RetainedBackup, file: WalFile, histories: ReadonlyMap<number, TimelineHistory>): boolean {
  if (file.kind === "history") return true;
  const size = backup.segmentSize;
  const number = segmentNumber(file, size);
  if (number < segmentNumber(segmentHolding(backup.timeline, backup.startLsn, size), size)) return false;

  const left = switchPointOf(histories.get(backup.timeline) ?? [], file.timeline);
  return left === undefined || number <= segmentNumber(segmentHolding(file.timeline, left, size), size);
}

/** Whether the file is at a segment's place in the log or behind it, on whatever timeline. */
function isBehind(file: WalFile, startSegment: string): boolean {
  return file.kind === "history" || file.name.slice(8, 24) >= startSegment.slice(8, 24);
}

/** Whether this backup alone, restored to the moment it ended, needs the file. */
function completes(backup: RetainedBackup, file: WalFile): boolean {
  if (file.kind === "history") return true;
  if (file.timeline !== backup.timeline) return false;
  const size: SegmentSize = backup.segmentSize;
  const number = segmentNumber(file, size);
  const [first, last] = [
    segmentHolding(backup.timeline, backup.startLsn, size),
    segmentBefore(backup.timeline, backup.stopLsn, size),
  ];
  return number >= segmentNumber(first, size) && number <= segmentNumber(last, size);
}
