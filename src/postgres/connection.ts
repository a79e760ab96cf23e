/**
 * One connection to the server, as libpq would make it. The only importer of the driver, which it loads when needed.
 *
 * Losing the connection is an event, not only the failure of the next query: a backup that copies files for hours
 * must stop when its session is gone.
 */
import type { Socket } from "node:net";
import type { Client } from "pg";
import { Failure, PostgresError, reasonOf } from "../errors.ts";
import type { Log } from "../system/log.ts";
import {
  type Attempt,
  connectionFailure,
  isServerAnswer,
  NoPasswordError,
  placeOf,
  ServerError,
} from "./connection-failure.ts";
import {
  ConnectTimeoutError,
  type Encryption,
  encryptionsFor,
  mayChangeEncryption,
  wasRejected,
} from "./connection-policy.ts";
import type { LibpqSettings, ServerAddress } from "./libpq-settings.ts";
import { passwordFromFile } from "./password-file.ts";
import { openEncryptedSocket, openPlainSocket } from "./server-socket.ts";

/** A connection. Disposing it ends the session; a backup that runs in it is abandoned by the server. */
export interface Connection extends AsyncDisposable {
  /** server_version_num: 150018 is 15.18. */
  readonly serverVersion: number;
  readonly majorVersion: number;
  readonly user: string;
  /** For messages: 'socket "/tmp/.s.PGSQL.5432"' or '"db1", port 5432'. */
  readonly place: string;
  /** "pooler": the session belongs to something between us and the server, which keeps it when we leave. */
  readonly peer: "server" | "pooler";
  /** Aborted with a PostgresError, or the caller's own reason, once the connection is gone before it was disposed. */
  readonly lost: AbortSignal;
  /**
   * Runs one statement at a time, in the order of the calls. Values come as the server's text, NULL as null.
   *
   * @throws ServerError  the server refused it; the connection still works unless `lost` says otherwise
   * @throws PostgresError  the connection is gone
   */
  query<Row extends object>(sql: string, parameters?: readonly (string | number | boolean)[]): Promise<readonly Row[]>;
}

export interface ConnectionContext {
  readonly log: Log;
  /** Aborting it ends the connection at once; what waits then fails with the signal's reason. */
  readonly signal: AbortSignal;
}

const OLDEST_VERSION = 120_000;

/**
 * Tries the servers in their order until one lets us in.
 *
 * @throws PostgresError  none did, or the one that did is too old
 * @throws the signal's reason
 */
export async function connectToPostgres(settings: LibpqSettings, context: ConnectionContext): Promise<Connection> {
  const { default: driver } = await import("pg");
  const attempts: Attempt[] = [];
  for (const server of settings.servers) {
    for (const encryption of encryptionsFor(server, settings.tls.mode)) {
      try {
        return await connectOnce({ server, encryption, settings, Client: driver.Client }, context);
      } catch (error) {
        context.signal.throwIfAborted();
        attempts.push({ server, encryption, error });
        if (error instanceof UnsupportedServerError) throw error;
        if (!mayChangeEncryption(error)) break;
      }
    }
    if (wasRejected(attempts.at(-1)?.error)) break;
  }
  throw connectionFailure(attempts, settings);
}

class UnsupportedServerError extends PostgresError {}

/** One try. */
interface Target {
  readonly server: ServerAddress;
  readonly encryption: Encryption;
  readonly settings: LibpqSettings;
  readonly Client: typeof Client;
}

async function connectOnce(target: Target, { log, signal }: ConnectionContext): Promise<Connection> {
  const { server, encryption, settings } = target;
  const timeout = new AbortController();
  const seconds = settings.connectTimeoutMs / 1000;
  const giveUp = () => timeout.abort(new ConnectTimeoutError(`no answer within ${seconds} seconds`));
  const timer = seconds > 0 ? setTimeout(giveUp, settings.connectTimeoutMs) : undefined;
  const opening = AbortSignal.any([signal, timeout.signal]);

  try {
    const socket =
      encryption === "SSL"
        ? await openEncryptedSocket(server, settings.tls, opening)
        : await openPlainSocket(server, opening);
    const session = await Session.open(socket, { ...target, log, signal, opening });
    log.debug(
      `connected to PostgreSQL ${session.majorVersion} at ${session.place} as "${session.user}", ${encryption}`,
    );
    return session;
  } finally {
    clearTimeout(timer);
  }
}

interface SessionContext extends ConnectionContext, Target {
  /** Aborts while the session is being opened. */
  readonly opening: AbortSignal;
}

