/** Sessions on a server that was started on a throw-away copy: as a superuser, whoever that is there, and without what users preset. */
import { PostgresError } from "../errors.ts";
import { type Connection, type ConnectionContext, connectToPostgres } from "./connection.ts";
import { isServerAnswer } from "./connection-failure.ts";
import { SCRATCH_PORT } from "./scratch-settings.ts";

/** Who lets us in, and where first. */
export interface ScratchLogin {
  readonly user: string;
  readonly database: string;
}

/** What ALTER ROLE and ALTER DATABASE may have set otherwise; what comes with the connection wins. */
const OPTIONS =
  "-c session_preload_libraries= -c local_preload_libraries= -c role=none -c default_transaction_read_only=off";

export async function connectToScratch(
  socketDirectory: string,
  { user, database }: ScratchLogin,
  context: ConnectionContext,
): Promise<Connection> {
  const none = undefined;
  return await connectToPostgres(
    {
      servers: [{ host: socketDirectory, address: socketDirectory, port: SCRATCH_PORT }],
      user,
      database,
      password: none,
      passwordFile: none,
      tls: { mode: "disable", verify: "none", rootCertificates: none, certificate: none, key: none, passphrase: none },
      connectTimeoutMs: 60_000,
      applicationName: "wal-b drill",
      options: OPTIONS,
    },
    context,
  );
}

/** Either may have been dropped, and neither can be listed before one is connected to. */
const DATABASES = ["postgres", "template1"];
/** SQLSTATE of a role, or a database, that does not exist or refuses. */
const NOT_THERE = ["28000", "28P01", "3D000", "55000"];

/**
 * @param users  to try, in this order
 * @throws PostgresError  none of them is a superuser there
 */
export async function findScratchLogin(
  socketDirectory: string,
  users: readonly string[],
  context: ConnectionContext,
): Promise<ScratchLogin> {
  for (const database of DATABASES) {
    for (const user of new Set(users)) {
      try {
        await using session = await connectToScratch(socketDirectory, { user, database }, context);
        const [row] = await session.query<{ is: string }>("SELECT pg_catalog.current_setting('is_superuser') AS is");
        if (row?.is === "on") return { user, database };
      } catch (error) {
        context.signal.throwIfAborted();
        const cause = error instanceof PostgresError ? error.cause : undefined;
        if (!isServerAnswer(cause) || !NOT_THERE.includes(cause.code ?? "")) throw error;
      }
    }
  }
  throw new PostgresError("the restored server has no superuser that is known here", {
    detail: `Tried ${[...new Set(users)].map((user) => `"${user}"`).join(", ")}.`,
    hint: "Set PGUSER to the name of one.",
  });
}
