/**
 * Whether a restored server's data can be read: every database takes connections, every table is read, and with amcheck every
 * B-tree is compared with its table. Nothing that a user wrote is run: no function, no trigger.
 */
import { PostgresError } from "../errors.ts";
import type { Connection } from "../postgres/connection.ts";
import { ServerError } from "../postgres/connection-failure.ts";
import type { DrillChecks, DrillFinding } from "../repository/drill-result.ts";
import type { Log } from "../system/log.ts";

export interface CheckContext {
  readonly major: number;
  /** As a superuser. @throws PostgresError  the server refuses */
  readonly connect: (database: string) => Promise<Connection>;
  /** That has let us in before. */
  readonly firstDatabase: string;
  readonly log: Log;
  readonly now: () => Date;
  readonly signal: AbortSignal;
}

export interface Checked {
  readonly checks: DrillChecks;
  readonly findings: readonly DrillFinding[];
  readonly otherFindings: number;
  readonly notes: readonly string[];
}

const MAX_FINDINGS = 100;
/** Relations whose names are in memory at once. */
const BATCH = 1000;
const TELL_EVERY_MS = 15_000;

export async function checkServer(context: CheckContext): Promise<Checked> {
  const { now, connect, firstDatabase } = context;
  const begun = now().getTime();
  const tally = new Tally(context);
  let names: readonly DatabaseRow[];
  {
    await using session = await connect(firstDatabase);
    await rollBackPrepared(session, context, tally);
    names = await databasesOf(session, tally);
    await rollBackPrepared(session, context, tally);
  }
  for (const { name } of names) {
    if (!(await checkDatabase(name, tally, context))) break;
  }
  return tally.checked(now().getTime() - begun);
}

interface DatabaseRow {
  readonly name: string;
}

/**
 * They hold their locks, and here nobody would ever end them: what they locked could not be checked. One can only be ended in its own
 * database: those that refuse everybody follow when they do not any more.
 */
async function rollBackPrepared(first: Connection, { connect, signal }: CheckContext, tally: Tally): Promise<void> {
  const databases = await first.query<{ name: string }>(
    `SELECT DISTINCT datname AS name
       FROM pg_catalog.pg_prepared_xacts JOIN pg_catalog.pg_database ON datname = database
      WHERE datallowconn AND datconnlimit <> -2`,
  );
  for (const { name } of databases) {
    try {
      await using session = await connect(name);
      const prepared = await session.query<{ gid: string }>(
        `SELECT pg_catalog.quote_literal(gid) AS gid FROM pg_catalog.pg_prepared_xacts
          WHERE database = pg_catalog.current_database()`,
      );
      for (const { gid } of prepared) await session.query(`ROLLBACK PREPARED ${gid}`);
      tally.notes.push(`In the copy, prepared transactions of "${name}" were rolled back: ${prepared.length}.`);
    } catch (error) {
      signal.throwIfAborted();
      if (!(error instanceof PostgresError)) throw error;
      const problem = `its prepared transactions could not be rolled back: ${error.message}`;
      tally.add({ database: name, problem, detail: error.detail });
    }
  }
}

/** Lets us into those that refuse everybody, such as template0. */
async function databasesOf(session: Connection, tally: Tally): Promise<readonly DatabaseRow[]> {
  const rows = await session.query<DatabaseRow & { readonly quoted: string; readonly state: string }>(
    `SELECT datname AS name, pg_catalog.quote_ident(datname) AS quoted,
            CASE WHEN datconnlimit = -2 THEN 'half dropped' WHEN datallowconn THEN 'open' ELSE 'closed' END AS state
       FROM pg_catalog.pg_database ORDER BY oid`,
  );
  for (const { name, quoted, state } of rows) {
    if (state === "closed") await session.query(`ALTER DATABASE ${quoted} ALLOW_CONNECTIONS true`);
    if (state === "half dropped") tally.notes.push(`A DROP DATABASE of "${name}" had failed: it was not checked.`);
  }
  return rows.filter(({ state }) => state !== "half dropped");
}

