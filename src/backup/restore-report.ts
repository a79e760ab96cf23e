/** What a restore will do, and what is to be done after it, for people and for scripts. */
import { join } from "node:path";
import { AUTO_CONF, formatSettings } from "../postgres/auto-conf.ts";
import { formatLsn } from "../postgres/lsn.ts";
import { describeTarget, formatTime, microsecondsOf } from "../postgres/recovery-target.ts";
import { formatJson } from "../repository/json.ts";
import { formatBytes } from "../system/quantity.ts";
import type { RestorePlan } from "./restore.ts";
import type { RestoreRequest } from "./restore-request.ts";

export function formatPlan(plan: RestorePlan, { action }: Pick<RestoreRequest, "action">): string {
  const { backup, because, target, timeline, wal, fetch, settings, signalFile } = plan;
  const rows: (readonly [string, string])[] = [
    ["backup", `${backup.name}: ${because}`],
    [
      "",
      `finished at ${formatTime(microsecondsOf(backup.finishedAt))}, LSN ${formatLsn(backup.stopLsn)}, PostgreSQL ${versionOf(backup.pgVersion)}`,
    ],
    ["target", `${describeTarget(target)}, on timeline ${timeline}${actionOf(plan, action)}`],
    ["WAL", describeWal(wal)],
    ["directory", `"${fetch.target.target}": ${formatBytes(backup.uncompressedBytes)}`],
    ...fetch.target.tablespaces.map(({ oid, place }) => ["tablespace", `${oid} in "${place}"`] as const),
    ...fetch.space.map(
      ({ directory, bytes, freeBytes }) =>
        [
          "space",
          `${formatBytes(bytes)} go to the file system of "${directory}", ${formatBytes(freeBytes)} are free`,
        ] as const,
    ),
    ["settings", `in ${AUTO_CONF}, and ${signalFile}`],
    ...formatSettings(settings).map((line) => ["", line] as const),
  ];
  return `${rows.map(([name, text]) => `${name.padEnd(12)}${text}`).join("\n")}\n\nNothing was written.\n`;
}

function describeWal({ first, last, segments }: RestorePlan["wal"]): string {
  if (segments === 0) return "none from the archive: the backup holds what it needs";
  return `${first.name} to ${last.name}: ${segments} ${segments === 1 ? "segment" : "segments"}, all archived`;
}

function actionOf({ target, signalFile, isThere }: RestorePlan, action: string): string {
  if (signalFile === "standby.signal") return ", as a standby";
  return isThere || target.kind === "latest" ? "; then it is an ordinary server" : `; then ${action}`;
}

export function formatPlanJson(plan: RestorePlan): string {
  const { backup, because, target, timeline, wal, fetch, settings, signalFile } = plan;
  return `${formatJson(
    {
      backup_name: backup.name,
      because,
      finish_time: backup.finishedAt.toISOString(),
      finish_lsn: backup.stopLsn,
      pg_version: backup.pgVersion,
      target: target.kind,
      target_description: describeTarget(target),
      timeline,
      wal_first: wal.segments === 0 ? null : wal.first.name,
      wal_last: wal.segments === 0 ? null : wal.last.name,
      wal_segments: wal.segments,
      directory: fetch.target.target,
      uncompressed_size: backup.uncompressedBytes,
      space: fetch.space.map(({ directory, bytes, freeBytes }) => ({ directory, bytes, free_bytes: freeBytes })),
      tablespaces: fetch.target.tablespaces.map(({ oid, place }) => ({ oid, location: place })),
      settings: Object.fromEntries(settings),
      signal_file: signalFile,
    },
    2,
  )}\n`;
}

/** After a restore. */
export function formatNextSteps(plan: RestorePlan, { action }: Pick<RestoreRequest, "action">): string {
  const { fetch, target, signalFile, backup } = plan;
  const directory = fetch.target.target;
  const lines = [
    `Ready to recover to ${describeTarget(target)}, on timeline ${plan.timeline}. Next:`,
    "",
    "1. If the old server is still there, or this is a trial, keep the new one out of the archive: add to",
    `   ${join(directory, AUTO_CONF)}`,
    "     archive_mode = off",
    "   and a port of its own where both run on this host.",
    `2. Start PostgreSQL ${versionOf(backup.pgVersion).split(".")[0]} on it, with systemctl or with`,
    `     pg_ctl -D ${directory} -w -t 86400 -l ${directory}.log start`,
    `3. ${AFTERWARDS[afterwards(plan, action)]}`,
  ];
  if (signalFile === "recovery.signal")
    lines.push(
      `4. When it is to take over, remove from ${AUTO_CONF} what restore wrote and what step 1 added, restart the server,`,
      "   and take a base backup.",
    );
  return `${lines.join("\n")}\n`;
}

type End = "there" | "latest" | "standby" | "pause" | "promote" | "shutdown";

function afterwards({ target, signalFile, isThere }: RestorePlan, action: RestoreRequest["action"]): End {
  if (signalFile === "standby.signal") return "standby";
  if (isThere) return "there";
  return target.kind === "latest" ? "latest" : action;
}

const AFTERWARDS: Readonly<Record<End, string>> = {
  there: 'The log shows "archive recovery complete" at once: there is nothing to replay, and it does not pause.',
  latest: 'The log shows "archive recovery complete" when it has replayed all that is archived.',
  standby:
    'The log shows "consistent recovery state reached". It goes on to ask the archive; set primary_conninfo to stream.',
  pause:
    'The log shows "recovery stopping" and "pausing at the end of recovery". Look whether the data is what you want, then\n     SELECT pg_wal_replay_resume();',
  promote: 'The log shows "recovery stopping" and "archive recovery complete".',
  shutdown:
    'The log shows "recovery stopping" and "shutdown at recovery target", and pg_ctl says that it could not start the server, which is as it should be. It replays nothing more until it is started without the target.',
};

/** 180004 → "18.4". */
const versionOf = (version: number) => `${Math.floor(version / 10_000)}.${version % 10_000}`;
