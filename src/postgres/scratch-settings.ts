/**
 * The whole configuration of a server on a throw-away copy: it replays WAL, and nothing outside its own directory sees it.
 *
 * Nothing of the restored configuration is read: postgresql.conf may include files, load libraries, archive, stream and listen.
 * What is not set here has PostgreSQL's own initial value, which does none of these. Source: guc_tables.c.
 */
import type { ConfSettings } from "./auto-conf.ts";
import type { PgControl } from "./pg-control.ts";

export interface ScratchServerOptions {
  readonly major: number;
  readonly dataDirectory: string;
  readonly socketDirectory: string;
  readonly hbaFile: string;
  readonly identFile: string;
  readonly control: Pick<PgControl, "limits" | "walSegmentSizeBytes">;
  /** What recovery is told. */
  readonly recovery: ConfSettings;
}

export const SCRATCH_PORT = 5432;

/** Who may enter the directory of the socket may do anything: nobody but the owner, and root. */
export const SCRATCH_HBA = "local all all trust\n";

/** More prepared transactions than pg_control tells of may come while WAL is replayed: the limit may have been raised since. */
const LEAST_PREPARED_TRANSACTIONS = 100;
/** Progress of logical replication is restored at the start, one entry for each origin (StartupReplicationOrigin). */
const REPLICATION_ORIGINS = 1000;

const MiB = 2 ** 20;
/** The server starts with none that is below two segments (ReadControlFile in xlog.c), which its own of 80 MB is from 64 MiB on. */
const leastWalBytes = (segmentBytes: number) => 2 * segmentBytes;

/** How much WAL the server keeps of what it has replayed: its own max_wal_size, or the least that it starts with. */
export const mostWalBytes = (segmentBytes: number): number => Math.max(1024 * MiB, leastWalBytes(segmentBytes));

export function scratchSettings(options: ScratchServerOptions): ConfSettings {
  const { major, dataDirectory, socketDirectory, hbaFile, identFile, control, recovery } = options;
  const { limits, walSegmentSizeBytes } = control;
  const settings = {
    data_directory: dataDirectory,
    hba_file: hbaFile,
    ident_file: identFile,
    listen_addresses: "",
    port: SCRATCH_PORT,
    unix_socket_directories: `"${socketDirectory.replaceAll('"', '""')}"`,
    unix_socket_permissions: "0700",
    archive_mode: "off",
    ...limits,
    max_prepared_transactions: Math.max(limits.max_prepared_transactions, LEAST_PREPARED_TRANSACTIONS),
    max_replication_slots: REPLICATION_ORIGINS,
    ...(major >= 18 && { max_active_replication_origins: REPLICATION_ORIGINS }),
    min_wal_size: `${leastWalBytes(walSegmentSizeBytes) / MiB}MB`,
    max_wal_size: `${mostWalBytes(walSegmentSizeBytes) / MiB}MB`,
    // With it on, replay stops where the source raised one of its limits (CheckRequiredParameterValues).
    hot_standby: "off",
    max_logical_replication_workers: 0,
    autovacuum: "off",
    synchronous_commit: "off",
    ...(major >= 17 && { event_triggers: "off" }),
    jit: "off",
    huge_pages: "off",
    // A file below the data directory; segments in /dev/shm would outlive a killed server.
    dynamic_shared_memory_type: "mmap",
    restart_after_crash: "off",
    logging_collector: "off",
    log_destination: "stderr",
    log_line_prefix: "%m ",
    log_timezone: "UTC",
    lc_messages: "C",
  };
  const own = Object.entries(settings).map(([name, value]) => [name, String(value)] as const);
  return [...own, ...recovery];
}