/** @returns whether the server goes on */
async function checkDatabase(database: string, tally: Tally, context: CheckContext): Promise<boolean> {
  const { connect, signal } = context;
  let at: string | undefined;
  try {
    await using session = await connect(database);
    await withoutEventTriggers(session, context.major);
    const amcheck = await useAmcheck(session, database, tally);
    for await (const relation of relationsOf(session, tally.databases === 0)) {
      at = relation.name;
      await checkRelation(relation, amcheck, { database, session, tally, major: context.major });
    }
    tally.databases++;
    return true;
  } catch (error) {
    signal.throwIfAborted();
    if (!(error instanceof PostgresError)) throw error;
    tally.add({ database, relation: at, problem: error.message, detail: error.detail });
    // A statement that fails leaves the server as it is; a session that is lost says that it crashed.
    return at === undefined || error instanceof ServerError;
  }
}

/** Before 17 there is no setting for it, and CREATE EXTENSION would run them. ALTER EVENT TRIGGER itself runs none. */
async function withoutEventTriggers(session: Connection, major: number): Promise<void> {
  if (major >= 17) return;
  const triggers = await session.query<{ name: string }>(
    "SELECT pg_catalog.quote_ident(evtname) AS name FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D'",
  );
  for (const { name } of triggers) await session.query(`ALTER EVENT TRIGGER ${name} DISABLE`);
}

/** @returns the schema with its functions, quoted; undefined where it is not installed beside the server */
async function useAmcheck(session: Connection, database: string, tally: Tally): Promise<string | undefined> {
  const [available] = await session.query("SELECT FROM pg_catalog.pg_available_extensions WHERE name = 'amcheck'");
  if (available === undefined) return undefined;
  const installed = async () =>
    await session.query<{ schema: string; version: string }>(
      `SELECT pg_catalog.quote_ident(nspname) AS schema, extversion AS version
         FROM pg_catalog.pg_extension AS e JOIN pg_catalog.pg_namespace AS n ON n.oid = extnamespace
        WHERE extname = 'amcheck'`,
    );
  try {
    if ((await installed()).length === 0) {
      await session.query("CREATE SCHEMA walb_drill");
      await session.query("CREATE EXTENSION amcheck SCHEMA walb_drill");
    } else {
      await session.query("ALTER EXTENSION amcheck UPDATE");
    }
    const [found] = await installed();
    tally.amcheck = found?.version;
    return found?.schema;
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    tally.add({ database, problem: `amcheck could not be installed: ${error.message}`, detail: error.detail });
    return undefined;
  }
}

interface Relation {
  readonly oid: string;
  /** With its schema, quoted. */
  readonly name: string;
  readonly kind: "table" | "sequence" | "btree" | "other index" | "other table";
  readonly bytes: string;
  /** Of an index: whether it calls functions. */
  readonly computes: "t" | "f";
}

/** Those of a session that is gone have no files; shared ones are the same in every database. */
async function* relationsOf(session: Connection, withShared: boolean): AsyncGenerator<Relation> {
  for (let after = "0"; ; ) {
    const batch = await session.query<Relation>(
      `SELECT c.oid, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS name,
              CASE WHEN c.relkind = 'S' THEN 'sequence' WHEN c.relkind = 'i' AND a.amname = 'btree' THEN 'btree'
                   WHEN c.relkind = 'i' THEN 'other index' WHEN a.amname = 'heap' THEN 'table' ELSE 'other table' END AS kind,
              coalesce(pg_catalog.pg_relation_size(c.oid), 0) AS bytes,
              i.indexprs IS NOT NULL OR i.indpred IS NOT NULL AS computes
         FROM pg_catalog.pg_class AS c
         JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
         LEFT JOIN pg_catalog.pg_am AS a ON a.oid = c.relam
         LEFT JOIN pg_catalog.pg_index AS i ON i.indexrelid = c.oid
        WHERE c.oid > $1 AND c.relkind IN ('r', 't', 'm', 'S', 'i') AND c.relpersistence <> 't'
          AND (c.relkind <> 'm' OR c.relispopulated) AND (c.relkind <> 'i' OR i.indisvalid AND i.indisready)
          AND (NOT c.relisshared OR $2)
        ORDER BY c.oid LIMIT ${BATCH}`,
      [after, withShared],
    );
    yield* batch;
    const last = batch.at(-1);
    if (last === undefined || batch.length < BATCH) return;
    after = last.oid;
  }
}

