/** A restored directory → a server that has replayed its WAL, or why it has not. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { DestinationError, Failure, IntegrityError, PostgresError, StorageError } from "../errors.ts";
import { formatSettings } from "../postgres/auto-conf.ts";
import type { Connection } from "../postgres/connection.ts";
import { formatLsn, type Lsn } from "../postgres/lsn.ts";
import { readPgControl } from "../postgres/pg-control.ts";
import { ScratchServer } from "../postgres/scratch-server.ts";
import { SCRATCH_HBA, scratchSettings } from "../postgres/scratch-settings.ts";
import type { RecoveryTold, ServerLog } from "../postgres/server-log.ts";
import type { ServerPrograms } from "../postgres/server-programs.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import { parseWalFile, segmentStart } from "../postgres/wal-segment.ts";
import type { DrillFinding, DrillResult } from "../repository/drill-result.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { Log } from "../system/log.ts";
import type { DrillScratch } from "./drill-scratch.ts";
import { type Owner, writeOwned } from "./owner.ts";
import { segmentOnPath } from "./recovery-path.ts";
import type { RestorePlan } from "./restore.ts";

export interface RecoveryContext {
  readonly plan: RestorePlan;
  readonly scratch: DrillScratch;
  readonly programs: ServerPrograms;
  readonly owner: Owner | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly archive: WalArchive;
  readonly log: Log;
  readonly now: () => Date;
  readonly signal: AbortSignal;
}

const TELL_EVERY_MS = 15_000;

/** Replays to the target, and lets the server be promoted there. */
export async function startRecovery(context: RecoveryContext): Promise<ScratchServer> {
  const { plan, scratch, programs, owner, env, log, now, signal } = context;
  const { dataDirectory } = scratch;
  const files = { config: scratch.path("postgresql.conf"), hba: scratch.path("hba"), ident: scratch.path("ident") };
  const settings = scratchSettings({
    major: Number.parseInt(programs.version, 10),
    dataDirectory,
    socketDirectory: scratch.socketDirectory,
    hbaFile: files.hba,
    identFile: files.ident,
    control: await readPgControl(dataDirectory),
    recovery: plan.settings.map(([name, value]) => [name, name === "restore_command" ? asPlanned(value, plan) : value]),
  });
  await writeOwned(files.config, `${formatSettings(settings).join("\n")}\n`, 0o600, owner);
  await writeOwned(files.hba, SCRATCH_HBA, 0o600, owner);
  await writeOwned(files.ident, "", 0o600, owner);

  log.info(`starting PostgreSQL ${programs.version}, which replays from ${formatLsn(plan.backup.startLsn)}`);
  const server = new ScratchServer({
    bin: programs.bin,
    dataDirectory,
    configFile: files.config,
    logFile: scratch.path("server.log"),
    account: owner,
    env: serverEnvironment(env),
  });
  try {
    let told = now().getTime();
    const tell = ({ lastRestored }: RecoveryTold) => {
      if (now().getTime() - told < TELL_EVERY_MS || lastRestored === undefined) return;
      told = now().getTime();
      log.info(`replaying: recovery has come to "${lastRestored}", of "${plan.wal.last.name}"`);
    };
    if ((await server.settled(signal, tell)) === "ended") throw await failureOf(server, context);
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * What is archived once the drill has looked through the WAL is not there for it: replay must come to nothing that was not looked at
 * (refuseTablespacesOutside). Segments of any timeline are compared by their place in the log; a history has no such place.
 */
function asPlanned(restoreCommand: string, { run, reading }: RestorePlan): string {
  const last = segmentOnPath(reading.path, run.last, reading.segmentSize).name.slice(8);
  const isBehind = `[ \${#place} -eq 16 ] && expr "x$place" ">" "x${last}" > /dev/null`;
  return `place=$(echo "%f" | cut -c 9-24); if ${isBehind}; then exit 1; fi; ${restoreCommand}`;
}

/** What is for libpq, or for a server, is of other servers. */
function serverEnvironment(env: RecoveryContext["env"]): Record<string, string | undefined> {
  const others = Object.entries(env).filter(([name]) => !/^(PG|LC_|LANG)/.test(name));
  return { ...Object.fromEntries(others), LC_ALL: "C" };
}

/** The server has ended by itself. */
async function failureOf(server: ScratchServer, { plan, programs, archive, scratch }: RecoveryContext) {
  const { log, failure } = server;
  const told = await log.read();
  const detail = failure ?? `The end of its log:\n${log.lastLines}`;
  if (log.includes(/No space left on device|Disk quota exceeded/)) {
    return new DestinationError(`the file system of "${scratch.directory}" is full`, {
      detail,
      hint: "Free some space, or say --scratch with a directory on another file system.",
    });
  }
  if (told.notRestored !== undefined) return await whyNotRestored(told.notRestored, archive, detail);
  if (told.redoStart !== undefined || log.includes(/checkpoint record/)) {
    return new IntegrityError(`backup "${plan.backup.name}" does not recover`, { detail });
  }
  return new PostgresError(`PostgreSQL ${programs.version} did not start on the restored directory`, {
    detail,
    hint: `Its programs are in "${programs.bin}".`,
  });
}

/** restore_command has one exit code for all that recovery must not go on after; what it was, asking again tells. */
async function whyNotRestored(name: string, archive: WalArchive, detail: string): Promise<Failure> {
  const file = parseWalFile(name);
  try {
    if (file) for await (const _ of archive.read(file));
  } catch (error) {
    if (error instanceof Failure) return error;
    throw error;
  }
  return new StorageError(`restore_command could not fetch "${name}"`, { detail });
}

/** Where recovery ended, and how long it took. */
export async function replayOf(
  session: Connection,
  log: ServerLog,
  { plan, scratch }: Pick<RecoveryContext, "plan" | "scratch">,
): Promise<{ readonly replay: NonNullable<DrillResult["replay"]>; readonly findings: readonly DrillFinding[] }> {
  const { redoStart, redoDone, stoppedAtTarget } = await log.read();
  const to = await endOfRecovery(session, scratch);
  const replay = {
    from: redoStart?.lsn ?? plan.backup.startLsn,
    to,
    ms: redoStart && redoDone ? redoDone.at.getTime() - redoStart.at.getTime() : 0,
  };
  const { last } = plan.wal;
  const problem =
    plan.target.kind === "latest"
      ? // Recovery takes a record that it cannot read for the end of WAL.
        to <= segmentStart(last, plan.backup.segmentSize) &&
        `recovery ended at ${formatLsn(to)}, before "${last.name}", the last segment in the archive`
      : stoppedAtTarget === undefined && `recovery ended at ${formatLsn(to)} without having come to its target`;
  return { replay, findings: problem ? [{ problem, detail: `The end of its log:\n${log.lastLines}` }] : [] };
}

/** Where the new timeline, which recovery ends with, has left the old one. */
async function endOfRecovery(session: Connection, { dataDirectory }: DrillScratch): Promise<Lsn> {
  const [row] = await session.query<{ timeline: string }>(
    "SELECT pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) AS timeline",
  );
  const timeline = row?.timeline ?? "";
  const text = await readFile(join(dataDirectory, "pg_wal", `${timeline}.history`), "utf8");
  const end = parseTimelineHistory(Number.parseInt(timeline, 16), text).at(-1)?.switchLsn;
  if (end === undefined) throw new PostgresError(`the history of timeline ${timeline} is empty after recovery`);
  return end;
}
