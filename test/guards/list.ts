/**
 * The guards of the ten promises.
 *
 * A promise of README.md is as good as the guards behind it, and a guard as the test that fails without it.
 */
import { WAL_GUARDS } from "./archived-wal.ts";
import { BACKUP_GUARDS } from "./backups.ts";
import type { Guard } from "./guard.ts";
import { LIMIT_GUARDS } from "./limits.ts";
import { CONTENT_GUARDS } from "./verified-content.ts";

export const GUARDS: readonly Guard[] = [...WAL_GUARDS, ...CONTENT_GUARDS, ...BACKUP_GUARDS, ...LIMIT_GUARDS];
