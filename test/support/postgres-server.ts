/**
 * A real PostgreSQL for one test: made by initdb in a temporary directory, on a Unix socket only, gone when disposed.
 * A watchdog process ends the server and removes its files when the test process dies, whatever it dies of.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { appendFile, chmod, mkdir, mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import pg from "pg";
import { giveTo, type RunAs, serverAccount, shortTemporaryDirectory } from "./account.ts";
import { NEWEST_MAJOR, type PostgresBinaries, postgresBinaries, systemPostgres } from "./postgres-binaries.ts";
import { killLeftovers, processesBelow, processIsAlive, removeSharedMemory } from "./process-tree.ts";
import { baseEnvironment, type ProgramResult, type RunOptions, runProgram } from "./run-program.ts";
import { type Falsy, type WaitOptions, waitFor } from "./wait-for.ts";

export type Settings = Readonly<Record<string, string | number | boolean>>;

export interface PostgresOptions {
  /** 12 to 18; the newest when left out. */
  readonly major?: number;
  /** Instead of `major`: programs that are installed already, such as `systemPostgres()`. */
  readonly binaries?: PostgresBinaries | undefined;
  /** For postgresql.conf. Tests run with fsync off unless they set it. */
  readonly settings?: Settings;
  /** Variables of the server's processes, and so of archive_command, beside `baseEnvironment()`. */
  readonly env?: Readonly<Record<string, string>>;
  /** How long starting may take, recovery included. */
  readonly startTimeoutMs?: number;
}

export interface NewClusterOptions extends PostgresOptions {
  /** Switches archive_mode on. */
  readonly archiveCommand?: string;
  readonly walSegmentSizeMiB?: number;
  /** On unless false. */
  readonly dataChecksums?: boolean;
  readonly initdbArgs?: readonly string[];
  /** Names; each becomes a tablespace with a directory of its own, see `tablespaceDirectory()`. */
  readonly tablespaces?: readonly string[];
}

export interface ExistingClusterOptions extends PostgresOptions {
  /**
   * "connections" waits until the server answers and fails when it ends; "spawned" returns at once, for servers that
   * are expected to stop by themselves (`exited()`).
   */
  readonly until?: "connections" | "spawned";
}

export type Row = Record<string, unknown>;

