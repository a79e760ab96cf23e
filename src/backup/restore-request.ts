/** What restore is asked for, and what it works with. */
import type { RecoveryTarget } from "../postgres/recovery-target.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { BackupFetchContext } from "./fetch.ts";

export type TargetAction = "pause" | "promote" | "shutdown";

export interface RestoreRequest {
  readonly target: RecoveryTarget;
  readonly timeline: number | "latest";
  /** What the server does at the target; of no meaning at the end of the archive. */
  readonly action: TargetAction;
  readonly role: "primary" | "standby";
  /** Instead of the one that would be chosen. */
  readonly backup: string | undefined;
  /** For the settings, %f and %p in it. */
  readonly restoreCommand: string;
}

export interface RestoreContext extends BackupFetchContext {
  readonly archive: WalArchive;
}
