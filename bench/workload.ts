/**
 * What is archived and backed up: a real server with tables that compress well, a little and not at all, and a segment of WAL
 * that its transactions wrote.
 */
import { copyFile, readdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../test/support/account.ts";
import { systemPostgres } from "../test/support/postgres-binaries.ts";
import { type PostgresServer, startPostgres } from "../test/support/postgres-server.ts";
import { sizeBelow } from "./size.ts";

export interface Workload extends AsyncDisposable {
  readonly server: PostgresServer;
  /** Copies of two finished segments, for pushing and fetching; the first only makes the archive not empty. */
  readonly segments: readonly [Segment, Segment];
  /** Of the data directory without pg_wal. */
  readonly contentBytes: number;
  /** Sends WAL from now on to one archive, and to no other; `command` is a line of shell with "$1" for the path. */
  archiveWith(command: string): Promise<void>;
}

export interface Segment {
  readonly name: string;
  readonly path: string;
}

const MiB = 2 ** 20;
/** Of the data directory: pgbench's accounts, documents, and noise. */
const SHARES = { accounts: 0.3, documents: 0.45, noise: 0.25 };
const MIB_PER_SCALE = 15;
const SEGMENTS_OF_WAL = 6;
const LOAD_TIMEOUT_MS = 3_600_000;

export const SETTINGS = {
  shared_buffers: "128MB",
  synchronous_commit: "off",
  // Nothing but what is measured runs while it is measured.
  autovacuum: "off",
  checkpoint_timeout: "1h",
  max_wal_size: "8GB",
  wal_keep_size: "256MB",
};

/** @throws Error  there is no PostgreSQL with pgbench on this machine */
export async function makeWorkload(sizeMiB: number): Promise<Workload> {
  const binaries = systemPostgres();
  if (!binaries) throw new Error("no PostgreSQL with pgbench is installed, as Debian's package postgresql has it");
  // pgBackRest makes no backup unless archive_command has its name in it.
  const archiver = (server: PostgresServer) => join(server.directory, "archive-with-wal-b-or-pgbackrest");
  const server = await startPostgres({ binaries, settings: { ...SETTINGS, archive_mode: "on" } });
  try {
    const archiveWith = async (command: string) => {
      await writeArchiver(archiver(server), command, server);
      // A backup begins only when the segment before its own is in the same archive.
      await archiveOne(server);
    };
    await writeArchiver(archiver(server), "true", server);
    await server.configure({ archive_command: `/bin/sh ${archiver(server)} %p` });

    await load(server, sizeMiB);
    const segments = await writeWal(server);
    await server.query("CHECKPOINT");
    const contentBytes = await sizeBelow(server.dataDirectory, { except: ["pg_wal"] });
    return { server, segments, contentBytes, archiveWith, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

async function writeArchiver(path: string, command: string, { account }: PostgresServer): Promise<void> {
  await writeFile(`${path}.new`, `${command}\n`);
  await giveTo(account, `${path}.new`);
  await rename(`${path}.new`, path);
}

async function archiveOne(server: PostgresServer): Promise<void> {
  const segment = await server.switchWal();
  const last = "SELECT left(last_archived_wal, 24) FROM pg_stat_archiver";
  await server.waitFor(async () => (await server.psql(last)) >= segment, { what: `${segment} to be archived` });
}

export async function load(server: PostgresServer, sizeMiB: number): Promise<void> {
  const scale = Math.max(1, Math.round((sizeMiB * SHARES.accounts) / MIB_PER_SCALE));
  await pgbench(server, ["-i", "-q", "-s", String(scale)]);
  await server.query(`
    CREATE TABLE document (id bigserial PRIMARY KEY, body jsonb NOT NULL, changed_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE noise (id bigserial PRIMARY KEY, content bytea NOT NULL)`);
  await fill(
    server,
    "document",
    `INSERT INTO document (body) SELECT ${DOCUMENT} FROM ${WORDS}, generate_series(1, 10000)`,
    {
      bytes: sizeMiB * SHARES.documents * MiB,
    },
  );
  await fill(server, "noise", `INSERT INTO noise (content) SELECT ${NOISE} FROM generate_series(1, 5000) n`, {
    bytes: sizeMiB * SHARES.noise * MiB,
  });
  await server.query("VACUUM ANALYZE");
}

async function fill(
  server: PostgresServer,
  table: string,
  insert: string,
  { bytes }: { bytes: number },
): Promise<void> {
  await using client = await server.connect();
  for (;;) {
    await client.query(insert);
    const { rows } = await client.query<{ size: string }>(`SELECT pg_total_relation_size('${table}') AS size`);
    if (Number(rows[0]?.size) >= bytes) return;
  }
}

/** Finishes several segments with transactions on both kinds of rows, after a checkpoint, so that page images are among them. */
async function writeWal(server: PostgresServer): Promise<readonly [Segment, Segment]> {
  await server.query("CHECKPOINT");
  const first = await server.switchWal();
  const finished = async () => (await segmentNames(server)).filter((name) => name > first).length - 1;
  while ((await finished()) < SEGMENTS_OF_WAL) await runTransactions(server, 2);

  const names = (await segmentNames(server)).filter((name) => name > first);
  const directory = await server.makeDirectory("segments");
  const [before, middle] = await Promise.all(
    names
      .slice(SEGMENTS_OF_WAL / 2 - 1)
      .slice(0, 2)
      .map(async (name) => {
        const path = join(directory, name);
        await copyFile(join(server.dataDirectory, "pg_wal", name), path);
        await giveTo(server.account, path);
        return { name, path };
      }),
  );
  if (before === undefined || middle === undefined) throw new Error("the server wrote too little WAL");
  return [before, middle];
}

/** On both kinds of rows, half of each. */
export async function runTransactions(server: PostgresServer, seconds: number): Promise<void> {
  const script = join(server.directory, "transaction.sql");
  await writeFile(script, TRANSACTION);
  await pgbench(server, ["-n", "-T", String(seconds), "-c", "4", "-b", "tpcb-like@1", "-f", `${script}@1`]);
}

/** Segments up to the one that is being written; PostgreSQL keeps renamed old ones ahead of it. */
export async function segmentNames(server: PostgresServer): Promise<readonly string[]> {
  const current = await server.psql("SELECT pg_walfile_name(pg_current_wal_lsn())");
  const names = await readdir(join(server.dataDirectory, "pg_wal"));
  return names.filter((name) => /^[0-9A-F]{24}$/.test(name) && name <= current).sort();
}

async function pgbench(server: PostgresServer, args: readonly string[]): Promise<void> {
  const { exitCode, stderr } = await server.runAs([server.bin("pgbench"), ...args], { timeoutMs: LOAD_TIMEOUT_MS });
  if (exitCode !== 0) throw new Error(`pgbench ended with ${exitCode}:\n${stderr}`);
}

const WORDS = `(SELECT string_to_array('the of and to in is that for it as was with be by on not he his but at are this
  have from or had an they which one you were all her she there would their we him been has when who will no more if out
  so up said what its about than into them can only other time new some could these two may first then do any like my now
  over such our man me even most made after also did many off before must well back through years where much your way down
  should because long each just state those people too mister how little good world make very year still see own work men
  day get here between both life being under three never know same last another while us might great go come since against
  right came take used himself few house use place during without again home around small however found', ' ') w) words`.replace(
  /\s+/g,
  " ",
);

const word = "w[1 + floor(random() * 140)]";
const sentence = (words: number) => Array.from({ length: words }, () => word).join(" || ' ' || ");

/** About 800 bytes: field names that repeat, words of a language, numbers, a token and a time. */
const DOCUMENT = `jsonb_build_object(
  'customer', jsonb_build_object('name', initcap(${sentence(2)}), 'email', ${word} || floor(random() * 1e6) || '@example.com',
    'since', now() - random() * interval '3000 days'),
  'status', (ARRAY['open', 'paid', 'shipped', 'returned'])[1 + floor(random() * 4)],
  'total', round((random() * 1000)::numeric, 2),
  'items', jsonb_build_array(
    jsonb_build_object('sku', upper(left(md5(random()::text), 8)), 'count', floor(random() * 9), 'title', ${sentence(5)}),
    jsonb_build_object('sku', upper(left(md5(random()::text), 8)), 'count', floor(random() * 9), 'title', ${sentence(6)})),
  'session', md5(random()::text),
  'note', ${sentence(40)})`;

/** 1,600 bytes that nothing compresses. */
const NOISE = Array.from({ length: 25 }, (_, part) => `sha512((n || '${part}' || random())::bytea)`).join(" || ");

const TRANSACTION = `
\\set id random(1, 10000)
BEGIN;
UPDATE document SET body = jsonb_set(body, '{total}', to_jsonb(:id)), changed_at = now() WHERE id BETWEEN :id AND :id + 4;
INSERT INTO document (body) SELECT ${DOCUMENT.replaceAll("\n", " ")} FROM ${WORDS}, generate_series(1, 20);
END;
`;
