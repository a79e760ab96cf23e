/** Which table or index a relation file belongs to, as far as one session can tell. */
import type { Connection } from "./connection.ts";
import { ServerError } from "./connection-failure.ts";
import { parseRelationFilePath } from "./relation-file.ts";

/** Of pg_global, whose relations belong to every database. Source: pg_tablespace.dat. */
const GLOBAL_TABLESPACE = 1664;

/**
 * For messages: 'relation public.accounts in database "shop"'. A session sees the relations of its own database and those that
 * all share; of others it can tell the database.
 *
 * @param path  relative to the data directory
 * @returns undefined when the server cannot tell: the file is no relation's any more, or its catalogues are what is damaged
 */
export async function nameRelation(connection: Connection, path: string): Promise<string | undefined> {
  const file = parseRelationFilePath(path);
  if (file === undefined) return undefined;
  const [database, tablespace] = placeOf(path);
  const [row] = await answerOrNothing(() =>
    connection.query<Record<"relation" | "database", string | null>>(
      `SELECT CASE WHEN $1::oid IN (0, current_oid) THEN pg_filenode_relation($2::oid, $3::oid)::regclass END AS relation,
              (SELECT datname FROM pg_database WHERE oid = $1::oid) AS database
         FROM (SELECT oid AS current_oid FROM pg_database WHERE datname = current_database()) AS session`,
      [database, tablespace, file.fileNumber],
    ),
  );
  if (!row?.relation && !row?.database) return undefined;
  return [row.relation ? `relation ${row.relation}` : "a relation", row.database && `in database "${row.database}"`]
    .filter(Boolean)
    .join(" ");
}

/** OIDs of database and tablespace; 0 for no database, and for the database's own tablespace. */
function placeOf(path: string): readonly [database: number, tablespace: number] {
  const parts = path.split("/");
  if (parts[0] === "global") return [0, GLOBAL_TABLESPACE];
  if (parts[0] === "base") return [Number(parts[1]), 0];
  return [Number(parts[3]), Number(parts[1])];
}

async function answerOrNothing<Row>(ask: () => Promise<readonly Row[]>): Promise<readonly Row[]> {
  try {
    return await ask();
  } catch (error) {
    if (error instanceof ServerError) return [];
    throw error;
  }
}
