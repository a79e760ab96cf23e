/**
 * The main job on a real PostgreSQL server, in front of your eyes: archive, back up under load, drop a table, lose the server,
 * restore to the moment before, compare every row.
 *
 *   bun run demo           cleans up after itself
 *   bun run demo --keep    keeps everything and says where
 *
 * Uses dist/wal-b as a user would: as archive_command, restore_command, and typed commands.
 */
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, serverAccount, shortTemporaryDirectory } from "./support/account.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "./support/postgres-server.ts";
import { waitFor } from "./support/wait-for.ts";
import { walbBinary } from "./support/walb.ts";

const keep = process.argv.includes("--keep");
const timings: { readonly step: string; readonly seconds: number }[] = [];
const begun = performance.now();

const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-demo-"));
const repository = join(directory, "repository");
await mkdir(repository);
for (const path of [directory, repository]) await giveTo(serverAccount(), path);

const walb = await walbBinary();
const env = { WALB_FILE_PREFIX: repository };
const settings = { archive_timeout: 60 };
await using server = await step("start PostgreSQL", () =>
  startPostgres({ archiveCommand: `${walb} wal-push %p`, env, settings }),
);
say(`PostgreSQL ${server.major} in ${server.dataDirectory}`);
show("postgresql.conf", "archive_command = 'wal-b wal-push %p'");
show("environment", `WALB_FILE_PREFIX=${repository}`);

await step("load 200,000 rows", async () => {
  await server.query("CREATE TABLE orders (id bigint PRIMARY KEY, customer int NOT NULL, note text NOT NULL)");
  await server.query(
    "INSERT INTO orders SELECT n, n % 1000, md5(n::text) || repeat(' order', n % 20) FROM generate_series(1, 200000) n",
  );
});

const load = startLoad(server);
await step("base backup while rows are written", () => run(server, ["backup-push", server.dataDirectory]));
await Bun.sleep(1000);
const written = await load.stop();
say(`${written} rows were written during the backup and after it`);

const expected = await contentOf(server);
const [moment] = await server.query<{ now: string }>("SELECT clock_timestamp()::text AS now");
say(`the moment to remember: ${moment?.now}; the table has ${expected.rows} rows, fingerprint ${expected.fingerprint}`);
await Bun.sleep(50);

show("psql", "DROP TABLE orders");
await server.query("DROP TABLE orders");
const last = await server.switchWal();
await step("PostgreSQL archives its last segment", () =>
  waitFor(() => Bun.file(join(repository, "wal_005", `${last}.zst`)).exists(), { what: `"${last}" in the archive` }),
);

say("the server is killed, and its data directory is destroyed");
await server.crash();
await rm(server.dataDirectory, { recursive: true, force: true });

const restored = join(directory, "restored");
await step("restore the base backup", () => run(server, ["backup-fetch", restored, "LATEST"]));
await run(server, ["backup-list"]);

show(
  `${restored}/postgresql.conf`,
  `restore_command = 'wal-b wal-fetch %f %p'\n    recovery_target_time = '${moment?.now}'\n    recovery_target_action = promote`,
);
show("shell", `touch ${restored}/recovery.signal && pg_ctl -D ${restored} start`);
await Bun.write(join(restored, "recovery.signal"), "");
await giveTo(server.account, join(restored, "recovery.signal"));
await using recovered = await step("recover to the moment", async () => {
  const recovery = {
    restore_command: `${walb} wal-fetch %f %p`,
    recovery_target_time: moment?.now ?? "",
    recovery_target_action: "promote",
  };
  const started = await startPostgresOn(restored, { settings: recovery, env });
  await waitFor(async () => (await started.psql("SELECT pg_is_in_recovery()")) === "f", {
    what: "the end of recovery",
  });
  return started;
});

const found = await contentOf(recovered);
const same = found.rows === expected.rows && found.fingerprint === expected.fingerprint;
say(
  `the restored table has ${found.rows} rows, fingerprint ${found.fingerprint}: ${same ? "every row is back" : "NOT THE SAME"}`,
);

await recovered.stop();
await listRepository(repository);
tell();
if (keep) say(`everything is kept in ${directory}`);
else await rm(directory, { recursive: true, force: true });
if (!same) process.exitCode = 1;

/** Rows, and a hash over all of them in order. */
async function contentOf(from: PostgresServer): Promise<{ readonly rows: string; readonly fingerprint: string }> {
  const [row] = await from.query<{ rows: string; fingerprint: string }>(
    "SELECT count(*) AS rows, md5(string_agg(md5(orders::text), '' ORDER BY id)) AS fingerprint FROM orders",
  );
  return row ?? { rows: "none", fingerprint: "none" };
}

/** Writes rows in small transactions until it is stopped. */
function startLoad(to: PostgresServer): { stop(): Promise<number> } {
  let stopped = false;
  let next = 200_001;
  const writing = (async () => {
    await using session = await to.connect();
    while (!stopped) {
      await session.query(
        "INSERT INTO orders SELECT n, n % 1000, md5(n::text) FROM generate_series($1::bigint, $2::bigint) n",
        [next, next + 99],
      );
      next += 100;
    }
  })();
  return {
    async stop() {
      stopped = true;
      await writing;
      return next - 200_001;
    },
  };
}

/** Runs wal-b as the server's account and prints the command as one would type it. */
async function run(as: PostgresServer, args: readonly string[]): Promise<void> {
  show("shell", `wal-b ${args.join(" ")}`);
  const { exitCode, stdout, stderr } = await as.runAs([walb, ...args], { env, timeoutMs: 60_000 });
  process.stdout.write(indented(stdout + stderr));
  if (exitCode !== 0) throw new Error(`wal-b ${args[0]} ended with exit code ${exitCode}`);
}

async function step<Result>(name: string, work: () => Promise<Result>): Promise<Result> {
  const start = performance.now();
  const result = await work();
  timings.push({ step: name, seconds: (performance.now() - start) / 1000 });
  return result;
}

async function listRepository(directory: string): Promise<void> {
  say("what now lies in the repository:");
  const files = [...new Bun.Glob("**/*").scanSync({ cwd: directory })].sort();
  for (const file of files)
    process.stdout.write(`    ${String(Bun.file(join(directory, file)).size).padStart(10)}  ${file}\n`);
}

function tell(): void {
  say("how long each step took:");
  for (const { step: name, seconds } of timings)
    process.stdout.write(`    ${seconds.toFixed(1).padStart(6)} s  ${name}\n`);
  process.stdout.write(`    ${((performance.now() - begun) / 1000).toFixed(1).padStart(6)} s  in all\n`);
}

function show(where: string, text: string): void {
  process.stdout.write(`\n${where}> ${text}\n`);
}

function say(text: string): void {
  process.stdout.write(`\n-- ${text}\n`);
}

function indented(text: string): string {
  return text.replace(/^(?=.)/gm, "    ");
}
