/**
 * Where the server is and who we are to it: what psql would find in the same environment, and, when the environment
 * names no server, the one that runs in the data directory.
 * Source: manual, "Environment Variables" and "The Connection Service File" of libpq.
 */
import { join } from "node:path";
import { UsageError } from "../errors.ts";
import type { CurrentAccount } from "../system/account.ts";
import { type Environment, gatherParameters, type Parameters } from "./libpq-parameters.ts";
import { isProcessRunning, readPostmasterPid } from "./postmaster-pid.ts";
import { readService } from "./service-file.ts";
import { type TlsSettings, tlsSettings } from "./tls-settings.ts";

/** One server to try. */
export interface ServerAddress {
  /** As it was given: the name in a certificate and in a password file. A socket directory begins with "/". */
  readonly host: string;
  /** Where to connect to: PGHOSTADDR if it was given, else `host`. */
  readonly address: string;
  readonly port: number;
}

export interface LibpqSettings {
  /** Tried in this order; never empty. */
  readonly servers: readonly ServerAddress[];
  readonly user: string;
  readonly database: string;
  readonly password: string | undefined;
  readonly passwordFile: string | undefined;
  readonly tls: TlsSettings;
  readonly connectTimeoutMs: number;
  readonly applicationName: string;
  readonly options: string | undefined;
}

export interface LibpqContext {
  readonly env: Environment;
  readonly account: CurrentAccount;
  /** Its server is the default one. */
  readonly dataDirectory?: string | undefined;
}

const DEFAULT_PORT = 5432;
/** Debian's and Red Hat's libpq look in the first one, PostgreSQL's own in the second. */
const DEFAULT_SOCKET_DIRECTORIES = ["/var/run/postgresql", "/tmp"];
/** libpq waits for ever; a nightly job that hangs is noticed too late. */
const DEFAULT_CONNECT_TIMEOUT_MS = 60_000;

/** @throws UsageError  a variable, the service file or a certificate is wrong; names it */
export function libpqSettings({ env, account, dataDirectory }: LibpqContext): LibpqSettings {
  const { homeDirectory } = account;
  const serviceName = env["PGSERVICE"] || undefined;
  const service = serviceName
    ? { name: serviceName, values: readService(serviceName, { env, homeDirectory }) }
    : undefined;
  const parameters = gatherParameters(env, service);

  const user = parameters.user?.value ?? account.name;
  if (!user) throw new UsageError("no user name to connect with", { hint: "Set PGUSER." });

  return {
    servers: (!service && serverOf(dataDirectory, parameters)) || serverList(parameters),
    user,
    database: parameters.dbname?.value ?? "postgres",
    password: parameters.password?.value,
    passwordFile: parameters.passfile?.value ?? (homeDirectory && join(homeDirectory, ".pgpass")),
    tls: tlsSettings(parameters, homeDirectory),
    connectTimeoutMs: connectTimeout(parameters),
    applicationName: parameters.application_name?.value ?? "wal-b",
    options: parameters.options?.value,
  };
}

/** The server that runs in the data directory, unless the environment says where the server is. */
function serverOf(dataDirectory: string | undefined, { host, hostaddr, port }: Parameters) {
  if (dataDirectory === undefined || host || hostaddr || port) return undefined;
  const running = readRunningPostmaster(dataDirectory);
  const found = running?.socketDirectory ?? addressToConnectTo(running?.listenAddress);
  return running?.port && found ? [{ host: found, address: found, port: running.port }] : undefined;
}

/** An unreadable postmaster.pid is no failure: an account that may connect need not be able to read it. */
function readRunningPostmaster(dataDirectory: string) {
  try {
    const found = readPostmasterPid(dataDirectory);
    return found && isProcessRunning(found.pid) ? found : undefined;
  } catch {
    return undefined;
  }
}

/** listen_addresses may say "every address", which is no address to connect to. */
function addressToConnectTo(listenAddress: string | undefined): string | undefined {
  return listenAddress && ["*", "0.0.0.0", "::"].includes(listenAddress) ? "localhost" : listenAddress;
}

function serverList(parameters: Parameters): readonly ServerAddress[] {
  const hosts = parameters.host?.value.split(",") ?? [];
  const addresses = parameters.hostaddr?.value.split(",") ?? [];
  const ports = parameters.port?.value.split(",") ?? [];

  const count = Math.max(hosts.length, addresses.length, 1);
  if (hosts.length > 0 && addresses.length > 0 && hosts.length !== addresses.length) {
    throw new UsageError(`could not match ${hosts.length} host names to ${addresses.length} addresses`, {
      hint: `${parameters.host?.source} and ${parameters.hostaddr?.source} must have the same number of entries.`,
    });
  }
  if (ports.length > 1 && ports.length !== count) {
    throw new UsageError(`could not match ${ports.length} port numbers to ${count} hosts`, {
      hint: `${parameters.port?.source} must have one entry, or one for each host.`,
    });
  }

  return Array.from({ length: count }, (_, index) => index).flatMap((index) => {
    const port = portNumber((ports.length > 1 ? ports[index] : ports[0])?.trim(), parameters);
    const host = hosts[index]?.trim() ?? "";
    const address = addresses[index]?.trim() ?? "";
    if (host === "" && address === "")
      return DEFAULT_SOCKET_DIRECTORIES.map((path) => ({ host: path, address: path, port }));
    if (host.startsWith("@")) {
      throw new UsageError(`${parameters.host?.source} cannot be "${host}"`, {
        detail: "wal-b cannot use abstract sockets.",
      });
    }
    return [{ host: host || address, address: address || host, port }];
  });
}

function portNumber(text: string | undefined, { port }: Parameters): number {
  if (text === undefined || text === "") return DEFAULT_PORT;
  const number = /^\d+$/.test(text) ? Number(text) : 0;
  if (number >= 1 && number <= 65_535) return number;
  throw new UsageError(`invalid port number "${text}"`, { detail: `${port?.source} is "${port?.value}".` });
}

/** In seconds; 0 or less waits for ever, as in libpq. */
function connectTimeout({ connect_timeout: given }: Parameters): number {
  if (!given) return DEFAULT_CONNECT_TIMEOUT_MS;
  const seconds = /^[+-]?\d+$/.test(given.value.trim()) ? Number(given.value) : Number.NaN;
  // setTimeout() takes 31 bits of milliseconds.
  if (seconds <= 2_147_483) return Math.max(seconds, 0) * 1000;
  throw new UsageError(`${given.source} cannot be "${given.value}"`, { hint: "It is a whole number of seconds." });
}