interface At {
  readonly database: string;
  readonly session: Connection;
  readonly tally: Tally;
  readonly major: number;
}

async function checkRelation(relation: Relation, amcheck: string | undefined, at: At): Promise<void> {
  const { database, session, tally, major } = at;
  const { name, oid, kind, computes } = relation;
  if (!tally.counts(relation, amcheck !== undefined)) return;
  try {
    if (kind === "btree") {
      // With heapallindexed the index's own expressions would be run.
      await session.query(`SELECT ${amcheck}.bt_index_check($1::oid::regclass, $2)`, [oid, computes === "f"]);
    } else if (kind === "table" && amcheck !== undefined && major >= 14) {
      const damage = await session.query<{ block: string; message: string }>(
        `SELECT blkno AS block, msg AS message
           FROM ${amcheck}.verify_heapam($1::oid::regclass, on_error_stop => true, check_toast => true) LIMIT 1`,
        [oid],
      );
      for (const { block, message } of damage)
        tally.add({ database, relation: name, problem: `block ${block}: ${message}` });
    } else {
      // Not count(*), which an index could answer.
      await session.query(`SELECT pg_catalog.count(content.ctid) FROM ONLY ${name} AS content`);
    }
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    tally.add({ database, relation: name, problem: error.message, detail: error.detail });
  }
}

/** What was checked and found. */
class Tally {
  databases = 0;
  amcheck: string | undefined;
  readonly notes: string[] = [];
  readonly #findings: DrillFinding[] = [];
  readonly #log: Log;
  readonly #now: () => Date;
  #others = 0;
  #relations = 0;
  #indexes = 0;
  #bytes = 0n;
  #otherIndexes = 0;
  #otherTables = 0;
  #told: number;

  constructor({ log, now }: Pick<CheckContext, "log" | "now">) {
    [this.#log, this.#now, this.#told] = [log, now, now().getTime()];
  }

  add(finding: DrillFinding): void {
    if (this.#findings.length < MAX_FINDINGS) this.#findings.push(finding);
    else this.#others++;
  }

  /** @returns whether it is one that can be checked */
  counts({ kind, name, bytes }: Relation, hasAmcheck: boolean): boolean {
    const now = this.#now().getTime();
    if (now - this.#told >= TELL_EVERY_MS) {
      this.#told = now;
      this.#log.info(`checking ${name}: ${this.#relations} tables and ${this.#indexes} indexes so far`);
    }
    if (kind === "other table") this.#otherTables++;
    else if (kind === "other index") this.#otherIndexes++;
    else if (kind !== "btree") this.#relations++;
    else if (hasAmcheck) this.#indexes++;
    const isChecked = kind !== "other table" && kind !== "other index" && (kind !== "btree" || hasAmcheck);
    if (isChecked) this.#bytes += BigInt(bytes);
    return isChecked;
  }

  checked(ms: number): Checked {
    const { databases, amcheck } = this;
    const notes = [
      ...this.notes,
      ...(amcheck === undefined
        ? ["amcheck is not installed beside the server: tables were read, indexes were not checked."]
        : []),
      ...(this.#otherIndexes > 0 ? [`Indexes that are no B-trees were not checked: ${this.#otherIndexes}.`] : []),
      ...(this.#otherTables > 0
        ? [`Tables of other access methods than heap were not checked: ${this.#otherTables}.`]
        : []),
    ];
    const checks = { databases, relations: this.#relations, indexes: this.#indexes, bytes: this.#bytes, amcheck, ms };
    return { checks, findings: this.#findings, otherFindings: this.#others, notes };
  }
}
