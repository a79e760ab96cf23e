/** What the scenarios of base backups share: a server that archives with the compiled binary, its backups, their recovery. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, serverAccount, shortTemporaryDirectory } from "./account.ts";
import { COMPLETE_MAJORS, completePostgres } from "./complete-postgres.ts";
import {
  type NewClusterOptions,
  type PostgresServer,
  type Settings,
  startPostgres,
  startPostgresOn,
} from "./postgres-server.ts";
import { directoryRepository, type TestRepository } from "./repositories.ts";
import { baseEnvironment, type ProgramResult, runProgram } from "./run-program.ts";
import { runInSteps, type SteppedOptions } from "./system-calls.ts";
import { runWalb, walbBinary } from "./walb.ts";

export type Environment = Readonly<Record<string, string>>;

/** A repository in a directory of its own, which belongs to the servers' account and goes when it is disposed. */
export async function temporaryRepository(): Promise<
  TestRepository & AsyncDisposable & { readonly directory: string }
> {
  const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-repository-"));
  await giveTo(serverAccount(), directory);
  const dispose = async () => await rm(directory, { recursive: true, force: true, maxRetries: 5 });
  return { ...directoryRepository(directory), directory, [Symbol.asyncDispose]: dispose };
}

/** A server whose archive_command is `wal-b wal-push %p` to the repository. */
export async function startArchiving(env: Environment, options: NewClusterOptions = {}): Promise<PostgresServer> {
  return await startPostgres({ archiveCommand: `${await walbBinary()} wal-push %p`, ...options, env });
}

/** Takes a backup of the running server. @returns its name @throws Error  with what wal-b said */
export async function pushBackup(
  server: PostgresServer,
  env: Environment,
  args: readonly string[] = [],
): Promise<string> {
  const options = { as: server, env, timeoutMs: 90_000 };
  const { exitCode, stdout, stderr } = await runWalb(["backup-push", server.dataDirectory, "--json", ...args], options);
  if (exitCode !== 0) throw new Error(`backup-push ended with ${exitCode}:\n${stderr}`);
  return (JSON.parse(stdout) as { name: string }).name;
}

/** Runs wal-b as the server's account, stopped behind some of its calls. */
export async function walbInSteps(
  server: PostgresServer,
  env: Environment,
  args: readonly string[],
  at: Pick<SteppedOptions, "calls" | "only">,
  look: Parameters<typeof runInSteps>[2],
): ReturnType<typeof runInSteps> {
  const command = [await walbBinary(server.account), ...args];
  const all = { ...server.env, ...env, HOME: server.directory };
  return await runInSteps(command, { env: all, cwd: server.directory, as: server.account, ...at }, look);
}

/**
 * Takes a backup one part after the other, and stops it in the middle of files.
 *
 * @param meanwhile  by the absolute path of a file: what happens when the first piece of it has been read
 */
export async function pushBackupWhile(
  server: PostgresServer,
  env: Environment,
  meanwhile: Readonly<Record<string, () => Promise<void>>>,
): Promise<void> {
  const left = new Map(Object.entries(meanwhile));
  const args = ["backup-push", server.dataDirectory];
  const at = { calls: ["pread64"], only: Object.keys(meanwhile) };
  const oneAtATime = { ...env, WALB_UPLOAD_CONCURRENCY: "1" };
  const { exitCode, stderr } = await walbInSteps(server, oneAtATime, args, at, async ({ calls }) => {
    for (const [path, happens] of left) {
      if (!calls.some((call) => call.includes(`<${path}>`))) continue;
      left.delete(path);
      await happens();
    }
    return "go on";
  });
  if (exitCode !== 0) throw new Error(`backup-push ended with ${exitCode}:\n${stderr}`);
  if (left.size > 0) throw new Error(`backup-push ended without reading ${[...left.keys()].join(", ")}`);
}

/** Once it has started, and before it goes on: what it needs from there on is not archived. */
export async function stopArchivingDuring(backup: RunningWalb, server: PostgresServer): Promise<void> {
  await backup.says('" started at ');
  backup.signal("SIGSTOP");
  await server.configure({ archive_command: "false" });
  backup.signal("SIGCONT");
}