class Session implements Connection {
  readonly place: string;
  readonly user: string;
  serverVersion = 0;
  peer: "server" | "pooler" = "server";
  readonly #client: Client;
  readonly #socket: Socket;
  readonly #signal: AbortSignal;
  readonly #lost = new AbortController();
  #disposed = false;
  /** The end of the queue: the driver wants one query at a time. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(client: Client, socket: Socket, { server, settings, signal }: SessionContext) {
    this.#client = client;
    this.#socket = socket;
    this.#signal = signal;
    this.place = placeOf(server);
    this.user = settings.user;
  }

  static async open(socket: Socket, context: SessionContext): Promise<Session> {
    const { settings, server, log, opening, signal } = context;
    const client = new context.Client({
      host: server.host,
      port: server.port,
      user: settings.user,
      database: settings.database,
      application_name: settings.applicationName,
      password: () => settings.password ?? readPassword(server, settings, log),
      // Connected and encrypted already; the driver only has to be told so.
      stream: () => alreadyConnected(socket),
      ssl: false,
      types: { getTypeParser: () => (text: unknown) => text },
    } as ConstructorParameters<typeof Client>[0]);
    withoutProcessEnvironment(client, settings);

    const session = new Session(client, socket, context);
    client.on("error", (error) => session.#lose(error));
    client.on("notice", (notice) => log.debug(`PostgreSQL: ${notice.severity}: ${notice.message}`));
    const aborted = Promise.withResolvers<never>();
    const abort = () => aborted.reject(opening.reason);
    opening.addEventListener("abort", abort, { once: true });
    try {
      opening.throwIfAborted();
      await Promise.race([client.connect().then(() => session.#setUp()), aborted.promise]);
    } catch (error) {
      session.#disposed = true;
      socket.destroy();
      throw error;
    } finally {
      opening.removeEventListener("abort", abort);
    }
    signal.addEventListener("abort", session.#abort, { once: true });
    return session;
  }

  get majorVersion(): number {
    return Math.floor(this.serverVersion / 10_000);
  }

  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  async query<Row extends object>(
    sql: string,
    parameters: readonly (string | number | boolean)[] = [],
  ): Promise<readonly Row[]> {
    const turn = this.#last.then(() => this.#run<Row>(sql, parameters));
    this.#last = turn.catch(() => undefined);
    return await turn;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#signal.removeEventListener("abort", this.#abort);
    if (this.#lost.signal.aborted) return void this.#socket.destroy();
    const closed = new Promise((resolve) => this.#socket.once("close", resolve));
    // With a query under way there is nobody to say goodbye to.
    await Promise.race([this.#client.end(), closed, new Promise((resolve) => setTimeout(resolve, GOODBYE_MS))]);
    this.#socket.destroy();
  }

  async #run<Row extends object>(
    sql: string,
    parameters: readonly (string | number | boolean)[],
  ): Promise<readonly Row[]> {
    if (this.#disposed) throw new PostgresError("the connection to PostgreSQL is closed");
    this.#lost.signal.throwIfAborted();
    try {
      const { rows } = await this.#client.query<Row & Record<string, unknown>>(sql, parameters.map(String));
      return rows;
    } catch (error) {
      if (this.#lost.signal.aborted) throw this.#lost.signal.reason;
      if (!isServerAnswer(error)) throw this.#lose(error);
      // FATAL ends the session; the driver hears of it a moment later.
      if (error.severity === "FATAL" || error.code?.startsWith("57P")) throw this.#lose(error);
      throw new ServerError(error.message, error);
    }
  }

  /** Settings that a role or database may have otherwise, and that would end or change an hours-long session. */
  async #setUp(): Promise<void> {
    const { rows } = await this.#client.query<Record<"version" | "pid", string>>(SET_UP);
    this.serverVersion = Number(rows[0]?.version);
    if (rows[0]?.pid !== String((this.#client as unknown as { processID: unknown }).processID)) this.peer = "pooler";
    if (this.serverVersion < OLDEST_VERSION) {
      throw new UnsupportedServerError(`PostgreSQL ${this.majorVersion} at ${this.place} is too old`, {
        hint: "wal-b supports PostgreSQL 12 and later.",
      });
    }
  }

  readonly #abort = () => void this.#lose(this.#signal.reason);

  #lose(error: unknown): unknown {
    if (!this.#lost.signal.aborted && !this.#disposed) this.#lost.abort(this.#lossOf(error));
    this.#socket.destroy();
    return this.#lost.signal.reason ?? error;
  }

  #lossOf(error: unknown): unknown {
    if (error instanceof Failure || error === this.#signal.reason) return error;
    return new PostgresError("lost the connection to PostgreSQL", {
      detail: `${this.place}: ${reasonOf(error)}.`,
      hint: "The server's log says why it ended the session, or whether it stopped.",
      cause: error,
    });
  }
}

const GOODBYE_MS = 2_000;

/** set_config() by way of pg_settings, so that what an older server does not have is passed over. */
const SET_UP = `
  SELECT pg_catalog.current_setting('server_version_num') AS version, pg_catalog.pg_backend_pid() AS pid,
         (SELECT pg_catalog.count(pg_catalog.set_config(known.name, wanted.setting, false))
            FROM (VALUES ('search_path', 'pg_catalog'), ('client_encoding', 'UTF8'), ('datestyle', 'ISO'),
                         ('statement_timeout', '0'), ('lock_timeout', '0'), ('transaction_timeout', '0'),
                         ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '0'),
                         ('max_parallel_workers_per_gather', '0')) AS wanted (name, setting)
            JOIN pg_catalog.pg_settings AS known ON pg_catalog.lower(known.name) = wanted.name) AS changed`;

function readPassword(
  { host, port }: ServerAddress,
  { database, user, passwordFile }: LibpqSettings,
  log: Log,
): string {
  const found = passwordFile && passwordFromFile(passwordFile, { host, port, database, user }, log);
  if (!found) throw new NoPasswordError("the server asks for a password, and none was given");
  return found;
}

/** The driver calls connect() and waits for the event. */
function alreadyConnected(socket: Socket): Socket {
  socket.connect = () => {
    queueMicrotask(() => socket.emit("connect"));
    return socket;
  };
  socket.resume();
  return socket;
}

/** What it is not given the driver takes from the process's own environment, which an envdir may have replaced. */
function withoutProcessEnvironment(client: Client, { options }: LibpqSettings): void {
  const { connectionParameters } = client as unknown as { connectionParameters: Record<string, unknown> };
  Object.assign(connectionParameters, { options, replication: undefined, client_encoding: undefined, binary: false });
  Object.assign(client, { replication: undefined, binary: false });
}
