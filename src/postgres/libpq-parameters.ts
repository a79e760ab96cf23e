/**
 * libpq's connection parameters: their names in a service file and in the environment, and the ones that are refused
 * because passing over them would connect with less protection than was asked for.
 * Source: PQconninfoOptions in fe-connect.c; manual, "Connection Strings" and "Environment Variables".
 */
import { UsageError } from "../errors.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

/** Parameters that wal-b acts on → their environment variable. */
const USED = {
  host: "PGHOST",
  hostaddr: "PGHOSTADDR",
  port: "PGPORT",
  user: "PGUSER",
  dbname: "PGDATABASE",
  password: "PGPASSWORD",
  passfile: "PGPASSFILE",
  sslmode: "PGSSLMODE",
  sslrootcert: "PGSSLROOTCERT",
  sslcert: "PGSSLCERT",
  sslkey: "PGSSLKEY",
  sslpassword: undefined,
  connect_timeout: "PGCONNECT_TIMEOUT",
  application_name: "PGAPPNAME",
  options: "PGOPTIONS",
} as const;

/** Parameters that make no difference here, as long as they have one of these values (any, if none is given). */
const PASSED_OVER: Readonly<Record<string, { readonly env?: string; readonly values?: readonly string[] }>> = {
  channel_binding: { env: "PGCHANNELBINDING", values: ["disable", "prefer"] },
  gssencmode: { env: "PGGSSENCMODE", values: ["disable", "prefer"] },
  load_balance_hosts: { env: "PGLOADBALANCEHOSTS", values: ["disable"] },
  replication: { values: ["false", "off", "no", "0"] },
  require_auth: { env: "PGREQUIREAUTH", values: [] },
  requirepeer: { env: "PGREQUIREPEER", values: [] },
  requiressl: { env: "PGREQUIRESSL", values: ["0"] },
  ssl_min_protocol_version: { env: "PGSSLMINPROTOCOLVERSION", values: ["TLSv1", "TLSv1.1", "TLSv1.2"] },
  ssl_max_protocol_version: { env: "PGSSLMAXPROTOCOLVERSION", values: ["TLSv1.3"] },
  sslcrl: { env: "PGSSLCRL", values: [] },
  sslcrldir: { env: "PGSSLCRLDIR", values: [] },
  sslnegotiation: { env: "PGSSLNEGOTIATION", values: ["postgres"] },
  target_session_attrs: { env: "PGTARGETSESSIONATTRS", values: ["any"] },
  client_encoding: {},
  fallback_application_name: {},
  gssdelegation: { env: "PGGSSDELEGATION" },
  gsslib: { env: "PGGSSLIB" },
  keepalives: {},
  keepalives_count: {},
  keepalives_idle: {},
  keepalives_interval: {},
  krbsrvname: { env: "PGKRBSRVNAME" },
  max_protocol_version: { env: "PGMAXPROTOCOLVERSION" },
  min_protocol_version: { env: "PGMINPROTOCOLVERSION", values: ["3.0"] },
  sslcertmode: { env: "PGSSLCERTMODE" },
  sslcompression: { env: "PGSSLCOMPRESSION" },
  sslsni: { env: "PGSSLSNI" },
  tcp_user_timeout: {},
};

export type ParameterName = keyof typeof USED;

export interface ParameterValue {
  readonly value: string;
  /** Where it was found, for messages: "PGPORT", or 'port in service "main"'. */
  readonly source: string;
}

export type Parameters = Readonly<Partial<Record<ParameterName, ParameterValue>>>;

export function isParameterName(name: string): boolean {
  return Object.hasOwn(USED, name) || Object.hasOwn(PASSED_OVER, name);
}

/**
 * Joins a service's parameters with those of the environment; the service's win, as in libpq. An empty variable counts
 * as not set.
 *
 * @param service  the lines of one section of a service file
 * @throws UsageError  a parameter demands what wal-b cannot do
 */
export function gatherParameters(
  env: Environment,
  service: { readonly name: string; readonly values: ReadonlyMap<string, string> } | undefined,
): Parameters {
  const find = (name: string, variable: string | undefined): ParameterValue | undefined => {
    const value = service?.values.get(name);
    if (value !== undefined) return { value, source: `${name} in service "${service?.name}"` };
    const given = variable === undefined ? undefined : env[variable];
    return given && variable ? { value: given, source: variable } : undefined;
  };

  for (const [name, { env: variable, values }] of Object.entries(PASSED_OVER)) {
    const found = find(name, variable);
    if (found && values && found.value !== "" && !values.includes(found.value)) {
      throw new UsageError(`${found.source} cannot be "${found.value}"`, {
        detail: `wal-b ${values.length > 0 ? `knows only ${values.join(", ")} here` : "does not support this parameter"}.`,
        hint: `Run wal-b without it; connections of other programs keep it if you unset it for wal-b only.`,
      });
    }
  }

  const gathered: Partial<Record<ParameterName, ParameterValue>> = {};
  for (const [name, variable] of Object.entries(USED)) {
    const found = find(name, variable);
    if (found) gathered[name as ParameterName] = found;
  }
  return gathered;
}
