/** A database with something of everything in it, work that goes on in it, and moments that a restore can be asked for. */
import { type Fingerprint, fingerprintOf } from "./fingerprint.ts";
import type { PostgresServer } from "./postgres-server.ts";

/** @param tablespace  for a part of it */
export async function fillDatabase(server: PostgresServer, tablespace?: string): Promise<void> {
  const elsewhere = tablespace === undefined ? "" : `TABLESPACE ${tablespace}`;
  await server.query("CREATE DATABASE second");
  for (const database of ["postgres", "second"]) {
    await using session = await server.connect(database);
    await session.query("CREATE EXTENSION amcheck");
  }
  await using second = await server.connect("second");
  await second.query("CREATE TABLE there AS SELECT n AS id, md5(n::text) AS note FROM generate_series(1, 2000) n");
  await server.query(`
    CREATE ROLE reader; ALTER ROLE reader SET work_mem = '5MB'; COMMENT ON DATABASE second IS 'the second';
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text NOT NULL);
    CREATE TABLE history (id serial PRIMARY KEY, account int NOT NULL REFERENCES accounts, delta bigint NOT NULL) ${elsewhere};
    CREATE INDEX by_account ON history (account) ${elsewhere}; CREATE INDEX by_hash ON history USING hash (delta);
    CREATE TABLE documents (id int, words text[], body text); ALTER TABLE documents ALTER body SET STORAGE EXTERNAL;
    CREATE INDEX by_word ON documents USING gin (words);
    CREATE TABLE ranged (at date, m mood) PARTITION BY RANGE (at);
    CREATE TABLE ranged_new PARTITION OF ranged FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) ${elsewhere};
    CREATE TABLE ranged_old PARTITION OF ranged FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
    CREATE UNLOGGED TABLE forgotten AS SELECT generate_series(1, 1000) AS id;
    CREATE VIEW rich AS SELECT id, balance FROM accounts WHERE balance > 0; GRANT SELECT ON rich TO reader;
    CREATE FUNCTION total() RETURNS numeric LANGUAGE sql AS 'SELECT sum(balance) FROM accounts';
    INSERT INTO accounts SELECT n, 0, md5(n::text) FROM generate_series(1, 10000) n;
    INSERT INTO documents SELECT n, ARRAY[md5(n::text), 'word'], repeat(md5(n::text), 300) FROM generate_series(1, 60) n;
    INSERT INTO ranged SELECT date '2019-12-01' + n, 'ok' FROM generate_series(1, 60) n;
    CREATE MATERIALIZED VIEW dates AS SELECT at FROM ranged;
    SELECT lo_from_bytea(4242, convert_to(repeat('large', 2000), 'UTF8'));
    CREATE TABLE moments (number int PRIMARY KEY); CREATE TABLE between_moments (number int)`);
}

export interface Work extends AsyncDisposable {
  /** Transactions and changes of definitions so far. */
  readonly done: { transactions: number; definitions: number };
  /** @throws Error  what stopped it before. Dispose it instead after the server was killed. */
  stop(): Promise<void>;
}

/** So that a slow machine, on which everything takes longer, has not that much more to recover. */
const PAUSE_MS = 5;

/**
 * Two sessions that move money, with one row in `history` for each change of a balance, and one that makes, changes, rewrites
 * and drops tables, until it is stopped.
 */
export function startWork(server: PostgresServer): Work {
  const done = { transactions: 0, definitions: 0 };
  let stopped = false;
  let failure: unknown;

  const moveMoney = async (seed: number) => {
    await using session = await server.connect();
    for (let turn = seed; !stopped; turn += 2, done.transactions++) {
      const account = ((turn * 7919) % 10000) + 1;
      await session.query(
        `BEGIN; UPDATE accounts SET balance = balance + ${turn} WHERE id = ${account};
         INSERT INTO history (account, delta) VALUES (${account}, ${turn}); COMMIT`,
      );
      await Bun.sleep(PAUSE_MS);
    }
  };
  const changeDefinitions = async () => {
    await using session = await server.connect();
    for (let turn = 1; !stopped; turn++, done.definitions++) {
      const name = `passing_${turn % 3}`;
      await session.query(`
        DROP TABLE IF EXISTS ${name};
        CREATE TABLE ${name} AS SELECT n AS id, md5(n::text) AS note FROM generate_series(1, ${100 + turn}) n;
        ALTER TABLE ${name} ADD COLUMN added int DEFAULT ${turn}, ADD PRIMARY KEY (id);
        TRUNCATE ranged_old; INSERT INTO ranged VALUES ('2019-01-01', 'sad');
        REFRESH MATERIALIZED VIEW dates`);
      await session.query(turn % 4 === 0 ? "VACUUM FULL documents" : `VACUUM ${name}`);
      await Bun.sleep(40 * PAUSE_MS);
    }
  };
  // Kept for stop(), which tells it.
  const working = Promise.all([moveMoney(1), moveMoney(2), changeDefinitions()]).catch((error: unknown) => {
    failure = error;
  });
  const end = async () => {
    stopped = true;
    await working;
  };
  return {
    done,
    async stop() {
      await end();
      if (failure) throw failure;
    },
    [Symbol.asyncDispose]: end,
  };
}

/** Every row of history is in a balance, whatever moment it is, and nothing is half there. */
export async function isConsistent(server: PostgresServer): Promise<boolean> {
  const sums = "SELECT (SELECT coalesce(sum(delta), 0) FROM history) = (SELECT sum(balance) FROM accounts)";
  return (await server.psql(sums)) === "t";
}

export interface Moment {
  /** What restore can be told; see docs/restore.md. */
  readonly lsn: string;
  readonly time: string;
  readonly xid: string;
  readonly name: string;
  readonly holds: Fingerprint;
}

/** A transaction, behind which there is a moment of which every row is known. Nothing else may write. */
export async function momentOf(server: PostgresServer, number: number): Promise<Moment> {
  const name = `moment ${number}`;
  // A sequence is ahead of what it gave, in WAL: here both are the same.
  await server.query("SELECT setval(oid::regclass, nextval(oid::regclass)) FROM pg_class WHERE relkind = 'S'");
  const xid = await server.psql(`INSERT INTO moments VALUES (${number}) RETURNING xmin`);
  const time = await server.psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
  await server.query(`SELECT pg_create_restore_point('${name}')`);
  const lsn = await server.psql("SELECT pg_current_wal_insert_lsn()");
  const holds = await fingerprintOf(server);
  // Recovery to an LSN goes to the end of the record that begins there: this one.
  await server.query("SELECT pg_logical_emit_message(false, 'test', 'after the moment')");
  // Recovery to a time goes as far as the commit after it, and what changes without one, as sequences do, is in by then.
  await server.query(`INSERT INTO between_moments VALUES (${number})`);
  return { lsn, time: `${time}Z`, xid, name: `name:${name}`, holds };
}
