/** Which servers are tried with which encryption, and when trying ends. Source: PQconnectPoll() in fe-connect.c. */
import { PostgresError } from "../errors.ts";
import { type Attempt, isServerAnswer, NoPasswordError } from "./connection-failure.ts";
import type { ServerAddress } from "./libpq-settings.ts";
import { isSocketDirectory } from "./server-socket.ts";
import type { SslMode } from "./tls-settings.ts";

export type Encryption = Attempt["encryption"];

/** A Unix socket is never encrypted, whatever the mode. */
export function encryptionsFor({ address }: ServerAddress, mode: SslMode): readonly Encryption[] {
  if (mode === "disable" || isSocketDirectory(address)) return ["no SSL"];
  if (mode === "allow") return ["no SSL", "SSL"];
  return mode === "prefer" ? ["SSL", "no SSL"] : ["SSL"];
}

/** pg_hba.conf may let us in with the other encryption, and a TLS that fails may not be needed; a dead port stays dead. */
export function mayChangeEncryption(error: unknown): boolean {
  if (isServerAnswer(error)) return error.code === "28000";
  return !(error instanceof ConnectTimeoutError || error instanceof NoPasswordError || isNetworkError(error));
}

const isNetworkError = (error: unknown) => error instanceof Error && "syscall" in error && error.syscall !== "read";

/** The server knew us and said no: another server is not asked (manual, "Specifying Multiple Hosts"). */
export function wasRejected(error: unknown): boolean {
  return error instanceof NoPasswordError || (isServerAnswer(error) && error.code?.startsWith("28") === true);
}

export class ConnectTimeoutError extends PostgresError {}
