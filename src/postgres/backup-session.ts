/**
 * pg_backup_start() to pg_backup_stop() on one connection: the low-level backup API, non-exclusive.
 *
 * The backup belongs to the session. Ending the connection early, by whatever way, makes the server abandon the backup
 * by itself; nothing of it is left in the live data directory.
 * Source: manual, "Making a Base Backup Using the Low Level API".
 */
import { type Failure, PostgresError, reasonOf } from "../errors.ts";
import type { Log } from "../system/log.ts";
import { type BackupLabel, parseBackupLabel } from "./backup-label.ts";
import type { Connection } from "./connection.ts";
import { formatLsn, type Lsn, parseLsn } from "./lsn.ts";
import { isNotPermitted, quoteIdentifier, readServerFacts, type ServerFacts } from "./server-facts.ts";
import { segmentHolding, type WalSegment } from "./wal-segment.ts";

/** A running backup. Disposing it ends the connection, and the backup if it was not stopped. */
export interface BackupSession extends AsyncDisposable {
  readonly server: ServerFacts;
  readonly startLsn: Lsn;
  readonly timeline: number;
  readonly startSegment: WalSegment;
  /**
   * Aborted with the failure when, before the stop, the backup cannot succeed any more: connection lost, standby promoted,
   * or followed its upstream to a new timeline.
   */
  readonly lost: AbortSignal;
  /**
   * Ends the backup. Does not wait for WAL to be archived; on a primary it makes the last segment ready for that, on a
   * standby the primary has to fill or switch it.
   *
   * @throws PostgresError  the backup is not usable
   */
  stop(): Promise<StoppedBackup>;
}

export interface StoppedBackup {
  readonly stopLsn: Lsn;
  /** Byte for byte what must stand in the backup as backup_label. */
  readonly backupLabel: Uint8Array;
  /** Byte for byte what must stand in the backup as tablespace_map; empty means: no such file. */
  readonly tablespaceMap: Uint8Array;
  readonly label: BackupLabel;
}

export interface BackupSessionOptions {
  /** Belongs to the session from now on, also when starting fails. */
  readonly connection: Connection;
  readonly label: string;
  /** "spread" waits for up to checkpoint_timeout × checkpoint_completion_target, and saves the disks a burst of writes. */
  readonly checkpoint: "fast" | "spread";
  readonly log: Log;
  /** How often the connection is used while files are copied. */
  readonly pingEveryMs?: number;
}

/** Shorter than the memory of firewalls and load balancers for quiet connections. */
const PING_EVERY_MS = 30_000;

/** @throws PostgresError  the server cannot or may not start a backup */
export async function startBackupSession(options: BackupSessionOptions): Promise<BackupSession> {
  const { connection, log, pingEveryMs = PING_EVERY_MS } = options;
  try {
    refusePooler(connection);
    const server = await readServerFacts(connection);
    const start = await startBackup(options);
    refuseOtherTimeline(await readRecoveryState(connection), { server, ...start });
    const segment = segmentHolding(start.timeline, start.startLsn, server.walSegmentSizeBytes);
    log.debug(`backup started at ${formatLsn(start.startLsn)} on timeline ${start.timeline}`);
    return new RunningBackup(connection, { server, ...start, startSegment: segment }, pingEveryMs);
  } catch (error) {
    await connection[Symbol.asyncDispose]();
    throw error;
  }
}

type BackupStart = Pick<BackupSession, "server" | "startLsn" | "timeline" | "startSegment">;

class RunningBackup implements BackupSession {
  readonly server: ServerFacts;
  readonly startLsn: Lsn;
  readonly timeline: number;
  readonly startSegment: WalSegment;
  readonly #connection: Connection;
  readonly #lost = new AbortController();
  readonly #pingEveryMs: number;
  #nextPing: ReturnType<typeof setTimeout> | undefined;
  #stopped = false;

