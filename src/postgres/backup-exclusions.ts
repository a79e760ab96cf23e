/**
 * What a base backup leaves out, by name: everything that the server throws away or makes anew when it starts, and
 * everything that would harm a restored copy. Source: excludeDirContents[], excludeFiles[] and sendDir() in basebackup.c.
 */
import { isDatabaseDirectory, isTemporaryRelation, parseRelationFileName } from "./relation-file.ts";

/** The server empties these when it starts, but needs most of them to be there. */
const EMPTIED_DIRECTORIES = new Set([
  "pg_dynshmem",
  "pg_notify",
  "pg_replslot",
  "pg_serial",
  "pg_snapshots",
  "pg_stat_tmp",
  "pg_subtrans",
]);

const LEFT_OUT_AT_TOP = new Set([
  "postmaster.pid",
  "postmaster.opts",
  "postgresql.auto.conf.tmp",
  "current_logfiles.tmp",
  // Labels of an earlier backup; the server's own come with the stop.
  "backup_label",
  "backup_label.old",
  "backup_label.tmp",
  "tablespace_map",
  "tablespace_map.old",
  "backup_manifest",
  "backup_manifest.tmp",
  // A restore decides what the copy becomes.
  "recovery.signal",
  "standby.signal",
  // State of archivers beside or instead of pg_wal.
  ".wal-b",
  ".wal-e",
  ".wal-g",
  "walg_data",
]);

const LEFT_OUT_ANYWHERE = new Set(["lost+found", ".DS_Store"]);

/** Put in place last by a restore, and so no part of the walk. */
const PG_CONTROL = "global/pg_control";

/** @param path  of a directory, relative to the data directory */
export const isEmptiedDirectory = (path: string): boolean => EMPTIED_DIRECTORIES.has(path);

/**
 * Filters one directory. Takes all of its names at once, because a relation is unlogged when one of its files has the
 * fork "init": then that fork alone is kept, from which recovery makes the others (ResetUnloggedRelations() in reinit.c). A
 * copy of a stopped server may start without recovery, and then needs them all.
 *
 * @param directory  relative to the data directory, "" for itself
 */
export function namesToBackUp(directory: string, names: readonly string[], server: "running" | "stopped"): string[] {
  const isDatabase = isDatabaseDirectory(directory);
  const unlogged = isDatabase && server === "running" ? unloggedRelations(names) : undefined;

  return names.filter((name) => {
    if (LEFT_OUT_ANYWHERE.has(name) || name.startsWith("pgsql_tmp") || name.startsWith("pg_internal.init"))
      return false;
    if (directory === "") return !LEFT_OUT_AT_TOP.has(name);
    if (!isDatabase) return true;

    if (isTemporaryRelation(name) || `${directory}/${name}` === PG_CONTROL) return false;
    const relation = parseRelationFileName(name);
    return !relation || relation.fork === "init" || !unlogged?.has(relation.fileNumber);
  });
}

function unloggedRelations(names: readonly string[]): ReadonlySet<number> {
  const found = new Set<number>();
  for (const name of names) {
    const relation = parseRelationFileName(name);
    if (relation?.fork === "init") found.add(relation.fileNumber);
  }
  return found;
}
