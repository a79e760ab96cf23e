/** What a whole server holds, as text that two servers can be compared by: every row, every definition, and sound indexes. */
import type { PostgresServer } from "./postgres-server.ts";

/** Name of what is compared → rows and a hash over them. Equal for two servers that hold the same. */
export type Fingerprint = Readonly<Record<string, string>>;

const OURS = "nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'";
const RELATION = "format('%I.%I', nspname, relname)";
const RELATIONS = `pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE ${OURS}`;

/** Of the whole cluster. */
const CLUSTER: Readonly<Record<string, string>> = {
  roles: "SELECT rolname, rolsuper, rolcanlogin FROM pg_roles",
  databases: "SELECT datname, pg_get_userbyid(datdba), datconnlimit, datallowconn, datacl FROM pg_database",
  tablespaces: "SELECT spcname, pg_get_userbyid(spcowner) FROM pg_tablespace",
  "settings of databases and roles": "SELECT * FROM pg_db_role_setting",
  "comments on what is shared": "SELECT * FROM pg_shdescription",
};

/** Of each database: everything that pg_dump would write. Text and no OIDs, where PostgreSQL can give it. */
const DEFINITIONS: Readonly<Record<string, string>> = {
  relations: `SELECT ${RELATION}, relkind, relpersistence, relacl, reloptions, spcname, pg_get_userbyid(relowner),
    pg_get_viewdef(CASE WHEN relkind IN ('v', 'm') THEN c.oid END), pg_get_partkeydef(c.oid), pg_get_expr(relpartbound, c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace LEFT JOIN pg_tablespace s ON s.oid = reltablespace WHERE ${OURS}`,
  columns: `SELECT ${RELATION}, attnum, attname, format_type(atttypid, atttypmod), attnotnull, attisdropped,
    pg_get_expr(adbin, adrelid) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN pg_namespace n ON n.oid = relnamespace
    LEFT JOIN pg_attrdef d ON adrelid = attrelid AND adnum = attnum WHERE attnum > 0 AND ${OURS}`,
  indexes: `SELECT ${RELATION}, pg_get_indexdef(indexrelid), indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid
    JOIN pg_namespace n ON n.oid = relnamespace WHERE ${OURS}`,
  constraints: `SELECT conname, conrelid::regclass, pg_get_constraintdef(k.oid) FROM pg_constraint k
    JOIN pg_namespace n ON n.oid = connamespace WHERE ${OURS}`,
  functions: `SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
    WHERE prokind <> 'a' AND ${OURS}`,
  triggers: "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
  types: `SELECT nspname, typname, typtype, enumlabel FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace
    LEFT JOIN pg_enum e ON enumtypid = t.oid WHERE ${OURS}`,
  extensions: "SELECT extname, extversion FROM pg_extension",
  comments: "SELECT * FROM pg_description WHERE objoid >= 16384",
  "large objects": "SELECT loid, pageno, data FROM pg_largeobject",
};

/** Every permanent table, materialised view and sequence of every database, and what defines them. */
export async function fingerprintOf(server: PostgresServer): Promise<Fingerprint> {
  const found: Record<string, string> = {};
  await addTo(found, server, { database: server.database, prefix: "", queries: CLUSTER });
  for (const database of await databasesOf(server)) {
    const names = await listOf(
      server,
      database,
      `SELECT ${RELATION} FROM ${RELATIONS} AND relkind IN ('r', 'm', 'S') AND relpersistence = 'p'`,
    );
    const contents = Object.fromEntries(names.map((name) => [name, `SELECT * FROM ${name}`]));
    await addTo(found, server, { database, prefix: `${database}: `, queries: { ...DEFINITIONS, ...contents } });
  }
  return found;
}

/**
 * amcheck over every B-tree, with every row of its table, and from PostgreSQL 14 over every table with its TOAST.
 *
 * @returns how many of both were read
 * @throws Error  what amcheck found
 */
export async function checkPages(server: PostgresServer): Promise<{ indexes: number; tables: number }> {
  const read = { indexes: 0, tables: 0 };
  for (const database of await databasesOf(server)) {
    await using session = await server.connect(database);
    // template1, which nobody has made it for.
    if ((await session.query("SELECT FROM pg_extension WHERE extname = 'amcheck'")).rows.length === 0) continue;
    const { rows: indexes } = await session.query(
      `SELECT bt_index_check(c.oid, true) FROM pg_class c JOIN pg_am a ON a.oid = relam
        WHERE relkind = 'i' AND amname = 'btree' AND relpersistence = 'p'`,
    );
    read.indexes += indexes.length;
    if (server.major < 14) continue;
    const { rows: tables } = await session.query<{ name: string; wrong: string | null }>(
      `SELECT c.oid::regclass AS name, (SELECT string_agg(f::text, chr(10)) FROM verify_heapam(c.oid, check_toast => true) f) AS wrong
         FROM pg_class c WHERE relkind IN ('r', 'm', 't') AND relpersistence = 'p'`,
    );
    read.tables += tables.length;
    const damaged = tables.filter(({ wrong }) => wrong !== null);
    if (damaged.length > 0)
      throw new Error(damaged.map(({ name, wrong }) => `${database}: ${name}: ${wrong}`).join("\n"));
  }
  return read;
}

async function databasesOf(server: PostgresServer): Promise<readonly string[]> {
  return await listOf(server, server.database, "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname");
}

async function listOf(server: PostgresServer, database: string, sql: string): Promise<readonly string[]> {
  return (await server.psql(sql, database)).split("\n").filter(Boolean);
}

async function addTo(
  found: Record<string, string>,
  server: PostgresServer,
  { database, prefix, queries }: { database: string; prefix: string; queries: Readonly<Record<string, string>> },
): Promise<void> {
  await using session = await server.connect(database);
  for (const [name, sql] of Object.entries(queries)) {
    const { rows } = await session.query<{ text: string }>(
      `SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(line, chr(10) ORDER BY line)), 'no hash') AS text
         FROM (SELECT (content.*)::text COLLATE "C" AS line FROM (${sql}) AS content) AS lines`,
    );
    found[prefix + name] = rows[0]?.text ?? "";
  }
}
