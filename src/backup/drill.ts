/**
 * verify --drill: the proof that a backup restores. Restores it into a private directory, has a server replay all WAL, looks at
 * everything that is in it, and throws it away.
 *
 * scratch directory → restore's own plan and checks → server programs → restore → server, cut off from the world → replay →
 * promotion, which amcheck needs → checks → result beside the backup.
 */
import { execFile } from "node:child_process";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import {
  DestinationError,
  Failure,
  IntegrityError,
  NotFoundError,
  PostgresError,
  sentencesOf,
  UsageError,
} from "../errors.ts";
import { AUTO_CONF } from "../postgres/auto-conf.ts";
import { describeTarget, type RecoveryTarget } from "../postgres/recovery-target.ts";
import { connectToScratch, findScratchLogin } from "../postgres/scratch-session.ts";
import { findServerPrograms } from "../postgres/server-programs.ts";
import { createdTablespaceOf, type WalRecord } from "../postgres/wal-records.ts";
import { segmentNumber } from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { type DrillResult, putDrillResult } from "../repository/drill-result.ts";
import { sentinelKey } from "../repository/keys.ts";
import { VERSION } from "../version.ts";
import { type Checked, checkServer } from "./drill-check.ts";
import { replayOf, startRecovery } from "./drill-recovery.ts";
import { checkSpaceForWal, type DrillScratch, drillAccount, makeScratch } from "./drill-scratch.ts";
import { carryOutFetch, selectBackup } from "./fetch.ts";
import { type Owner, writeOwned } from "./owner.ts";
import { segmentsBackward } from "./recovery-reach.ts";
import { planRestore, type RestorePlan } from "./restore.ts";
import type { RestoreContext, RestoreRequest } from "./restore-request.ts";

