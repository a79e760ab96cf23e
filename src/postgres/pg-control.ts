/**
 * global/pg_control: which cluster a data directory is, in which state, and from where its recovery starts.
 *
 * The layout is that of 64-bit little-endian servers, computed from ControlFileData in pg_control.h. Majors 12 to 17
 * share it; 18 added a field, so that its checksum stands four bytes later. A version that is not listed is refused,
 * because guessed offsets would look like facts.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Failure, IntegrityError, PostgresError, reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";
import { crc32c } from "./crc32c.ts";
import { asLsn, type Lsn } from "./lsn.ts";

/** DBState in pg_control.h, in its order, in the words of pg_controldata. */
const STATES = [
  "starting up",
  "shut down",
  "shut down in recovery",
  "shutting down",
  "in crash recovery",
  "in archive recovery",
  "in production",
] as const;

export type ClusterState = (typeof STATES)[number];

/** Settings of the server that wrote the WAL, by their names in postgresql.conf. */
export interface ServerLimits {
  readonly max_connections: number;
  readonly max_worker_processes: number;
  readonly max_wal_senders: number;
  readonly max_prepared_transactions: number;
  readonly max_locks_per_transaction: number;
}

export interface PgControl {
  readonly systemIdentifier: bigint;
  /** Changes with the layout of pg_control: 1300 for majors 13 to 16. */
  readonly controlVersion: number;
  /** Changes with the system catalogues; with the major version it names the directory inside a tablespace. */
  readonly catalogVersion: number;
  readonly state: ClusterState;
  /** Position of the latest checkpoint's record. */
  readonly checkpointLsn: Lsn;
  /** Where recovery from that checkpoint starts. */
  readonly redoLsn: Lsn;
  readonly timeline: number;
  readonly previousTimeline: number;
  /** A standby is consistent from here on; 0 unless in recovery. */
  readonly minRecoveryLsn: Lsn;
  readonly minRecoveryTimeline: number;
  /** 0 unless the cluster is recovering from a base backup. */
  readonly backupStartLsn: Lsn;
  readonly backupEndLsn: Lsn;
  readonly backupEnd: "required" | "not required";
  /** Settings that sized what WAL tells of. */
  readonly limits: ServerLimits;
  readonly blockSizeBytes: number;
  readonly relationSegmentBlocks: number;
  readonly walBlockSizeBytes: number;
  readonly walSegmentSizeBytes: number;
  /** "changing" is what majors after 18 write while checksums are being switched on or off. */
  readonly dataChecksums: "on" | "off" | "changing";
}

/** Relative to the data directory. A restore puts it in place last. */
export const PG_CONTROL_PATH = "global/pg_control";

/** pg_control_version → where the checksum over everything before it stands. */
const CHECKSUM_OFFSETS: ReadonlyMap<number, number> = new Map([
  [1201, 288],
  [1300, 288],
  [1700, 288],
  [1800, 292],
]);

/** Bytes of PG_CONTROL_FILE_SIZE that any version uses at most (PG_CONTROL_MAX_SAFE_SIZE). */
const MAX_SAFE_BYTES = 512;

/** How long to wait before reading again what may have been caught in the middle of a write. */
const REREAD_PAUSE_MS = 20;
const MAX_READS = 50;

/**
 * Reads pg_control of a running or stopped server. The server overwrites the file in place, so a reader can catch half
 * a write; it is read again until its checksum is right or the same wrong bytes come twice.
 *
 * @throws SourceMissingError  there is no such file, or it cannot be read
 * @throws IntegrityError  its checksum is wrong
 * @throws PostgresError  it is of a version that wal-b does not know
 */
export async function readPgControl(dataDirectory: string): Promise<PgControl> {
  return decodePgControl(await readPgControlBytes(dataDirectory), join(dataDirectory, PG_CONTROL_PATH));
}

/**
 * The cluster's identifier alone, without the checksum: it is the first field of every version, and a server that overwrites the
 * file writes the same bytes there.
 *
 * @throws SourceMissingError  there is no such file, or it cannot be read
 * @throws IntegrityError  it is cut off
 */
export function readSystemIdentifier(dataDirectory: string): bigint {
  const path = join(dataDirectory, PG_CONTROL_PATH);
  const bytes = readBytes(path);
  if (bytes.byteLength < MAX_SAFE_BYTES) throw cutOff(bytes, path);
  return bytes.readBigUInt64LE(0);
}