/** Runs restore, to a directory beside the server's own. @returns it */
export async function restoreBesideIt(
  server: PostgresServer,
  env: Environment,
  name: string,
  args: readonly string[] = [],
): Promise<string> {
  const directory = join(server.directory, name);
  const { exitCode, stderr } = await runWalb(["restore", directory, ...args], { as: server, env });
  if (exitCode !== 0) throw new Error(`restore ended with ${exitCode}:\n${stderr}`);
  return directory;
}

/** Restores a backup to `directory`. @throws Error  with what wal-b said */
export async function fetchBackup(
  server: PostgresServer,
  env: Environment,
  { directory, name = "LATEST", args = [] }: { directory: string; name?: string; args?: readonly string[] },
): Promise<void> {
  const { exitCode, stderr } = await runWalb(["backup-fetch", directory, name, ...args], { as: server, env });
  if (exitCode !== 0) throw new Error(`backup-fetch ended with ${exitCode}:\n${stderr}`);
}

/** Names of the backups that are listed, oldest first. */
export async function listedBackups(server: PostgresServer, env: Environment): Promise<readonly string[]> {
  const { exitCode, stdout, stderr } = await runWalb(["backup-list", "--json"], { as: server, env });
  if (exitCode !== 0) throw new Error(`backup-list ended with ${exitCode}:\n${stderr}`);
  return (JSON.parse(stdout) as { backup_name: string }[]).map((backup) => backup.backup_name);
}

