/** The smallest cluster that has everything a base backup can trip over: a tablespace, a large file, several parts. */
import { type Environment, startArchiving } from "./backups.ts";
import { type PostgresServer, startPostgres } from "./postgres-server.ts";

/** Parts of 2 MB, and an object above 5 MiB is uploaded in S3's parts. */
export const SMALL_PARTS: Environment = {
  WALB_TAR_SIZE_THRESHOLD: "2MB",
  WALB_S3_MAX_PART_SIZE: "5MB",
  WALB_UPLOAD_CONCURRENCY: "2",
  WALB_DOWNLOAD_CONCURRENCY: "2",
};

/**
 * A server with segments of 1 MiB, with a table that does not get smaller in a tablespace,
 * and without the template databases, which are most of a new cluster.
 *
 * @param tableKiB  of the table in the tablespace
 * @param env       where it archives to with the compiled binary; nowhere when left out
 */
export async function startSmallCluster(tableKiB: number, env?: Environment): Promise<PostgresServer> {
  const options = { walSegmentSizeMiB: 1, tablespaces: ["space"] };
  const server = await (env ? startArchiving(env, options) : startPostgres(options));
  await server.query(`
    CREATE EXTENSION pgcrypto;
    CREATE TABLE large (id int, bytes bytea) TABLESPACE space;
    ALTER TABLE large ALTER bytes SET STORAGE EXTERNAL;
    INSERT INTO large SELECT n, gen_random_bytes(1000) FROM generate_series(1, ${tableKiB}) n`);
  await server.query("UPDATE pg_database SET datistemplate = false WHERE datistemplate");
  await server.query("DROP DATABASE template0");
  await server.query("DROP DATABASE template1");
  return server;
}
