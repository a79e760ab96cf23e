/**
 * Which backup and which WAL lead to a recovery target, as pure decisions.
 *
 * A timeline's history names its ancestors and where each was left. A backup leads to a timeline only if it was finished before
 * its own timeline was left: its stop counts, because recovery from it must reach that. Source: tliInHistory() and
 * tliOfPointInHistory() in timeline.c, XLogFileReadAnyTLI() in xlogrecovery.c.
 */
import { asLsn, type Lsn } from "../postgres/lsn.ts";
import { type Microseconds, microsecondsOf, type RecoveryTarget } from "../postgres/recovery-target.ts";
import type { TimelineHistory } from "../postgres/timeline-history.ts";
import { type SegmentSize, segmentAt, type WalSegment } from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";

/** A timeline on the way, and the part of the log that is read from it. */
export interface Stretch {
  readonly timeline: number;
  readonly from: Lsn;
  /** Where it was left; undefined for the last one. */
  readonly until: Lsn | undefined;
}

/** Oldest timeline first. */
export type RecoveryPath = readonly Stretch[];

export function pathTo(timeline: number, history: TimelineHistory): RecoveryPath {
  let from = asLsn(0n);
  const ancestors = history.map(({ timeline: ancestor, switchLsn }) => {
    const stretch = { timeline: ancestor, from, until: switchLsn };
    from = switchLsn;
    return stretch;
  });
  return [...ancestors, { timeline, from, until: undefined }];
}

/** Whether recovery from this backup can go along the path. */
export function isOnPath(path: RecoveryPath, { timeline, stopLsn }: Pick<Backup, "timeline" | "stopLsn">): boolean {
  const stretch = path.find((each) => each.timeline === timeline);
  return stretch !== undefined && (stretch.until === undefined || stopLsn <= stretch.until);
}

/** Whether the backup is consistent before the target is reached. */
export function isBefore(backup: Pick<Backup, "stopLsn" | "finishedAt">, target: BackupBound): boolean {
  switch (target.kind) {
    case "any":
      return true;
    case "time":
      return microsecondsOf(backup.finishedAt) < target.time;
    case "lsn":
      return backup.stopLsn <= target.lsn;
  }
}

/** What a target says of the backup that leads to it. */
export type BackupBound =
  | { readonly kind: "any" }
  | { readonly kind: "time"; readonly time: Microseconds }
  | { readonly kind: "lsn"; readonly lsn: Lsn };

/** @param found  where in WAL a transaction or a restore point is */
export function boundOf(target: RecoveryTarget, found?: Lsn): BackupBound {
  if (target.kind === "time" || target.kind === "lsn") return target;
  return found === undefined ? { kind: "any" } : { kind: "lsn", lsn: found };
}

/** The newest of them that leads to the target, so that the least WAL is replayed. */
export function chooseBackup<B extends Pick<Backup, "timeline" | "stopLsn" | "finishedAt">>(
  backups: readonly B[],
  path: RecoveryPath,
  bound: BackupBound,
): B | undefined {
  const usable = backups.filter((backup) => isOnPath(path, backup) && isBefore(backup, bound));
  return usable.toSorted((a, b) => Number(a.stopLsn - b.stopLsn)).at(-1);
}

/** The file that recovery reads this part of the log from: of the newest timeline that has begun in it. */
export function segmentOnPath(path: RecoveryPath, number: bigint, size: SegmentSize): WalSegment {
  const stretch = path.findLast(({ from }) => from / BigInt(size) <= number);
  return segmentAt(stretch?.timeline ?? 1, number, size);
}

/**
 * What recovery takes when the file on the path is missing: of the same number, the next older timeline's, back to the one that it has
 * read from last. Only where a timeline begins there is such a one, and what it has behind that was left.
 */
export function segmentsInstead(path: RecoveryPath, number: bigint, size: SegmentSize): readonly WalSegment[] {
  const [before, here] = [number - 1n, number].map((each) =>
    path.findLastIndex(({ from }) => from / BigInt(size) <= each),
  );
  return path
    .slice(Math.max(before ?? 0, 0), here)
    .map(({ timeline }) => segmentAt(timeline, number, size))
    .toReversed();
}

/** Segments behind one another, by number, both ends included. */
export interface Run {
  readonly first: bigint;
  readonly last: bigint;
}

/** Numbers in ascending order → runs without gaps. */
export async function runsOf(numbers: AsyncIterable<bigint>): Promise<readonly Run[]> {
  const runs: { first: bigint; last: bigint }[] = [];
  for await (const number of numbers) {
    const run = runs.at(-1);
    if (run && number === run.last + 1n) run.last = number;
    else if (run === undefined || number > run.last) runs.push({ first: number, last: number });
  }
  return runs;
}

/** The run that recovery goes along from this segment on; undefined when even that one is not there. */
export const runFrom = (runs: readonly Run[], first: bigint): Run | undefined => {
  const run = runs.find((each) => each.first <= first && first <= each.last);
  return run && { first, last: run.last };
};

/** Where recovery along these runs would end. */
export function firstMissing(runs: readonly Run[], first: bigint): bigint {
  const run = runFrom(runs, first);
  return run === undefined ? first : run.last + 1n;
}

/** The first segment that is missing while later ones are there. */
export function gapBehind(runs: readonly Run[], first: bigint): bigint | undefined {
  const last = runs.at(-1)?.last;
  const missing = firstMissing(runs, first);
  return last !== undefined && missing < last ? missing : undefined;
}