/** By the names in the path of a file in pg_wal, which may be a link to another place; relative where the path is. */
export const dataDirectoryOf = (path: string): string => join(path, "../..");

/** Of the data directory that a file of pg_wal is in; undefined when it is in none. */
export function systemIdentifierBeside(path: string): bigint | undefined {
  try {
    return readSystemIdentifier(dataDirectoryOf(path));
  } catch (error) {
    if (error instanceof Failure) return undefined;
    throw error;
  }
}

/** The whole file with a right checksum, for a backup. Throws as `readPgControl` does. */
export async function readPgControlBytes(dataDirectory: string): Promise<Uint8Array> {
  const path = join(dataDirectory, PG_CONTROL_PATH);
  let previous: Buffer | undefined;
  for (let reads = 1; ; reads++) {
    const bytes = readBytes(path);
    const failure = damageOf(bytes, path);
    if (!failure) return bytes;
    if (failure instanceof PostgresError || previous?.equals(bytes) || reads === MAX_READS) throw failure;
    previous = bytes;
    await Bun.sleep(REREAD_PAUSE_MS);
  }
}

/** @throws as `readPgControl` does, but for the reading */
export function decodePgControl(bytes: Uint8Array, path: string = PG_CONTROL_PATH): PgControl {
  const failure = damageOf(bytes, path);
  if (failure) throw failure;

  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const u32 = (offset: number) => view.getUint32(offset, true);
  const lsn = (offset: number) => asLsn(view.getBigUint64(offset, true));
  const state = STATES[u32(16)];
  if (state === undefined) throw new IntegrityError(`"${path}" is damaged`, { detail: `It has the state ${u32(16)}.` });

  return {
    systemIdentifier: view.getBigUint64(0, true),
    controlVersion: u32(8),
    catalogVersion: u32(12),
    state,
    checkpointLsn: lsn(32),
    redoLsn: lsn(40),
    timeline: u32(48),
    previousTimeline: u32(52),
    minRecoveryLsn: lsn(136),
    minRecoveryTimeline: u32(144),
    backupStartLsn: lsn(152),
    backupEndLsn: lsn(160),
    backupEnd: view.getUint8(168) === 0 ? "not required" : "required",
    limits: {
      max_connections: u32(180),
      max_worker_processes: u32(184),
      max_wal_senders: u32(188),
      max_prepared_transactions: u32(192),
      max_locks_per_transaction: u32(196),
    },
    blockSizeBytes: u32(216),
    relationSegmentBlocks: u32(220),
    walBlockSizeBytes: u32(224),
    walSegmentSizeBytes: u32(228),
    dataChecksums: u32(252) === 0 ? "off" : u32(252) === 1 ? "on" : "changing",
  };
}

function readBytes(path: string): Buffer {
  try {
    return readFileSync(path);
  } catch (cause) {
    const hint =
      systemCodeOf(cause) === "EACCES"
        ? "Run wal-b as the account that owns the data directory, usually postgres."
        : "Check that the path is a PostgreSQL data directory.";
    throw new SourceMissingError(`could not read "${path}"`, { detail: `${reasonOf(cause)}.`, hint, cause });
  }
}

const cutOff = (bytes: Uint8Array, path: string) =>
  new IntegrityError(`"${path}" is damaged`, { detail: `It has only ${bytes.byteLength} bytes.` });

function damageOf(bytes: Uint8Array, path: string): IntegrityError | PostgresError | undefined {
  if (bytes.byteLength < MAX_SAFE_BYTES) return cutOff(bytes, path);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const version = view.getUint32(8, true);
  const checksumOffset = CHECKSUM_OFFSETS.get(version);
  if (checksumOffset === undefined) {
    return new PostgresError(`"${path}" is of an unknown version`, {
      detail: `Its pg_control_version is ${version}; known are ${[...CHECKSUM_OFFSETS.keys()].join(", ")}.`,
      hint: "wal-b supports PostgreSQL 12 to 18 on little-endian machines.",
    });
  }
  if (crc32c(bytes.subarray(0, checksumOffset)) === view.getUint32(checksumOffset, true)) return undefined;
  return new IntegrityError(`"${path}" is damaged`, { detail: "Its checksum does not match its content." });
}