/** Waits until no session but the one that asks is there: a backup goes with its session. */
export async function outOfBackupMode(server: PostgresServer): Promise<void> {
  await server.waitFor(
    async () =>
      (await server.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")) === "1",
    { what: "wal-b's session to end" },
  );
}

/** Starts a server on a restored directory and waits until it has recovered all that is archived and was promoted. */
export async function recover(directory: string, env: Environment, settings: Settings = {}): Promise<PostgresServer> {
  await writeFile(join(directory, "recovery.signal"), "");
  await giveTo(serverAccount(), join(directory, "recovery.signal"));
  const recovery = { restore_command: `${await walbBinary()} wal-fetch %f %p`, archive_mode: "off", ...settings };
  const server = await startPostgresOn(directory, { env, settings: recovery });
  try {
    await server.waitFor(async () => (await server.psql("SELECT pg_is_in_recovery()")) === "f", {
      what: "the end of recovery",
      timeoutMs: 90_000,
    });
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/** Ends the current segment and waits until it is in the archive, and every one before it: several are archived side by side. */
export async function archiveEverything(server: PostgresServer, repository: TestRepository): Promise<void> {
  const last = await server.switchWal();
  const waiting = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
  const isArchived = async () =>
    (await server.psql(waiting)) === "0" && (await repository.keys()).includes(`wal_005/${last}.zst`);
  await server.waitFor(isArchived, { what: `"${last}" and all before it in the archive`, timeoutMs: 90_000 });
}

/** Of every permanent table in the schema public: how many rows, and a hash over all of them in order. */
export async function contentOf(server: PostgresServer, database = "postgres"): Promise<Record<string, string>> {
  await using session = await server.connect(database);
  const { rows } = await session.query<{ name: string }>(
    `SELECT quote_ident(relname) AS name FROM pg_class
      WHERE relkind = 'r' AND relpersistence = 'p' AND relnamespace = 'public'::regnamespace ORDER BY relname`,
  );
  const content: Record<string, string> = {};
  for (const { name } of rows) {
    const { rows: found } = await session.query<{ text: string }>(
      `SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(line, chr(10) ORDER BY line)), 'no hash') AS text
         FROM (SELECT (content.*)::text COLLATE "C" AS line FROM public.${name} AS content) AS lines`,
    );
    content[name] = found[0]?.text ?? "";
  }
  return content;
}

/** Small transactions as pgbench makes them, in two sessions, until it is stopped. */
export async function startLoad(server: PostgresServer): Promise<{ stop(): Promise<void> } & AsyncDisposable> {
  await server.query(`
    CREATE TABLE IF NOT EXISTS accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler text NOT NULL);
    CREATE TABLE IF NOT EXISTS history (id serial PRIMARY KEY, account int NOT NULL, delta int NOT NULL);
    INSERT INTO accounts SELECT n, 0, md5(n::text) || md5((-n)::text) FROM generate_series(1, 20000) n ON CONFLICT DO NOTHING`);
  let stopped = false;
  let failure: unknown;
  const write = async (seed: number) => {
    await using session = await server.connect();
    for (let turn = seed; !stopped; turn += 2) {
      const account = ((turn * 7919) % 20000) + 1;
      await session.query(
        `BEGIN; UPDATE accounts SET balance = balance + ${turn} WHERE id = ${account};
         INSERT INTO history (account, delta) VALUES (${account}, ${turn}); COMMIT`,
      );
    }
  };
  // Kept for stop(), which tells it.
  const writing = Promise.all([1, 2].map(write)).catch((error: unknown) => {
    failure = error;
  });
  const end = async () => {
    stopped = true;
    await writing;
  };
  return {
    async stop() {
      await end();
      if (failure) throw failure;
    },
    [Symbol.asyncDispose]: end,
  };
}

/**
 * Runs `pg_verifybackup -n` of the directory's own major, or where this machine has none, of another. Those before 17 do not know the
 * second version of the manifest, so they are given the same one under the first version.
 */
export async function verifyBackup(directory: string, args: readonly string[] = []): Promise<ProgramResult> {
  const own = Number(await readFile(join(directory, "PG_VERSION"), "utf8"));
  const major = COMPLETE_MAJORS.includes(own) ? own : COMPLETE_MAJORS[0];
  if (!major) throw new Error("pg_verifybackup comes with PostgreSQL's packages, and there are none on this machine");
  const { bin } = await completePostgres(major);
  const manifest = await readFile(join(directory, "backup_manifest"), "utf8");
  const other = await mkdtemp(join(shortTemporaryDirectory(), "walb-manifest-"));
  try {
    const path = join(other, "backup_manifest");
    await writeFile(path, major < 17 ? firstVersionOf(manifest) : manifest);
    return await runProgram([join(bin, "pg_verifybackup"), "-n", "-m", path, ...args, directory]);
  } finally {
    await rm(other, { recursive: true, force: true });
  }
}

function firstVersionOf(manifest: string): string {
  if (!manifest.startsWith('{ "PostgreSQL-Backup-Manifest-Version": 2,\n')) return manifest;
  const body = manifest
    .slice(0, manifest.lastIndexOf('"Manifest-Checksum"'))
    .replace('Version": 2,', 'Version": 1,')
    .replace(/"System-Identifier": \d+,\n/, "");
  return `${body}"Manifest-Checksum": "${new Bun.CryptoHasher("sha256").update(body).digest("hex")}"}\n`;
}

/** wal-b while it runs, so that a test can wait for what it says, stop and continue it, and end it. */
export class RunningWalb implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #ended: Promise<{ readonly exitCode: number | null; readonly signal: NodeJS.Signals | null }>;
  #stderr = "";

  constructor(child: ChildProcess) {
    this.#child = child;
    child.stderr?.on("data", (chunk: Buffer) => {
      this.#stderr += chunk.toString("utf8");
    });
    this.#ended = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("close", (exitCode, signal) => resolve({ exitCode, signal }));
    });
    this.#ended.catch(() => undefined);
  }

  /** What it has said so far. */
  get stderr(): string {
    return this.#stderr;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** @throws Error  it ended without */
  async says(text: string): Promise<void> {
    while (!this.#stderr.includes(text)) {
      if (!this.isRunning) {
        const { exitCode, signal } = await this.#ended;
        if (this.#stderr.includes(text)) return;
        throw new Error(`wal-b ended with ${exitCode ?? signal} without "${text}":\n${this.#stderr}`);
      }
      await Bun.sleep(5);
    }
  }

  /** Nothing happens when it has ended by itself. */
  signal(name: NodeJS.Signals): void {
    if (this.isRunning) this.#child.kill(name);
  }

  async ended(): Promise<{ readonly exitCode: number | null; readonly signal: NodeJS.Signals | null }> {
    return await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.signal("SIGKILL");
    await this.#ended.catch(() => undefined);
  }
}

/** Starts wal-b as the server's account and with its PGHOST and so on; the server need not run. */
export async function startWalb(
  server: Pick<PostgresServer, "account" | "directory" | "env">,
  args: readonly string[],
  env: Environment,
): Promise<RunningWalb> {
  const child = spawn(await walbBinary(server.account), args, {
    cwd: server.directory,
    env: { ...baseEnvironment(), HOME: server.directory, ...server.env, ...env },
    stdio: ["ignore", "ignore", "pipe"],
    ...(server.account && { uid: server.account.uid, gid: server.account.gid }),
  });
  return new RunningWalb(child);
}
