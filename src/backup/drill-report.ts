/** What a drill found: as lines for people, and as one JSON document. */
import { IntegrityError } from "../errors.ts";
import { formatLsn } from "../postgres/lsn.ts";
import { type DrillFinding, type DrillResult, drillDocument, verdictOf } from "../repository/drill-result.ts";
import { formatJson } from "../repository/json.ts";
import { formatBytes } from "../system/quantity.ts";
import type { Drill } from "./drill.ts";

/** @throws IntegrityError  the backup does not restore to what it was taken from */
export function checkDrill({ result }: Drill): void {
  const [first] = result.findings;
  if (first === undefined) return;
  const more = result.findings.length + result.otherFindings - 1;
  throw new IntegrityError(`backup "${result.backup}" is not good`, {
    detail: `${lineOf(first)}.${more > 0 ? ` There are ${more} more.` : ""}`,
    hint: "Take a new backup now, and look whether the server it is taken from has the same damage: pg_amcheck tells.",
  });
}

export function formatDrillText({ result, url, kept }: Drill): string {
  const { findings, otherFindings, notes } = result;
  const lines = [
    `${verdictOf(result).padEnd(4)}  ${result.backup}  restored to ${result.target} with PostgreSQL ${result.postgres}`,
    ...factsOf(result),
    ...findings.flatMap((finding) => [
      `found     ${lineOf(finding)}`,
      ...(finding.detail ?? "")
        .split("\n")
        .filter(Boolean)
        .map((line) => `            ${line}`),
    ]),
    ...(otherFindings > 0 ? [`found     ${otherFindings} more`] : []),
    ...notes.map((note) => `note      ${note}`),
    ...(url === undefined ? [] : [`stored    ${url}`]),
    ...(kept === undefined ? [] : [`kept      ${kept}: its data, its postgresql.conf and its server.log`]),
  ];
  return lines.map((line, index) => `${index === 0 ? "" : "      "}${line}\n`).join("");
}

function factsOf({ restore, replay, recoveryMs, checks }: DrillResult): readonly string[] {
  return [
    ...(restore
      ? [
          `restore   ${restore.files} files, ${formatBytes(restore.bytes)} in ${seconds(restore.ms)}, ${rate(restore.bytes, restore.ms)}`,
        ]
      : []),
    ...(replay
      ? [
          `replay    ${formatLsn(replay.from)} to ${formatLsn(replay.to)}, ${formatBytes(Number(replay.to - replay.from))} of WAL in ${seconds(replay.ms)}, ${rate(Number(replay.to - replay.from), replay.ms)}`,
        ]
      : []),
    ...(recoveryMs === undefined
      ? []
      : [`recovery  ${seconds(recoveryMs)} from the beginning until connections are taken`]),
    ...(checks
      ? [
          `checks    ${checks.databases} databases, ${checks.relations} tables${checks.amcheck === undefined ? "" : ` and ${checks.indexes} indexes with amcheck ${checks.amcheck}`}, ${formatBytes(Number(checks.bytes))} in ${seconds(checks.ms)}`,
        ]
      : []),
  ];
}

const lineOf = ({ database, relation, problem }: DrillFinding) =>
  [database && `database "${database}"`, relation, problem].filter(Boolean).join(": ");

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
const rate = (bytes: number, ms: number) => `${formatBytes((bytes * 1000) / Math.max(ms, 1))}/s`;

export function formatDrillJson({ result, url, kept }: Drill): string {
  return `${formatJson({ ...drillDocument(result), stored: url ?? null, kept: kept ?? null }, 2)}\n`;
}
