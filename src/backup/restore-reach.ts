/** Whether the archive leads from a backup to a target, and why not. */
import { IntegrityError, NotFoundError } from "../errors.ts";
import { formatLsn, type Lsn } from "../postgres/lsn.ts";
import { describeTarget, formatTime, type RecoveryTarget } from "../postgres/recovery-target.ts";
import { segmentBefore, segmentNumber } from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { abortableDelay } from "../system/delay.ts";
import { refusePastFork } from "./past-fork.ts";
import { firstMissing, gapBehind, type Run, runFrom, segmentOnPath } from "./recovery-path.ts";
import { type Reach, type Reading, reachLsn, reachTime, readRuns, unsupportedAt } from "./recovery-reach.ts";
import type { RestoreRequest } from "./restore-request.ts";

/** Segments are archived side by side, so a gap may close by itself. */
const GAP_LOOKS = 3;
const GAP_PAUSE_MS = 1_000;

/** What is archived from the segment on in which the backup began. */
export async function readSettledRuns(backup: Backup, reading: Reading): Promise<readonly Run[]> {
  const first = backup.startLsn / BigInt(backup.segmentSize);
  for (let looks = 1; ; looks++) {
    const runs = await readRuns(first, reading);
    if (gapBehind(runs, first) === undefined || looks === GAP_LOOKS) return runs;
    await abortableDelay(GAP_PAUSE_MS, reading.signal);
  }
}

/**
 * @returns what recovery can go along: empty where a backup that holds its own WAL is all there is
 * @throws IntegrityError  not even all that the backup itself needs
 */
export async function checkStart(backup: Backup, runs: readonly Run[], reading: Reading): Promise<Run> {
  const { path, archive } = reading;
  const size = BigInt(backup.segmentSize);
  const first = backup.startLsn / size;
  const stop = segmentNumber(segmentBefore(backup.timeline, backup.stopLsn, backup.segmentSize), backup.segmentSize);
  const run = runFrom(runs, first);
  if (run && run.last >= stop) return run;
  const next = firstMissing(runs, first);
  // Also where the backup holds its own WAL: recovery asks the archive first.
  const unsupported = await unsupportedAt(next, reading);
  if (unsupported) throw unsupported;
  if (run && backup.walB?.holdsWal) return run;
  if (backup.walB?.holdsWal && gapBehind(runs, first) === undefined) return { first, last: first - 1n };
  const { name } = segmentOnPath(path, next, backup.segmentSize);
  throw new IntegrityError(`"${name}" is missing, and backup "${backup.name}" cannot be restored without it`, {
    detail: `There is no ${archive.urlOf(name)}.`,
    hint: "Nothing was written. Look for the segment in pg_wal of any server of this cluster, and archive it with wal-push; or name an older backup with --backup.",
  });
}

export interface ReachCheck {
  readonly backup: Backup;
  readonly run: Run;
  readonly runs: readonly Run[];
  readonly located: Lsn | undefined;
  readonly request: RestoreRequest;
  readonly reading: Reading;
}

/** @returns the last segment that recovery needs, as far as that is known @throws NotFoundError, IntegrityError  it cannot get there */
export async function checkReach(check: ReachCheck): Promise<bigint> {
  const { backup, run, runs, located, request, reading } = check;
  const { target, role } = request;
  const size = BigInt(backup.segmentSize);
  const gap = gapBehind(runs, run.first);
  const unsupportedNext = async () => await unsupportedAt(run.last + 1n, reading);
  if (run.last < run.first && target.kind !== "latest" && target.kind !== "immediate") {
    throw new NotFoundError(`the archive does not reach ${describeTarget(target)}`, {
      detail: `Nothing was archived after backup "${backup.name}".`,
      hint: "Nothing was written. For the backup as it is, say --to immediate.",
    });
  }
  switch (target.kind) {
    case "immediate":
      if (backup.walB?.holdsWal) return run.first - 1n;
      return segmentNumber(segmentBefore(backup.timeline, backup.stopLsn, backup.segmentSize), backup.segmentSize);
    case "latest": {
      const unsupported = await unsupportedNext();
      if (unsupported && role === "primary") throw unsupported;
      if (gap !== undefined && role === "primary") throw gapFailure(gap, check);
      // Also of a standby: it would never come to the timeline that it is to follow.
      await refusePastForkBehind(run, check);
      if (unsupported) warnOf(unsupported, reading);
      else if (gap !== undefined) warnOfGap(gap, check);
      return run.last;
    }
    case "xid":
    case "name":
      if (located !== undefined && located / size > run.last)
        throw (await unsupportedNext()) ?? gapFailure(gap ?? run.last + 1n, check);
      if (located !== undefined) return located / size;
      await refusePastForkBehind(run, check);
      return run.last;
    case "lsn":
    case "time": {
      // A backup is consistent at its stop, and recovery that stops before is an error.
      const rest = { first: backup.stopLsn / size > run.last ? run.last : backup.stopLsn / size, last: run.last };
      const reach =
        target.kind === "lsn"
          ? await reachLsn(target.lsn, rest, reading)
          : await reachTime(target.time, backup.stopLsn, rest, reading);
      if (reach.kind === "not reached") {
        const failure = gap === undefined ? notReached(target, reach, check) : gapFailure(gap, check);
        throw (await unsupportedNext()) ?? failure;
      }
      if (reach.kind === "unknown") {
        reading.log.warning(`cannot tell whether the archive reaches ${describeTarget(target)}`, {
          detail: reach.why,
          hint: "If it does not, the server says so at the end of recovery, and does not start.",
        });
        await refusePastForkBehind(run, check);
      }
      return target.kind === "lsn" ? target.lsn / size : run.last;
    }
  }
}

/** What the backup holds itself, PostgreSQL takes from pg_wal before it looks for another timeline's. */
async function refusePastForkBehind({ last }: Run, { backup, reading }: ReachCheck): Promise<void> {
  const isHeld = backup.walB?.holdsWal === true && last < backup.stopLsn / BigInt(backup.segmentSize);
  if (!isHeld) await refusePastFork(last + 1n, reading);
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

const STANDBY_WAITS = "The standby waits there, unless it streams from a primary that still has it.";

function warnOf({ message, detail }: IntegrityError, { log }: Reading): void {
  log.warning(message, { ...(detail && { detail }), hint: STANDBY_WAITS });
}

function warnOfGap(missing: bigint, { backup, reading }: ReachCheck): void {
  const { name } = segmentOnPath(reading.path, missing, backup.segmentSize);
  reading.log.warning(`the archive has a gap: "${name}" is missing`, {
    detail: `There is no ${reading.archive.urlOf(name)}.`,
    hint: STANDBY_WAITS,
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