  constructor(connection: Connection, start: BackupStart, pingEveryMs: number) {
    this.server = start.server;
    this.startLsn = start.startLsn;
    this.timeline = start.timeline;
    this.startSegment = start.startSegment;
    this.#connection = connection;
    this.#pingEveryMs = pingEveryMs;
    this.#schedulePing();
    const { lost } = connection;
    lost.addEventListener("abort", () => this.#fail(lost.reason), { once: true });
    if (lost.aborted) this.#fail(lost.reason);
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  async stop(): Promise<StoppedBackup> {
    clearTimeout(this.#nextPing);
    this.lost.throwIfAborted();
    this.#stopped = true;
    const stopped = await stopBackup(this.#connection);
    checkLabel(stopped.label, this);
    // Asked behind the stop, so that it is not before the timeline that the stop is on.
    // A primary has no other, and does not need its session any more.
    if (this.server.role === "standby") refuseOtherTimeline(await readRecoveryState(this.#connection), this);
    return stopped;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true;
    clearTimeout(this.#nextPing);
    await this.#connection[Symbol.asyncDispose]();
  }

  #fail(reason: unknown): void {
    if (!this.#stopped) this.#lost.abort(reason);
  }

  #schedulePing(): void {
    this.#nextPing = setTimeout(() => void this.#ping(), this.#pingEveryMs);
  }

  /** Keeps the connection in use, and learns of a promotion, here or upstream, now instead of after hours of copying. */
  async #ping(): Promise<void> {
    try {
      const state = await readRecoveryState(this.#connection);
      if (this.server.role === "standby" && state.role === "primary") throw promoted();
      refuseOtherTimeline(state, this);
      if (!this.#stopped) this.#schedulePing();
    } catch (error) {
      this.#fail(error);
    }
  }
}

function promoted(): PostgresError {
  return new PostgresError("the standby was promoted during the backup", {
    detail: "A backup that was started on a standby cannot be finished on a primary.",
    hint: "Run the backup again.",
  });
}

interface RecoveryState {
  readonly role: ServerFacts["role"];
  /** Of a standby: the newest that it has received WAL of, or that its files need. */
  readonly timeline: number;
}

/** The timeline that pg_control names is that of the LSN at which a standby ends a backup, do_pg_backup_stop() in xlog.c. */
async function readRecoveryState(connection: Connection): Promise<RecoveryState> {
  const [row] = await connection.query<{ standby: string; timeline: string | null }>(
    `SELECT pg_is_in_recovery() AS standby,
            greatest((SELECT min_recovery_end_timeline FROM pg_control_recovery()),
                     (SELECT max(received_tli) FROM pg_stat_wal_receiver)) AS timeline`,
  );
  return { role: row?.standby === "t" ? "standby" : "primary", timeline: Number(row?.timeline) };
}

/**
 * The WAL of the backup would be on two timelines, and the last segment of the first one may never be archived.
 *
 * @throws PostgresError  the standby has followed its upstream to a timeline after the one that the backup starts on
 */
function refuseOtherTimeline(state: RecoveryState, { server, timeline }: Pick<BackupStart, "server" | "timeline">) {
  if (server.role === "primary" || state.timeline <= timeline) return;
  throw new PostgresError(`the standby followed to timeline ${state.timeline} during the backup`, {
    detail: `The backup starts on timeline ${timeline}, from the standby's latest restartpoint.`,
    hint: "Run the backup again.",
  });
}

/** A pooler keeps the server's session, and with it the backup, when our connection ends. */
function refusePooler({ peer, place }: Connection): void {
  if (peer === "server") return;
  throw new PostgresError(`${place} is a connection pooler, not the server itself`, {
    detail: "A backup belongs to the server's session, which a pooler keeps or changes at will.",
    hint: "Set PGHOST and PGPORT to the server's own socket or port.",
  });
}

async function startBackup({ connection, label, checkpoint }: BackupSessionOptions) {
  const fast = checkpoint === "fast";
  const call = connection.majorVersion >= 15 ? "pg_backup_start($1, $2)" : "pg_start_backup($1, $2, false)";
  try {
    const [start] = await connection.query<{ lsn: string }>(`SELECT ${call} AS lsn`, [label, fast]);
    // The checkpoint that the backup starts from, on a standby the latest restartpoint.
    const [control] = await connection.query<{ timeline: string }>(
      "SELECT timeline_id AS timeline FROM pg_control_checkpoint()",
    );
    return { startLsn: lsnOf(start?.lsn), timeline: Number(control?.timeline) };
  } catch (error) {
    throw explained("could not start a backup", error, connection);
  }
}

/**
 * Label and map come as the bytes the server made, whatever the encodings of database and session: a tablespace's path
 * is bytes. Without a client encoding nothing is converted or verified.
 */
async function stopBackup(connection: Connection): Promise<StoppedBackup> {
  const call = connection.majorVersion >= 15 ? "pg_backup_stop(false)" : "pg_stop_backup(false, false)";
  try {
    await connection.query("SET client_encoding TO 'SQL_ASCII'");
    const [row] = await connection.query<Record<"lsn" | "label" | "map", string | null>>(
      `SELECT lsn, encode(textsend(labelfile), 'hex') AS label, encode(textsend(spcmapfile), 'hex') AS map FROM ${call}`,
    );
    // For messages alone: with the answer in hand, the backup is stopped, and does not need its session any more.
    await connection.query("SET client_encoding TO 'UTF8'").catch(() => undefined);
    const backupLabel = Buffer.from(row?.label ?? "", "hex");
    const tablespaceMap = Buffer.from(row?.map ?? "", "hex");
    return { stopLsn: lsnOf(row?.lsn), backupLabel, tablespaceMap, label: parseBackupLabel(backupLabel) };
  } catch (error) {
    throw explained("could not finish the backup", error, connection);
  }
}

function checkLabel(label: BackupLabel, { startLsn, startSegment }: BackupStart): void {
  if (label.startLsn === startLsn && label.startSegment === startSegment.name) return;
  throw new PostgresError("the server's backup_label belongs to another backup", {
    detail: `It starts at ${formatLsn(label.startLsn)} in ${label.startSegment}, the backup at ${formatLsn(startLsn)} in ${startSegment.name}.`,
    hint: "Run the backup again.",
  });
}

function lsnOf(text: string | null | undefined): Lsn {
  const lsn = parseLsn(text ?? "");
  if (lsn === undefined) throw new PostgresError("the server's answer has no LSN", { detail: `It is "${text}".` });
  return lsn;
}

function explained(message: string, error: unknown, { user, majorVersion }: Connection): Failure | unknown {
  if (!(error instanceof PostgresError)) return error;
  const role = quoteIdentifier(user);
  const functions =
    majorVersion >= 15
      ? ["pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"]
      : ["pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"];
  const grant = `Run as a superuser: GRANT EXECUTE ON FUNCTION ${functions.join(", ")} TO ${role};`;
  return new PostgresError(message, {
    detail: [`${reasonOf(error)}.`, error.detail].filter(Boolean).join(" "),
    hint: isNotPermitted(error) ? grant : error.hint,
    cause: error,
  });
}
