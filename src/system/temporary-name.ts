/**
 * How the name of a file begins that is on its way to its own; a killed process leaves some.
 *
 * As PostgreSQL's own temporary files in pg_wal do: a server that starts removes them there (xlog.c, RemoveTempXlogFiles).
 */
export const TEMPORARY_NAME = "xlogtemp.walb.";