/** Makes a cluster and starts it. */
export async function startPostgres(options: NewClusterOptions = {}): Promise<PostgresServer> {
  const cluster = await prepare(options);
  const server = new PostgresServer({ ...cluster, dataDirectory: join(cluster.directory, "data"), commandLine: {} });
  try {
    await initdb(server, options);
    await server.start();
    for (const name of options.tablespaces ?? []) await createTablespace(server, name);
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

/**
 * Starts a server on a data directory that exists, such as a restored one. Its own configuration files are left
 * alone: `settings` go to the command line and win over them. The directory is given to the server's account, and
 * stays when the server is disposed.
 */
export async function startPostgresOn(
  dataDirectory: string,
  options: ExistingClusterOptions = {},
): Promise<PostgresServer> {
  const cluster = await prepare({
    major: Number(await readFile(join(dataDirectory, "PG_VERSION"), "utf8")),
    ...options,
  });
  await takeOver(dataDirectory, cluster.account);
  const commandLine = { fsync: "off", ...options.settings };
  const server = new PostgresServer({ ...cluster, dataDirectory, commandLine });
  try {
    await server.start(options.until);
    return server;
  } catch (error) {
    await server[Symbol.asyncDispose]();
    throw error;
  }
}

interface Cluster {
  readonly binaries: PostgresBinaries;
  readonly account: RunAs;
  readonly directory: string;
  readonly dataDirectory: string;
  readonly commandLine: Settings;
  readonly env: Readonly<Record<string, string>>;
  readonly startTimeoutMs: number;
}

const START_TIMEOUT_MS = 60_000;
const STOP_TIMEOUT_MS = 60_000;

export class PostgresServer implements AsyncDisposable {
  readonly major: number;
  readonly dataDirectory: string;
  readonly socketDirectory: string;
  readonly port = 5432;
  readonly user = "postgres";
  readonly database = "postgres";
  /** The operating system account of the server; undefined when that is whoever runs the tests. */
  readonly account: RunAs;
  /** A directory that belongs to the server's account and goes when the server is disposed. */
  readonly directory: string;

  readonly #cluster: Cluster;
  readonly #watchdog: Watchdog;
  readonly #logPath: string;
  #postmaster: ChildProcess | undefined;
  #exit: Promise<ServerExit> | undefined;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
    this.major = cluster.binaries.major;
    this.account = cluster.account;
    this.directory = cluster.directory;
    this.dataDirectory = cluster.dataDirectory;
    this.socketDirectory = join(cluster.directory, "s");
    this.#logPath = join(cluster.directory, "server.log");
    this.#watchdog = new Watchdog(cluster.directory);
  }

  /** For child processes that connect to this server. */
  get env(): Record<string, string> {
    return { PGHOST: this.socketDirectory, PGPORT: String(this.port), PGUSER: this.user, PGDATABASE: this.database };
  }

  get isRunning(): boolean {
    return this.#postmaster !== undefined && this.#postmaster.exitCode === null && this.#postmaster.signalCode === null;
  }

  /** The postmaster's process id. @throws Error  the server does not run */
  get pid(): number {
    const pid = this.isRunning ? this.#postmaster?.pid : undefined;
    if (pid === undefined) throw new Error("the server does not run");
    return pid;
  }

  /** Path of a program of this major; of the system's installation when the npm package lacks it. */
  bin(name: string): string {
    const candidates = [this.#cluster.binaries, systemPostgres()].filter((found) => found?.major === this.major);
    for (const found of candidates) {
      const path = join(found?.bin ?? "", name);
      if (Bun.file(path).size > 0) return path;
    }
    throw new Error(`there is no "${name}" for PostgreSQL ${this.major} on this machine`);
  }

  /** @throws Error  with the server's log, when it ends or does not answer in time */
  async start(until: "connections" | "spawned" = "connections"): Promise<void> {
    if (this.isRunning) throw new Error("the server runs already");
    const log = openSync(this.#logPath, "a");
    try {
      const postmaster = spawn(join(this.#cluster.binaries.bin, "postgres"), this.#arguments(), {
        cwd: this.directory,
        env: this.#serverEnvironment(),
        stdio: ["ignore", log, log],
        // A terminal's Ctrl-C would reach the server before the test had a say.
        detached: true,
        ...(this.account && { uid: this.account.uid, gid: this.account.gid }),
      });
      this.#postmaster = postmaster;
      this.#exit = new Promise((resolve, reject) => {
        postmaster.once("error", reject);
        postmaster.once("exit", (exitCode, signal) => resolve({ exitCode, signal }));
      });
      this.#exit.catch(() => undefined);
      postmaster.unref();
      if (postmaster.pid !== undefined) this.#watchdog.watch(postmaster.pid);
    } finally {
      closeSync(log);
    }
    if (until === "connections") await this.#untilItAnswers();
  }

  /**
   * Stops the server as `pg_ctl stop -m` does.
   *
   * @throws Error  it did not end in time and was killed
   */
  async stop(mode: "fast" | "immediate" | "smart" = "fast", timeoutMs = STOP_TIMEOUT_MS): Promise<void> {
    if (!this.isRunning) return;
    process.kill(this.pid, { fast: "SIGINT", immediate: "SIGQUIT", smart: "SIGTERM" }[mode] as NodeJS.Signals);
    if (await this.#endsWithin(timeoutMs)) return;
    await this.crash();
    throw new Error(`the server did not stop (${mode}) within ${timeoutMs} ms\n${await this.logText()}`);
  }

  /** What a power failure does to processes: the postmaster and everything below it is killed. Start it again at will. */
  async crash(): Promise<void> {
    if (!this.isRunning) return;
    const pid = this.pid;
    // Stopped first, so that it starts nothing while its children are being counted.
    process.kill(pid, "SIGSTOP");
    const pids = [pid, ...(await processesBelow(pid))];
    for (const each of pids) kill(each, "SIGKILL");
    await this.#endsWithin(STOP_TIMEOUT_MS);
    await waitFor(() => !pids.some(processIsAlive), { what: "the killed server's processes to go" });
  }

  async restart(mode: "fast" | "immediate" | "smart" = "fast"): Promise<void> {
    await this.stop(mode);
    await this.start();
  }

  /** How the server ended. @throws Error  it still runs when the time is up */
  async exited(timeoutMs = STOP_TIMEOUT_MS): Promise<ServerExit> {
    if (!this.#exit) throw new Error("the server was never started");
    if (!(await this.#endsWithin(timeoutMs))) throw new Error(`the server still runs after ${timeoutMs} ms`);
    return await this.#exit;
  }

  /** A session of its own, ended at the end of the block. Values are the driver's: int8 and numeric are strings. */
  async connect(database = this.database): Promise<pg.Client & AsyncDisposable> {
    const { socketDirectory: host, port, user } = this;
    const client = new pg.Client({ host, port, user, database, connectionTimeoutMillis: 10_000 });
    // A server that is stopped or killed under a session is the test's intention, not an uncaught error.
    client.on("error", () => undefined);
    await client.connect();
    return Object.assign(client, { [Symbol.asyncDispose]: async () => await client.end().catch(() => undefined) });
  }

  /** Rows of one statement (or of the last of several), in a session of its own. */
  async query<T extends Row = Row>(sql: string, values: readonly unknown[] = []): Promise<T[]> {
    await using client = await this.connect();
    // Without values the simple protocol is used, which takes several statements.
    const result: unknown = values.length > 0 ? await client.query(sql, [...values]) : await client.query(sql);
    const last = Array.isArray(result) ? result.at(-1) : result;
    return (last as pg.QueryResult<T>).rows;
  }

  /** What `psql -At` prints: text of the rows of one statement, "|" between columns, one line each. */
  async psql(sql: string, database = this.database): Promise<string> {
    await using client = await this.connect(database);
    const types = { getTypeParser: () => (text: string) => text };
    const result: unknown = await client.query({ text: sql, rowMode: "array", types } as pg.QueryArrayConfig);
    const last = (Array.isArray(result) ? result.at(-1) : result) as pg.QueryArrayResult<(string | null)[]>;
    return last.rows.map((row) => row.map((value) => value ?? "").join("|")).join("\n");
  }

  /** ALTER SYSTEM and reload; settings that need a restart need `restart()` too. */
  async configure(settings: Settings): Promise<void> {
    for (const [name, value] of Object.entries(settings))
      await this.query(`ALTER SYSTEM SET ${name} = ${quote(value)}`);
    await this.query("SELECT pg_reload_conf()");
  }

  /** Finishes the current segment; returns its name. At least one record is written, so that there is one. */
  async switchWal(): Promise<string> {
    const [row] = await this.query<{ name: string }>(
      "SELECT pg_logical_emit_message(false, 'test', 'x'); SELECT pg_walfile_name(pg_switch_wal()) AS name",
    );
    return row?.name ?? "";
  }

  tablespaceDirectory(name: string): string {
    return join(this.directory, "tablespaces", name);
  }

  /** All that the server has written to its log so far, over restarts. */
  async logText(): Promise<string> {
    return await readFile(this.#logPath, "utf8").catch(() => "");
  }

  /** A new empty directory that belongs to the server's account and goes with the server. */
  async makeDirectory(name: string): Promise<string> {
    const path = join(this.directory, name);
    await mkdir(path, { recursive: true, mode: 0o700 });
    await giveTo(this.account, path);
    return path;
  }

  /** Runs a program as the server's account, with the environment that the server's own children have. */
  async runAs(command: readonly string[], options: Omit<RunOptions, "as"> = {}): Promise<ProgramResult> {
    const env = { ...this.#serverEnvironment(), ...this.env, ...options.env };
    return await runProgram(command, { cwd: this.directory, ...options, env, as: this.account });
  }

  /** Asks until the answer is truthy, and returns it. @throws Error  with the server's log, when the time is up */
  async waitFor<T>(predicate: () => T | Promise<T>, options: WaitOptions = {}): Promise<Exclude<T, Falsy>> {
    try {
      return await waitFor(predicate, options);
    } catch (error) {
      throw new Error(`${String(error)}\nserver log:\n${(await this.logText()).slice(-8_000)}`, { cause: error });
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      const below = this.isRunning ? await processesBelow(this.pid) : [];
      await this.stop("immediate", 20_000).catch(() => undefined);
      await killLeftovers({ below, marker: `${MARKER}=${this.directory}` });
      await removeSharedMemory(this.dataDirectory);
    } finally {
      await this.#watchdog.end();
      await rm(this.directory, { recursive: true, force: true, maxRetries: 5 });
    }
  }

  #arguments(): string[] {
    const settings: Settings = {
      ...this.#cluster.commandLine,
      listen_addresses: "",
      port: this.port,
      unix_socket_directories: this.socketDirectory,
      logging_collector: "off",
      log_destination: "stderr",
    };
    return [
      "-D",
      this.dataDirectory,
      ...Object.entries(settings).flatMap(([name, value]) => ["-c", `${name}=${value}`]),
    ];
  }

  #serverEnvironment(): Record<string, string> {
    return { ...baseEnvironment(), HOME: this.directory, ...this.#cluster.env, [MARKER]: this.directory };
  }

  async #untilItAnswers(): Promise<void> {
    const answers = async () => {
      if (!this.isRunning) return "ended";
      return await this.query("SELECT 1").then(
        () => "answers",
        () => undefined,
      );
    };
    const timeoutMs = this.#cluster.startTimeoutMs;
    const outcome = await this.waitFor(answers, { timeoutMs, intervalMs: 20, what: "the server to answer" });
    if (outcome === "ended") throw new Error(`the server ended while starting:\n${await this.logText()}`);
  }

  async #endsWithin(timeoutMs: number): Promise<boolean> {
    const timer = Promise.withResolvers<"late">();
    const timeout = setTimeout(() => timer.resolve("late"), timeoutMs);
    try {
      if ((await Promise.race([this.#exit, timer.promise])) === "late") return false;
      this.#watchdog.forget();
      return true;
    } finally {
      clearTimeout(timeout);
    }
  }
}

export interface ServerExit {
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
}

/** Marks a server's processes in their environment, so that what it leaves in the background is found again. */
const MARKER = "TEST_POSTGRES_DIRECTORY";

async function prepare(options: PostgresOptions): Promise<Omit<Cluster, "dataDirectory" | "commandLine">> {
  const account = serverAccount();
  const binaries = options.binaries ?? (await postgresBinaries(options.major ?? NEWEST_MAJOR, account));
  const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-pg-"));
  await chmod(directory, 0o755);
  await giveTo(account, directory);
  await mkdir(join(directory, "s"));
  await giveTo(account, join(directory, "s"));
  const { env = {}, startTimeoutMs = START_TIMEOUT_MS } = options;
  return { binaries, account, directory, env, startTimeoutMs };
}

/** chown -R does not follow symbolic links, so tablespaces are the caller's to give away. */
async function takeOver(dataDirectory: string, account: RunAs): Promise<void> {
  if (!account || (await stat(dataDirectory)).uid === account.uid) return;
  const { exitCode, stderr } = await runProgram(["chown", "-R", `${account.uid}:${account.gid}`, dataDirectory]);
  if (exitCode !== 0) throw new Error(stderr);
}

/** Small and quick; what is not durable here is only durable when the machine loses its power. */
const TEST_SETTINGS: Settings = {
  fsync: "off",
  max_connections: 25,
  shared_buffers: "16MB",
  // Segments in /dev/shm would outlive a killed server.
  dynamic_shared_memory_type: "mmap",
};

async function initdb(server: PostgresServer, options: NewClusterOptions): Promise<void> {
  const { dataChecksums = true, walSegmentSizeMiB, initdbArgs = [], archiveCommand, settings } = options;
  const noChecksums = server.major >= 18 ? ["--no-data-checksums"] : [];
  const args = [
    ...["-D", server.dataDirectory, "-U", server.user, "--auth=trust", "--no-sync", "-E", "UTF8", "--no-locale"],
    ...(dataChecksums ? ["--data-checksums"] : noChecksums),
    ...(walSegmentSizeMiB ? [`--wal-segsize=${walSegmentSizeMiB}`] : []),
    ...initdbArgs,
  ];
  const { exitCode, stdout, stderr } = await server.runAs([server.bin("initdb"), ...args], { timeoutMs: 120_000 });
  if (exitCode !== 0) throw new Error(`initdb failed with ${exitCode}:\n${stdout}${stderr}`);

  const archiving = archiveCommand === undefined ? {} : { archive_mode: "on", archive_command: archiveCommand };
  const lines = Object.entries({ ...TEST_SETTINGS, ...archiving, ...settings });
  const text = lines.map(([name, value]) => `${name} = ${quote(value)}\n`).join("");
  await appendFile(join(server.dataDirectory, "postgresql.conf"), `\n# test settings\n${text}`);
}

async function createTablespace(server: PostgresServer, name: string): Promise<void> {
  await server.makeDirectory("tablespaces");
  const directory = await server.makeDirectory(`tablespaces/${name}`);
  await server.query(`CREATE TABLESPACE "${name}" LOCATION ${quote(directory)}`);
}

function quote(value: string | number | boolean): string {
  return `'${String(value).replaceAll("'", "''")}'`;
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal);
  } catch {
    // It is gone, which is what the signal was for.
  }
}

/**
 * A shell that reads from a pipe which only the test process holds. At the pipe's end without "done" the test process
 * has died: the shell then ends the server and removes its directory.
 */
class Watchdog {
  static readonly #SCRIPT = `
    while read -r word pid; do
      case $word in
        watch) server=$pid ;;
        forget) server= ;;
        done) exit 0 ;;
      esac
    done
    if [ -n "$server" ]; then
      kill -QUIT "$server" 2>/dev/null
      for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$server" 2>/dev/null || break; sleep 0.5; done
      kill -KILL "$server" 2>/dev/null
    fi
    rm -rf -- "$1"`;

  readonly #shell: ChildProcess;

  constructor(directory: string) {
    this.#shell = spawn("/bin/sh", ["-c", Watchdog.#SCRIPT, "watchdog", directory], {
      env: baseEnvironment(),
      cwd: "/",
      stdio: ["pipe", "ignore", "ignore"],
      detached: true,
    });
    this.#shell.stdin?.on("error", () => undefined);
    this.#shell.unref();
  }

  watch(pid: number): void {
    this.#tell(`watch ${pid}`);
  }

  forget(): void {
    this.#tell("forget");
  }

  async end(): Promise<void> {
    const exited = new Promise((resolve) => this.#shell.once("exit", resolve));
    if (this.#shell.exitCode !== null || this.#shell.signalCode !== null) return;
    this.#tell("done");
    this.#shell.stdin?.end();
    await Promise.race([exited, Bun.sleep(2_000)]);
  }

  #tell(line: string): void {
    this.#shell.stdin?.write(`${line}\n`);
  }
}
