/**
 * What a drill found: the proof that a backup restores, or what is wrong, kept beside the backup.
 *
 * docs/repository.md lists the fields. LSNs are plain JSON integers, as everywhere in the repository.
 */
import { UsageError } from "../errors.ts";
import type { Lsn } from "../postgres/lsn.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { formatJson, JsonFields } from "./json.ts";
import { type DrillName, drillKey, drillPrefix, parseDrillKey } from "./keys.ts";

/** Rises when a reader of an older version would take a result for something else. */
const FORMAT_VERSION = 1;

export interface DrillFinding {
  readonly database?: string | undefined;
  readonly relation?: string | undefined;
  /** In lower case, without a full stop. */
  readonly problem: string;
  /** Whole sentences, or lines of the server's log. */
  readonly detail?: string | undefined;
}

export interface DrillChecks {
  readonly databases: number;
  /** Tables, their TOAST tables, materialized views, sequences; catalogues included. */
  readonly relations: number;
  readonly indexes: number;
  /** Of the relations. */
  readonly bytes: bigint;
  /** Its version; undefined where it is not installed: then no index was checked, and tables were only read. */
  readonly amcheck: string | undefined;
  readonly ms: number;
}

export interface DrillResult {
  readonly backup: string;
  readonly startedAt: Date;
  readonly finishedAt: Date;
  readonly hostname: string;
  /** Of wal-b. */
  readonly version: string;
  /** For people: "the end of the archive". */
  readonly target: string;
  /** Of the server. */
  readonly postgres: string;
  readonly restore: { readonly files: number; readonly bytes: number; readonly ms: number } | undefined;
  readonly replay: { readonly from: Lsn; readonly to: Lsn; readonly ms: number } | undefined;
  /** From the start of the restore until the server took connections; undefined when it never did. */
  readonly recoveryMs: number | undefined;
  readonly checks: DrillChecks | undefined;
  readonly findings: readonly DrillFinding[];
  /** More than are listed. */
  readonly otherFindings: number;
  /** What to know that is no damage, as whole sentences. */
  readonly notes: readonly string[];
}

export const verdictOf = ({ findings }: Pick<DrillResult, "findings">) => (findings.length === 0 ? "good" : "bad");

/** The document that is stored, and that --json prints. */
export function drillDocument(result: DrillResult) {
  const { restore, replay, recoveryMs, checks } = result;
  const perSecond = (bytes: number, ms: number) => Math.round((bytes * 1000) / Math.max(ms, 1));
  return {
    format_version: FORMAT_VERSION,
    backup_name: result.backup,
    verdict: verdictOf(result),
    start_time: result.startedAt.toISOString(),
    finish_time: result.finishedAt.toISOString(),
    hostname: result.hostname,
    made_by: `wal-b ${result.version}`,
    target: result.target,
    postgres_version: result.postgres,
    restore: restore && {
      files: restore.files,
      bytes: restore.bytes,
      seconds: restore.ms / 1000,
      bytes_per_second: perSecond(restore.bytes, restore.ms),
    },
    replay: replay && {
      start_lsn: replay.from,
      end_lsn: replay.to,
      wal_bytes: replay.to - replay.from,
      seconds: replay.ms / 1000,
      wal_bytes_per_second: perSecond(Number(replay.to - replay.from), replay.ms),
    },
    recovery_seconds: recoveryMs === undefined ? null : recoveryMs / 1000,
    checks: checks && {
      databases: checks.databases,
      relations: checks.relations,
      indexes: checks.indexes,
      bytes: checks.bytes,
      amcheck: checks.amcheck ?? null,
      seconds: checks.ms / 1000,
    },
    findings: result.findings.map(({ database, relation, problem, detail }) => ({
      database: database ?? null,
      relation: relation ?? null,
      problem,
      detail: detail ?? null,
    })),
    other_findings: result.otherFindings,
    notes: result.notes,
  };
}

/** @returns its key, or undefined when there is something under that key already */
export async function putDrillResult(store: ObjectStore, result: DrillResult): Promise<string | undefined> {
  const key = drillKey({ ...result, verdict: verdictOf(result) });
  const body = new TextEncoder().encode(formatJson(drillDocument(result)));
  return (await store.putIfAbsent(key, body)) === "created" ? key : undefined;
}

/** What a listing tells of a drill. */
export interface DrillEntry extends DrillName {
  readonly key: string;
}

/** @returns the last one, by its time; undefined when there was none. One request. */
export async function findLastDrill(store: ObjectStore, backup: string): Promise<DrillEntry | undefined> {
  let last: DrillEntry | undefined;
  for await (const { key } of store.list(drillPrefix(backup))) {
    const name = parseDrillKey(key);
    if (name) last = { ...name, key };
  }
  return last;
}

const MAX_BYTES = 16 * 2 ** 20;

/**
 * @returns undefined when the server never took connections
 * @throws IntegrityError  it is damaged
 * @throws UsageError      of a newer format than this program knows
 */
export async function readRecoverySeconds(store: ObjectStore, { key }: DrillEntry): Promise<number | undefined> {
  const { body } = await store.get(key, MAX_BYTES);
  return decodeRecoverySeconds(body, store.urlOf(key));
}

export function decodeRecoverySeconds(body: Uint8Array, url: string): number | undefined {
  const fields = JsonFields.parse(new TextDecoder().decode(body), url);
  const version = fields.required("format_version", fields.integer("format_version"));
  if (version > FORMAT_VERSION) {
    throw new UsageError(`${url} has format version ${version}, this program knows ${FORMAT_VERSION}`, {
      hint: "Install a newer wal-b.",
    });
  }
  return fields.number("recovery_seconds");
}
