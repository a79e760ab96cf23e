/** What WalRecordReader reads from segments that real servers wrote, beside what those servers and pg_waldump say. */
import { expect, test } from "bun:test";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { asLsn, formatLsn, parseLsn } from "../../src/postgres/lsn.ts";
import { formatTime, type Microseconds } from "../../src/postgres/recovery-target.ts";
import { continuationIn, restorePointOf, transactionEndOf, type WalRecord } from "../../src/postgres/wal-records.ts";
import { COMPLETE_MAJORS, completePostgres } from "../support/complete-postgres.ts";
import { type NewClusterOptions, type PostgresServer, startPostgres } from "../support/postgres-server.ts";
import { runProgram } from "../support/run-program.ts";
import { recordsIn } from "../support/wal-records.ts";

/** Of one megabyte, so that records often go over the end of one, and some over all of it. */
const startServer = (options: NewClusterOptions) =>
  startPostgres({
    walSegmentSizeMiB: 1,
    ...options,
    settings: { track_commit_timestamp: "on", max_prepared_transactions: 5, ...options.settings },
  });

/** @returns the last segment */
async function write(server: PostgresServer): Promise<string> {
  await server.query("CREATE TABLE steps (id serial PRIMARY KEY, filler text)");
  for (let n = 0; n < 300; n++) {
    await server.query(`INSERT INTO steps (filler) SELECT repeat('y', ${n * 7}) FROM generate_series(1, 20)`);
  }
  await server.query("BEGIN; INSERT INTO steps (filler) VALUES ('no'); ROLLBACK");
  // Longer than two segments, and then a restore point in the middle of one.
  await server.query("SELECT pg_logical_emit_message(false, 'test', repeat('z', 2500000))");
  await server.query("SELECT pg_create_restore_point('it''s the middle')");
  await server.query("BEGIN; INSERT INTO steps (filler) VALUES ('prepared'); PREPARE TRANSACTION 'one'");
  await server.query("COMMIT PREPARED 'one'");
  return await server.switchWal();
}

interface Reading {
  readonly records: readonly WalRecord[];
  readonly ends: ReadonlyMap<number, Microseconds>;
  readonly prepared: readonly Microseconds[];
  readonly restorePoints: readonly string[];
}

async function readAll(server: PostgresServer, names: readonly string[]): Promise<Reading> {
  const contents = await Promise.all(names.map((name) => readFile(join(server.dataDirectory, "pg_wal", name))));
  const records = contents.flatMap((content, n) => {
    const next = contents[n + 1];
    return recordsIn(content, next && continuationIn(next));
  });
  const ends = records.flatMap((record) => transactionEndOf(record) ?? []);
  return {
    records,
    ends: new Map(ends.flatMap(({ xid, at }) => (xid === undefined ? [] : [[xid, at] as const]))),
    prepared: ends.flatMap(({ xid, at }) => (xid === undefined ? [at] : [])),
    restorePoints: records.flatMap((record) => restorePointOf(record) ?? []),
  };
}

/** Up to this one, in order. */
async function segmentsTo(last: string, server: PostgresServer): Promise<readonly string[]> {
  const names = await readdir(join(server.dataDirectory, "pg_wal"));
  return names.filter((name) => /^[0-9A-F]{24}$/.test(name) && name <= last).sort();
}

test.each([12, 14, 16, 18])("PostgreSQL %i: the time of every transaction, and the restore point", async (major) => {
  const settings = major === 12 ? { wal_keep_segments: 1000 } : { wal_keep_size: "1GB" };
  await using server = await startServer({ major, settings });
  const { ends, prepared, restorePoints } = await readAll(server, await segmentsTo(await write(server), server));
  expect(restorePoints).toEqual(["it's the middle"]);
  expect(prepared).toHaveLength(1);

  const rows = await server.psql(
    `SELECT xmin, to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')
       FROM steps WHERE filler <> 'prepared' GROUP BY 1, 2`,
  );
  const expected = rows.split("\n").map((row) => row.split("|"));
  expect(expected.length).toBeGreaterThanOrEqual(300);
  for (const [xid, time] of expected) {
    const at = ends.get(Number(xid));
    expect([xid, at && formatTime(at)]).toEqual([xid, `${time?.replace(/\.?0+$/, "")}+00`]);
  }
});

test.each(COMPLETE_MAJORS)(
  "PostgreSQL %i: the same records as pg_waldump, from the first to the last",
  async (major) => {
    await using server = await startServer({
      binaries: await completePostgres(major),
      settings: { min_wal_size: "1GB" },
    });
    const names = await segmentsTo(await write(server), server);
    const { records } = await readAll(server, names);
    const [first = "", last = ""] = [names[0], names.at(-1)];
    const dump = [server.bin("pg_waldump"), "-p", join(server.dataDirectory, "pg_wal"), first, last];
    const { stdout } = await runProgram(dump, { as: server.account });
    // It shows no switch at the end of what it was told to show.
    const lines = [...stdout.matchAll(/tx: +(\d+), lsn: ([0-9A-F]+)\/([0-9A-F]+), prev (?!.*desc: SWITCH)/g)];
    expect(lines.length).toBeGreaterThan(1000);
    const shown = records.filter(({ resourceManager, info }) => resourceManager !== 0 || info !== 0x40);
    expect(shown.map(({ xid, lsn }) => `${xid} ${formatLsn(lsn)}`)).toEqual(
      lines.map(([, xid, high = "", low = ""]) => `${xid} ${formatLsn(parseLsn(`${high}/${low}`) ?? asLsn(0n))}`),
    );
  },
);