export interface DrillRequest {
  /** undefined: the one that leads to the target, which is the newest if that is the end of the archive. */
  readonly backup: string | undefined;
  readonly target: RecoveryTarget;
  readonly timeline: RestoreRequest["timeline"];
  /** An absolute path. */
  readonly scratch: string;
  readonly afterwards: "remove" | "keep";
  readonly timeoutMs: number;
  /** Where the server's programs are; undefined: looked for. */
  readonly programs: string | undefined;
  /** Without what only this account may read: the server may run as another. */
  readonly restoreCommand: string;
  /** This program, which restore_command runs. */
  readonly program: string;
  /** Superusers to try in the restored server. */
  readonly users: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

export interface DrillContext extends Omit<RestoreContext, "tablespaces" | "addBeforeStart"> {
  readonly hostname: string;
}

export interface Drill {
  readonly result: DrillResult;
  /** Of the result in the repository; undefined when it could not be stored. */
  readonly url: string | undefined;
  /** Set with --keep. */
  readonly kept: string | undefined;
}

/**
 * What is wrong with the backup is in the result. What is thrown says nothing of the backup, or was known before it was restored.
 *
 * @throws IntegrityError, NotFoundError  the archive does not lead to the target
 * @throws PostgresError     there is no server of its major here, it does not start, or the time is up
 * @throws DestinationError  the scratch directory cannot be used, or is too small
 */
export async function drillBackup(request: DrillRequest, context: DrillContext): Promise<Drill> {
  using deadline = deadlineOf(request.timeoutMs);
  const signal = AbortSignal.any([context.signal, deadline.signal]);
  const { store, log, now } = context;
  const owner = await drillAccount(request.scratch);
  if (request.backup === undefined && request.target.kind === "latest") {
    // Fails when the newest cannot be read, where a restore would take the one before.
    await selectBackup(store, "LATEST");
  }

  await using scratch = await makeScratch(request.scratch, owner, log);
  const restoring: RestoreContext = { ...context, signal, tablespaces: { kind: "inside" } };
  const restore = { ...request, action: "promote", role: "primary" } as const;
  const plan = withOwnWal(await planRestore(scratch.dataDirectory, restore, restoring));
  await refuseTablespacesOutside(plan);
  const { segmentSize } = plan.backup;
  for (const use of plan.fetch.space) checkSpaceForWal(use, { segments: segmentsOf(plan), segmentSize });
  const search = { directory: request.programs, path: request.env["PATH"], account: owner };
  const programs = await findServerPrograms(Math.floor(plan.backup.pgVersion / 10_000), search);
  await checkAccount(owner, scratch, request.program);
  log.info(`backup "${plan.backup.name}": ${plan.because}`);

  const startedAt = now();
  const found = await tryOut({ plan, scratch, owner, programs, request, context: { ...context, signal }, restoring });
  const result: DrillResult = {
    ...found,
    backup: plan.backup.name,
    startedAt,
    finishedAt: now(),
    hostname: context.hostname,
    version: VERSION,
    target: describeTarget(plan.target),
    postgres: programs.version,
  };
  const url = await storeResult(result, context);
  if (request.afterwards === "keep") await scratch.keep();
  return { result, url, kept: request.afterwards === "keep" ? scratch.directory : undefined };
}

const segmentsOf = ({ run }: Pick<RestorePlan, "run">) => Number(run.last - run.first) + 1;

/** Of a standby that was stopped. One that was shut down as a primary has nothing behind the checkpoint that it starts from. */
const replaysOwnWal = ({ walB, startLsn, stopLsn }: Backup) => walB?.holdsWal === true && stopLsn > startLsn;

/**
 * What the backup itself has of pg_wal is replayed, whatever the target is and wherever the archive ends. The archive has the same, and so
 * it is looked through there, and replayed from there.
 */
function withOwnWal(plan: RestorePlan): RestorePlan {
  const { backup, run } = plan;
  const last = backup.stopLsn / BigInt(backup.segmentSize);
  return replaysOwnWal(backup) && last > run.last ? { ...plan, run: { ...run, last } } : plan;
}

const CANNOT_TELL = "cannot tell whether replay would stay inside the scratch directory";

/**
 * Replay of CREATE TABLESPACE makes a link to where the tablespace was made first, wherever those of the backup are restored to. On the
 * cluster's own host that is where its files are, and replay would work in them.
 *
 * @throws PostgresError  there is such a record, or nobody knows
 */
async function refuseTablespacesOutside({ backup, run, reading }: RestorePlan): Promise<void> {
  reading.log.info(`looking for new tablespaces in ${segmentsOf({ run })} segments of WAL`);
  let outside: { readonly oid: number; readonly location: string } | undefined;
  const take = (record: WalRecord) => {
    const created = record.lsn < backup.startLsn ? undefined : createdTablespaceOf(record);
    if (created && created.location !== "") outside = created;
  };
  let next = run.last;
  while (next >= run.first) {
    try {
      for await (const { segment, isKnown } of segmentsBackward({ ...run, last: next }, reading, take)) {
        next = segmentNumber(segment, backup.segmentSize) - 1n;
        if (!isKnown) {
          throw new PostgresError(CANNOT_TELL, {
            detail: `The records of "${segment.name}" are of a release that this program does not know.`,
          });
        }
        if (outside === undefined) continue;
        throw new PostgresError(`replay would make tablespace ${outside.oid} outside of the scratch directory`, {
          detail: `It was created at "${outside.location}" after backup "${backup.name}" had begun. Where the cluster itself runs, replay would work in its files.`,
          hint: "Take a new backup, which has the tablespace in it, and drill that one; or say --to immediate.",
        });
      }
    } catch (error) {
      if (error instanceof NotFoundError && replaysOwnWal(backup)) {
        throw new PostgresError(CANNOT_TELL, {
          detail: `${error.message}. Backup "${backup.name}" is of a standby that was stopped; it has WAL of its own, which is replayed and can be looked through in the archive only.`,
          hint: "Run the drill again when the segment is archived: SELECT pg_switch_wal() on the primary ends it.",
          cause: error,
        });
      }
      if (!(error instanceof IntegrityError)) throw error;
      // Damaged: replay comes no further than to that, and finds it.
      next -= 1n;
    }
  }
}

interface Trial {
  readonly plan: RestorePlan;
  readonly scratch: DrillScratch;
  readonly owner: Owner | undefined;
  readonly programs: Awaited<ReturnType<typeof findServerPrograms>>;
  readonly request: DrillRequest;
  readonly context: DrillContext;
  readonly restoring: RestoreContext;
}

type Found = Pick<DrillResult, "restore" | "replay" | "recoveryMs" | "checks" | "findings" | "otherFindings" | "notes">;

/** What is wrong with the backup ends it, and is a finding. */
async function tryOut(trial: Trial): Promise<Found> {
  const { plan, context, scratch } = trial;
  let found: Found = { ...NOTHING_YET };
  try {
    const restoreMs = await timed(context, async () => {
      const { files, bytes } = await restoreInto(trial);
      return { files, bytes };
    });
    found = { ...found, restore: { ...restoreMs.value, ms: restoreMs.ms } };

    const recovery = { ...trial, ...context, env: trial.request.env };
    const started = await timed(context, async () => await startRecovery(recovery));
    await using server = started.value;
    found = { ...found, recoveryMs: restoreMs.ms + started.ms };

    const { socketDirectory } = scratch;
    const login = await findScratchLogin(socketDirectory, trial.request.users, context);
    const connect = async (database: string) =>
      await connectToScratch(socketDirectory, { ...login, database }, context);
    {
      await using session = await connect(login.database);
      const { replay, findings } = await replayOf(session, server.log, trial);
      found = { ...found, replay, findings };
    }
    const major = Math.floor(plan.backup.pgVersion / 10_000);
    const checked = await checkServer({ ...context, major, connect, firstDatabase: login.database });
    if (trial.request.afterwards === "keep") await server.shutDown();
    return withChecks(found, checked);
  } catch (error) {
    context.signal.throwIfAborted();
    if (!(error instanceof IntegrityError)) throw error;
    return { ...found, findings: [...found.findings, { problem: error.message, detail: error.detail }] };
  }
}

const NOTHING_YET: Found = {
  restore: undefined,
  replay: undefined,
  recoveryMs: undefined,
  checks: undefined,
  findings: [],
  otherFindings: 0,
  notes: [],
};

const withChecks = (found: Found, { checks, findings, otherFindings, notes }: Checked): Found => ({
  ...found,
  checks,
  findings: [...found.findings, ...findings],
  otherFindings,
  notes: [...found.notes, ...notes],
});

async function timed<Value>({ now }: DrillContext, work: () => Promise<Value>) {
  const begun = now().getTime();
  const value = await work();
  return { value, ms: now().getTime() - begun };
}

/** Of the restored configuration nothing is read: the server gets one of its own, and what ALTER SYSTEM wrote goes. */
async function restoreInto({ plan, restoring }: Trial) {
  return await carryOutFetch(plan.fetch, {
    ...restoring,
    addBeforeStart: async ({ target, owner }) => {
      await writeOwned(join(target, AUTO_CONF), "", 0o600, owner);
      // Of a backup that another tool took of a standby; with both, the server would be one.
      await rm(join(target, "standby.signal"), { force: true });
      await writeOwned(join(target, plan.signalFile), "", 0o600, owner);
    },
  });
}

/** @throws UsageError, DestinationError  the account cannot do what the server will have to */
async function checkAccount(owner: Owner | undefined, scratch: DrillScratch, program: string): Promise<void> {
  if (owner === undefined) return;
  const fails = async (script: string, argument: string) =>
    await new Promise<boolean>((resolve) => {
      const options = { cwd: "/", timeout: 20_000, env: {}, ...owner };
      execFile("/bin/sh", ["-c", script, "sh", argument], options, (error) => resolve(error !== null));
    });
  if (await fails('cd -- "$1"', scratch.directory)) {
    throw new DestinationError(
      `account ${owner.uid}, which is to run the server, cannot enter "${scratch.directory}"`,
      {
        hint: "Say --scratch with a directory that this account can reach.",
      },
    );
  }
  if (await fails('test -x "$1"', program)) {
    throw new UsageError(`account ${owner.uid}, which is to run the server, cannot run "${program}"`, {
      hint: "Install wal-b where every account can run it, such as /usr/local/bin: it is the server's restore_command.",
    });
  }
}

/** A drill has told what it found, whether or not that can be kept. */
async function storeResult(result: DrillResult, { store, log, signal }: DrillContext): Promise<string | undefined> {
  try {
    await store.head(sentinelKey(result.backup));
    const key = await putDrillResult(store, result);
    return key && store.urlOf(key);
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof Failure)) throw error;
    const gone = error instanceof NotFoundError;
    log.warning(`could not store the result beside backup "${result.backup}"`, {
      detail: gone ? "The backup was deleted meanwhile." : sentencesOf(error),
      ...(!gone && { hint: "It is printed only. To keep it, use credentials that may write." }),
    });
    return undefined;
  }
}

function deadlineOf(ms: number): Disposable & { readonly signal: AbortSignal } {
  const controller = new AbortController();
  const giveUp = () =>
    controller.abort(
      new PostgresError(`the drill did not end within ${ms / 1000} s`, {
        hint: "WALB_DRILL_TIMEOUT sets how long it may take.",
      }),
    );
  const timer = setTimeout(giveUp, ms);
  return { signal: controller.signal, [Symbol.dispose]: () => clearTimeout(timer) };
}
