/** What a backup must know about the server that it is connected to. */
import { PostgresError } from "../errors.ts";
import type { Connection } from "./connection.ts";
import { ServerError } from "./connection-failure.ts";
import { isSegmentSize, type SegmentSize } from "./wal-segment.ts";

export interface ServerFacts {
  /** server_version_num: 150018 is 15.18. */
  readonly serverVersion: number;
  readonly majorVersion: number;
  readonly systemIdentifier: bigint;
  /** As the server sees it. */
  readonly dataDirectory: string;
  readonly walSegmentSizeBytes: SegmentSize;
  readonly role: "primary" | "standby";
  readonly dataChecksums: "on" | "off";
}

/** SQLSTATE insufficient_privilege. */
const NOT_PERMITTED = "42501";

/** @throws PostgresError  the role may not ask; the hint says which right is missing */
export async function readServerFacts(connection: Connection): Promise<ServerFacts> {
  const [row] = await connection.query<Record<keyof typeof COLUMNS, string>>(
    `SELECT ${Object.entries(COLUMNS).map(([name, expression]) => `${expression} AS "${name}"`)}`,
  );
  const walSegmentSizeBytes = Number(row?.walSegmentSizeBytes);
  if (!row || !isSegmentSize(walSegmentSizeBytes)) {
    throw new PostgresError("could not read the server's properties", {
      detail: `wal_segment_size is ${row?.walSegmentSizeBytes}.`,
    });
  }

  return {
    serverVersion: connection.serverVersion,
    majorVersion: connection.majorVersion,
    // SQL has no unsigned 64-bit numbers.
    systemIdentifier: BigInt.asUintN(64, BigInt(row.systemIdentifier)),
    dataDirectory: await readDataDirectory(connection),
    walSegmentSizeBytes,
    role: row.inRecovery === "t" ? "standby" : "primary",
    dataChecksums: row.dataChecksums === "on" ? "on" : "off",
  };
}

const COLUMNS = {
  systemIdentifier: "(SELECT system_identifier FROM pg_control_system())",
  inRecovery: "pg_is_in_recovery()",
  walSegmentSizeBytes: "(SELECT setting FROM pg_settings WHERE name = 'wal_segment_size')",
  dataChecksums: "current_setting('data_checksums')",
};

/**
 * Where the server's files are, as the server sees it.
 *
 * @throws PostgresError  the role may not ask
 */
export async function readDataDirectory(connection: Connection): Promise<string> {
  try {
    const [row] = await connection.query<{ directory: string }>(
      "SELECT current_setting('data_directory') AS directory",
    );
    return row?.directory ?? "";
  } catch (error) {
    if (!(error instanceof ServerError) || error.sqlState !== NOT_PERMITTED) throw error;
    throw new PostgresError(`role "${connection.user}" may not see where the data directory is`, {
      detail: `${error.message}.`,
      hint: `Run as a superuser: GRANT pg_read_all_settings TO ${quoteIdentifier(connection.user)};`,
      cause: error,
    });
  }
}

export const isNotPermitted = (error: unknown): error is ServerError =>
  error instanceof ServerError && error.sqlState === NOT_PERMITTED;

export const quoteIdentifier = (name: string): string =>
  /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
