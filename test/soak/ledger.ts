/** Work for a server under test: transactions whose order and completeness can be proved afterwards, by a number and a chain of hashes. */
import type { PostgresServer } from "../support/postgres-server.ts";

const TABLES = `
  CREATE TABLE ledger (id bigint PRIMARY KEY, hash text NOT NULL, filler text NOT NULL);
  CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
  INSERT INTO accounts SELECT n, 0 FROM generate_series(1, 100) n`;

/** One entry, which names the one before, and one transfer. About 4 kB of WAL, so that segments of 1 MiB fill. */
const entry = (from: number, to: number) => `
  BEGIN;
  INSERT INTO ledger
    SELECT coalesce(max(id), 0) + 1, md5(coalesce((SELECT hash FROM ledger ORDER BY id DESC LIMIT 1), '') || coalesce(max(id), 0) + 1),
           (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 100))
      FROM ledger RETURNING id;
  UPDATE accounts SET balance = balance - 1 WHERE id = ${from};
  UPDATE accounts SET balance = balance + 1 WHERE id = ${to};
  COMMIT`;

/** What is wrong with the tables; one row, "0 0 0 <entries>" when nothing is. */
const FAULTS = `
  SELECT count(*) FILTER (WHERE id <> number) || ' ' ||
         count(*) FILTER (WHERE hash <> md5(coalesce(before, '') || id)) || ' ' ||
         (SELECT sum(balance) FROM accounts) || ' ' || count(*)
    FROM (SELECT id, hash, row_number() OVER (ORDER BY id) AS number, lag(hash) OVER (ORDER BY id) AS before FROM ledger) AS chained`;

export class Ledger implements AsyncDisposable {
  readonly #server: PostgresServer;
  #isPaused = false;
  #isStopped = false;
  #isIdle = false;
  readonly #writing: Promise<void>;
  /** Number of the last entry of which the server has said that it is committed. */
  acknowledged = 0;

  private constructor(server: PostgresServer) {
    this.#server = server;
    this.#writing = this.#write();
  }

  static async begin(server: PostgresServer): Promise<Ledger> {
    await server.query(TABLES);
    return new Ledger(server);
  }

  /** Nothing is written until resume(). */
  async pause(): Promise<void> {
    this.#isPaused = true;
    while (!this.#isIdle) await Bun.sleep(10);
  }

  resume(): void {
    this.#isPaused = false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isStopped = true;
    await this.#writing;
  }

  async #write(): Promise<void> {
    while (!this.#isStopped) {
      this.#isIdle = this.#isPaused;
      if (this.#isPaused) {
        await Bun.sleep(10);
        continue;
      }
      try {
        await using session = await this.#server.connect();
        while (!this.#isPaused && !this.#isStopped) {
          const [from, to] = [1 + (this.acknowledged % 100), 1 + ((this.acknowledged * 7) % 100)];
          const results = (await session.query(entry(from, to))) as unknown as { rows: { id?: string }[] }[];
          this.acknowledged = Number(results[1]?.rows[0]?.id);
        }
      } catch {
        // The server was killed. What it had not confirmed counts for nothing.
        await Bun.sleep(50);
      }
    }
  }
}

/** @throws Error  an entry is missing, changed, or there are fewer than `atLeast` */
export async function checkLedger(server: PostgresServer, atLeast: number): Promise<number> {
  const [gaps, broken, sum, entries] = (await server.psql(FAULTS)).split(" ").map(Number);
  if (gaps !== 0 || broken !== 0 || sum !== 0 || (entries ?? 0) < atLeast)
    throw new Error(
      `restored: ${entries} entries of at least ${atLeast}, ${gaps} out of order, ${broken} with a broken chain, accounts off by ${sum}`,
    );
  return entries ?? 0;
}
