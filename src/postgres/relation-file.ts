/** Names of the files that hold tables and indexes. Source: GetRelationPath() in relpath.c; manual, "Database File Layout". */

export type RelationFork = "main" | "fsm" | "vm" | "init";

export interface RelationFile {
  /** pg_class.relfilenode; not the table's OID after a rewrite. */
  readonly fileNumber: number;
  readonly fork: RelationFork;
  /** The n-th gigabyte of the relation. */
  readonly segment: number;
}

const NAME = /^([1-9]\d*)(?:_(fsm|vm|init))?(?:\.([1-9]\d*))?$/;

/** Directories of databases, and of the tables that all databases share. */
const DATABASE_DIRECTORY = /^(?:global|base\/\d+|pg_tblspc\/\d+\/PG_\d+_\d+\/\d+)$/;

/** t<backend>_<file number>: a temporary table, worthless without its session. */
const TEMPORARY_RELATION = /^t\d+_\d+(?:_(?:fsm|vm|init))?(?:\.\d+)?$/;

/** A file's name, without its directory; undefined when it is no relation's. */
export function parseRelationFileName(name: string): RelationFile | undefined {
  const [, fileNumber, fork = "main", segment = "0"] = NAME.exec(name) ?? [];
  if (fileNumber === undefined) return undefined;
  return { fileNumber: Number(fileNumber), fork: fork as RelationFork, segment: Number(segment) };
}

/** @param path  relative to the data directory, tablespaces as "pg_tblspc/OID/…" */
export function parseRelationFilePath(path: string): RelationFile | undefined {
  const slash = path.lastIndexOf("/");
  return isDatabaseDirectory(path.slice(0, Math.max(slash, 0)))
    ? parseRelationFileName(path.slice(slash + 1))
    : undefined;
}

/** Whether the file consists of pages that have checksums. */
export const isRelationFile = (path: string): boolean => parseRelationFilePath(path) !== undefined;

/** @param path  relative to the data directory */
export const isDatabaseDirectory = (path: string): boolean => DATABASE_DIRECTORY.test(path);

export const isTemporaryRelation = (name: string): boolean => TEMPORARY_RELATION.test(name);
