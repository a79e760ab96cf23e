/**
 * PGSSLMODE and the certificates it works with, as libpq understands them.
 * Source: initialize_SSL() in fe-secure-openssl.c; manual, "SSL Support" of libpq.
 */
import { readFileSync, type Stats, statSync } from "node:fs";
import { join } from "node:path";
import { reasonOf, systemCodeOf, UsageError } from "../errors.ts";
import type { Parameters } from "./libpq-parameters.ts";

const SSL_MODES = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const;

export type SslMode = (typeof SSL_MODES)[number];

export interface TlsSettings {
  readonly mode: SslMode;
  /** "none": any certificate; "ca": one of a known authority; "full": also for the host's name. */
  readonly verify: "none" | "ca" | "full";
  /** undefined with `verify` other than "none" means: the authorities that the system trusts. */
  readonly rootCertificates: string | undefined;
  readonly certificate: string | undefined;
  readonly key: string | undefined;
  readonly passphrase: string | undefined;
}

/** @throws UsageError  the mode does not exist, or a certificate that it needs cannot be read */
export function tlsSettings(parameters: Parameters, homeDirectory: string | undefined): TlsSettings {
  const system = parameters.sslrootcert?.value === "system";
  const mode = sslMode(parameters, system);
  if (mode === "disable") return { ...NO_CERTIFICATES, mode, verify: "none" };

  const inHome = (name: string) => (homeDirectory ? join(homeDirectory, ".postgresql", name) : undefined);
  if (system) return { mode, verify: "full", rootCertificates: undefined, ...clientCertificate(parameters, inHome) };

  // Where there is a root certificate it is used, whatever the mode: "require" then means "verify-ca".
  const rootPath = parameters.sslrootcert?.value ?? inHome("root.crt");
  const rootStat =
    rootPath === undefined ? undefined : statOf(rootPath, parameters.sslrootcert ? "named" : "looked for");
  if (rootPath === undefined || !rootStat) {
    if (mode === "verify-ca" || mode === "verify-full") {
      throw new UsageError(`root certificate file "${rootPath ?? "~/.postgresql/root.crt"}" does not exist`, {
        detail: `sslmode "${mode}" needs it to verify the server's certificate.`,
        hint: 'Provide the file, set PGSSLROOTCERT to another one or to "system", or change PGSSLMODE.',
      });
    }
    return { mode, verify: "none", rootCertificates: undefined, ...clientCertificate(parameters, inHome) };
  }
  return {
    mode,
    verify: mode === "verify-full" ? "full" : "ca",
    rootCertificates: readPem(rootPath, "root certificate file"),
    ...clientCertificate(parameters, inHome),
  };
}

const NO_CERTIFICATES = {
  rootCertificates: undefined,
  certificate: undefined,
  key: undefined,
  passphrase: undefined,
} as const;

function sslMode({ sslmode }: Parameters, system: boolean): SslMode {
  const mode = SSL_MODES.find((known) => known === (sslmode?.value ?? (system ? "verify-full" : "prefer")));
  if (!mode) {
    throw new UsageError(`${sslmode?.source} cannot be "${sslmode?.value}"`, {
      hint: `It can be ${SSL_MODES.join(", ")}.`,
    });
  }
  if (system && mode !== "verify-full") {
    throw new UsageError(`weak sslmode "${mode}" cannot be used with sslrootcert "system"`, {
      hint: 'Set PGSSLMODE to "verify-full".',
    });
  }
  return mode;
}

function clientCertificate(parameters: Parameters, inHome: (name: string) => string | undefined) {
  const { sslcert, sslkey, sslpassword } = parameters;
  const certificatePath = sslcert?.value ?? inHome("postgresql.crt");
  if (certificatePath === undefined || !statOf(certificatePath, sslcert ? "named" : "looked for")) {
    if (sslcert)
      throw new UsageError(`certificate file "${sslcert.value}" does not exist`, {
        hint: `${sslcert.source} names it.`,
      });
    return { certificate: undefined, key: undefined, passphrase: undefined };
  }

  const keyPath = sslkey?.value ?? inHome("postgresql.key");
  const keyStat = keyPath === undefined ? undefined : statOf(keyPath, "named");
  if (keyPath === undefined || !keyStat) {
    throw new UsageError(
      `there is a certificate, but no private key file "${keyPath ?? "~/.postgresql/postgresql.key"}"`,
      {
        detail: `The certificate is "${certificatePath}".`,
        hint: "PGSSLKEY names the private key.",
      },
    );
  }
  checkKeyPermissions(keyPath, keyStat);
  return {
    certificate: readPem(certificatePath, "certificate file"),
    key: readPem(keyPath, "private key file"),
    passphrase: sslpassword?.value,
  };
}

/** Root may own the key and let a group read it; anybody else's key must be theirs alone. */
function checkKeyPermissions(path: string, stat: Stats): void {
  const allowed = stat.uid === 0 ? 0o740 : 0o700;
  if ((stat.mode & 0o777 & ~allowed) === 0) return;
  throw new UsageError(`private key file "${path}" has group or world access`, {
    hint: "Its permissions must be u=rw (0600) or less, or u=rw,g=r (0640) or less if root owns it.",
  });
}

function readPem(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new UsageError(`could not read ${what} "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}

/**
 * What is only looked for counts as absent when it cannot be looked at: HOME is another account's after "su postgres" and in many a
 * cron, where psql connects all the same.
 *
 * @returns undefined when there is no such file @throws UsageError  it could not be found out
 */
function statOf(path: string, why: "named" | "looked for"): Stats | undefined {
  try {
    return statSync(path);
  } catch (cause) {
    if (why === "looked for") return undefined;
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return undefined;
    throw new UsageError("could not look for a certificate", { detail: `${reasonOf(cause)}.`, cause });
  }
}
