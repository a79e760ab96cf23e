/** What a user reads when no connection came about: what, where, why, and what to do. Never the password. */
import { Failure, PostgresError, reasonOf, systemCodeOf } from "../errors.ts";
import type { LibpqSettings, ServerAddress } from "./libpq-settings.ts";
import { isSocketDirectory, socketPath, TlsRefusedError } from "./server-socket.ts";

/** What the server answered, with its SQLSTATE. Source of the codes: manual, "PostgreSQL Error Codes". */
export class ServerError extends PostgresError {
  readonly sqlState: string;
  /** The function in the server that raised it; it tells apart what shares a code. */
  readonly routine: string | undefined;

  constructor(message: string, answer: ServerAnswer) {
    super(message, { detail: answer.detail, hint: answer.hint, cause: answer });
    this.sqlState = answer.code ?? "";
    this.routine = answer.routine;
  }
}

/** The fields of an ErrorResponse that we use; the driver's DatabaseError has them. */
export interface ServerAnswer extends Error {
  readonly severity: string;
  readonly code?: string;
  readonly detail?: string;
  readonly hint?: string;
  readonly routine?: string;
}

export function isServerAnswer(error: unknown): error is ServerAnswer {
  return error instanceof Error && "severity" in error && typeof error.severity === "string";
}

/** The server asked for a password and nobody gave us one; nobody will be asked for it either. */
export class NoPasswordError extends PostgresError {}

/** One try at one server. */
export interface Attempt {
  readonly server: ServerAddress;
  readonly encryption: "SSL" | "no SSL";
  readonly error: unknown;
}

/** @param attempts  in the order they were made, at least one */
export function connectionFailure(attempts: readonly Attempt[], settings: LibpqSettings): PostgresError {
  // That the server does not do SSL is no reason when it was then asked without.
  const refused = attempts.every(({ error }) => error instanceof TlsRefusedError);
  const telling = refused ? attempts : attempts.filter(({ error }) => !(error instanceof TlsRefusedError));
  const places = new Set(telling.map(({ server }) => placeOf(server)));
  const lines = new Set(
    telling.map((attempt) => (places.size > 1 ? `${placeOf(attempt.server)}: ${whyOf(attempt)}` : whyOf(attempt))),
  );
  const last = mostTelling(telling);
  return new PostgresError(`could not connect to PostgreSQL at ${placeOf(last.server)}`, {
    detail: `${[...lines].join("; ")}.`,
    hint: hintFor(last, settings),
    cause: last.error,
  });
}

export function placeOf(server: ServerAddress): string {
  if (isSocketDirectory(server.address)) return `socket "${socketPath(server)}"`;
  const address = server.address === server.host ? "" : ` (${server.address})`;
  return `"${server.host}"${address}, port ${server.port}`;
}

/** The answer of a server says more than a socket that is not there. */
function mostTelling(attempts: readonly Attempt[]): Attempt {
  const answered = attempts.findLast(({ error }) => error instanceof Failure || isServerAnswer(error));
  const present = attempts.findLast(({ error }) => systemCodeOf(error) !== "ENOENT");
  return answered ?? present ?? (attempts[0] as Attempt);
}

function whyOf({ error }: Attempt): string {
  if (!isServerAnswer(error)) return reasonOf(error);
  return error.detail ? `${error.message} (${error.detail})` : error.message;
}

function hintFor({ error, server, encryption }: Attempt, settings: LibpqSettings): string | undefined {
  if (error instanceof NoPasswordError)
    return `Set PGPASSWORD or put the password into "${settings.passwordFile ?? "~/.pgpass"}".`;
  if (error instanceof TlsRefusedError)
    return `Set ssl = on in postgresql.conf, or PGSSLMODE to other than "${settings.tls.mode}".`;
  if (isServerAnswer(error)) return hintForAnswer(error, server, settings);
  if (error instanceof Failure) return error.hint;

  switch (systemCodeOf(error)) {
    case "ENOENT":
    case "ECONNREFUSED":
      return "Check that the server is running, and that PGHOST and PGPORT are those that psql needs.";
    case "EACCES":
      return `This account may not use the socket in "${server.host}"; run wal-b as the account that owns the server.`;
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return "Check the name in PGHOST and this machine's name resolution.";
    case "ETIMEDOUT":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return "Check PGHOST, the network and firewalls; PGCONNECT_TIMEOUT says how many seconds to wait.";
    default:
      if (encryption === "no SSL") return undefined;
      return "Check the server's certificate, and PGSSLROOTCERT, PGSSLCERT, PGSSLKEY and PGSSLMODE.";
  }
}

function hintForAnswer(
  { code, routine }: ServerAnswer,
  server: ServerAddress,
  { user, database }: LibpqSettings,
): string | undefined {
  switch (code) {
    case "28P01":
      return `Check the password of role "${user}" in PGPASSWORD or the password file.`;
    case "28000":
      if (routine === "InitializeSessionUserId") {
        return `Run wal-b as the account that owns the server, set PGUSER, or create the role "${user}".`;
      }
      if (isSocketDirectory(server.address)) {
        return `Check pg_hba.conf's lines for "local"; with "peer" this account must have the name of the role, "${user}" (PGUSER).`;
      }
      return `Check which line of pg_hba.conf is for role "${user}" (PGUSER) and this address, and what it demands.`;
    case "3D000":
      return `Set PGDATABASE to a database that exists instead of "${database}".`;
    case "42501":
      return `Grant CONNECT on database "${database}" to role "${user}", or set PGDATABASE.`;
    case "57P03":
      return "Wait until the server has started; on a standby, check hot_standby = on.";
    case "53300":
      return "Close connections, or raise max_connections.";
    default:
      return undefined;
  }
}
