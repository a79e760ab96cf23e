/**
 * restore: the right backup, in a directory that recovers to a target when a server is started on it.
 *
 * timeline → where the target is → the newest backup before it → every WAL segment from there on → the target can be reached →
 * what backup-fetch checks → fetch → settings and signal file, before pg_control gets its name. Nothing is written before all
 * of it has been checked, because what fails later fails after hours.
 */
import { UsageError } from "../errors.ts";
import type { ConfSettings } from "../postgres/auto-conf.ts";
import { describeTarget, type RecoveryTarget, targetSetting } from "../postgres/recovery-target.ts";
import type { WalSegment } from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { carryOutFetch, type FetchPlan, planFetch, tellingOfResume } from "./fetch.ts";
import { type Run, segmentOnPath } from "./recovery-path.ts";
import type { Reading } from "./recovery-reach.ts";
import { type SignalFile, writeRecoverySettings } from "./recovery-settings.ts";
import { chooseForTarget, chooseWay, readBackups, readingOf, type Way } from "./restore-choice.ts";
import { checkReach, checkStart, readSettledRuns } from "./restore-reach.ts";
import type { RestoreContext, RestoreRequest } from "./restore-request.ts";
import { checkTarget, type PreparedTarget } from "./target.ts";

export interface RestorePlan {
  readonly backup: Backup;
  /** Why this one. */
  readonly because: string;
  readonly target: RecoveryTarget;
  readonly timeline: number;
  readonly wal: { readonly first: WalSegment; readonly last: WalSegment; readonly segments: number };
  /** What replay may read of it: a record may end, and a target lie, in the segment behind the last. */
  readonly run: Run;
  readonly reading: Reading;
  readonly fetch: FetchPlan;
  readonly settings: ConfSettings;
  readonly signalFile: SignalFile;
  /** The backup is at its target as it is: nothing is replayed, and no target is set. */
  readonly isThere: boolean;
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
  asked: RestoreRequest,
  context: RestoreContext,
): Promise<RestorePlan> {
  // One that was interrupted goes on with its backup, also where a newer one would be chosen by now.
  const request = { ...asked, backup: asked.backup ?? context.interrupted?.identity.backup };
  // Before the archive is read, which may take a while.
  if (context.interrupted === undefined) await checkTarget(directory);
  const backups = await readBackups(request, context);
  const way = await chooseWay(backups, request, context);
  const { backup, because, path } = await chooseForTarget(way, request, context);
  checkVersion(backup);

  const reading = readingOf(backup, path, context);
  const runs = await readSettledRuns(backup, reading);
  const run = await checkStart(backup, runs, reading);
  const last = await checkReach({ backup, run, runs, located: way.located, request, reading });

  const fetch = await planFetch(backup, directory, context);
  const isThere = request.target.kind === "immediate" && hasNothingToReplay(backup, run);
  return {
    backup,
    because,
    target: request.target,
    timeline: way.timeline,
    wal: {
      first: segmentOnPath(path, run.first, backup.segmentSize),
      last: segmentOnPath(path, last, backup.segmentSize),
      segments: Number(last - run.first) + 1,
    },
    run: { first: run.first, last: last < run.last ? last + 1n : last },
    reading,
    fetch,
    settings: settingsOf(isThere ? asItIs(request) : request, way),
    isThere,
    signalFile: request.role === "standby" ? "standby.signal" : "recovery.signal",
  };
}

export async function carryOutRestore(plan: RestorePlan, context: RestoreContext): Promise<void> {
  const { backup, settings, signalFile, target } = plan;
  const note = `wal-b restore, ${context.now().toISOString()}, backup "${backup.name}" to ${describeTarget(target)}`;
  const fetching = {
    ...context,
    addBeforeStart: (prepared: PreparedTarget) =>
      writeRecoverySettings(prepared, { settings, signalFile, note }, context.log),
  };
  await tellingOfResume(plan.fetch.target.target, context.log, () => carryOutFetch(plan.fetch, fetching));
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

/** Of a cluster that was shut down, and not started since: it is where its backup is consistent. */
const hasNothingToReplay = ({ walB, startLsn, stopLsn }: Backup, { first, last }: Run) =>
  walB?.holdsWal === true && startLsn === stopLsn && last < first;

/**
 * PostgreSQL sees at a record that it has come to "immediate"; without one it ends with "recovery ended before configured recovery
 * target was reached". Without that target it must not replay what is archived by the time it is started, and gets histories alone.
 */
const asItIs = (request: RestoreRequest): RestoreRequest => ({
  ...request,
  target: { kind: "latest" },
  restoreCommand: `case "%f" in *.history) ${request.restoreCommand} ;; *) exit 74 ;; esac`,
});

function settingsOf({ target, action, role, timeline, restoreCommand }: RestoreRequest, way: Way): ConfSettings {
  const setting = targetSetting(target);
  return [
    ["restore_command", restoreCommand],
    ...(setting ? [setting, ["recovery_target_action", action] as const] : []),
    ["recovery_target_timeline", timelineSetting(role, timeline, way)],
    // Of a delayed standby that the backup was taken from: recovery to a target waits, too (recoveryApplyDelay in xlogrecovery.c).
    ...(role === "standby" ? [] : [["recovery_min_apply_delay", "0"] as const]),
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
