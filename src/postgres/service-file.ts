/** pg_service.conf: connection parameters under a name. Source: parseServiceInfo() in fe-connect.c. */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { reasonOf, systemCodeOf, UsageError } from "../errors.ts";
import { type Environment, isParameterName } from "./libpq-parameters.ts";

/** Where packagers have libpq look when PGSYSCONFDIR is not set: Debian, Red Hat, own builds. */
const SYSTEM_DIRECTORIES = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/usr/local/pgsql/etc"];

/**
 * Looks a service up in PGSERVICEFILE (or ~/.pg_service.conf), then in the system's pg_service.conf.
 *
 * @throws UsageError  no file has the service, or one on the way is wrong
 */
export function readService(
  name: string,
  { env, homeDirectory }: { readonly env: Environment; readonly homeDirectory: string | undefined },
): ReadonlyMap<string, string> {
  const own = env["PGSERVICEFILE"] || (homeDirectory && join(homeDirectory, ".pg_service.conf"));
  const systemDirectories = env["PGSYSCONFDIR"] ? [env["PGSYSCONFDIR"]] : SYSTEM_DIRECTORIES;
  const paths = [...(own ? [own] : []), ...systemDirectories.map((directory) => join(directory, "pg_service.conf"))];

  for (const path of paths) {
    const why = path === env["PGSERVICEFILE"] ? "named" : "looked for";
    const text = readIfThere(path, why);
    if (text === undefined && why === "named") {
      throw new UsageError(`service file "${path}" not found`, { hint: "PGSERVICEFILE names it." });
    }
    const service = text === undefined ? undefined : parseServiceFile(text, name, path);
    if (service) return service;
  }
  throw new UsageError(`definition of service "${name}" not found`, {
    detail: `Looked in ${paths.join(", ")}.`,
    hint: "PGSERVICE names it.",
  });
}

/**
 * @returns undefined when the file has no such section; of parameters given twice, the first one
 * @throws UsageError  the section has a line that is not "parameter=value"
 */
export function parseServiceFile(text: string, name: string, path: string): ReadonlyMap<string, string> | undefined {
  let service: Map<string, string> | undefined;
  for (const [index, rawLine] of text.split("\n").entries()) {
    const line = rawLine.trim();
    if (line === "" || line.startsWith("#")) continue;
    if (line.startsWith("[")) {
      if (service) return service;
      if (line === `[${name}]`) service = new Map();
      continue;
    }
    if (!service) continue;

    if (line.includes("\0")) throw new UsageError(`service file "${path}", line ${index + 1} has a NUL`);
    const equals = line.indexOf("=");
    const key = line.slice(0, Math.max(equals, 0)).trimEnd();
    if (!isParameterName(key)) {
      // Never the line itself: it may hold a password.
      throw new UsageError(`syntax error in service file "${path}", line ${index + 1}`, {
        detail: equals < 0 ? 'The line has no "=".' : `There is no connection parameter "${key}".`,
      });
    }
    if (!service.has(key)) service.set(key, line.slice(equals + 1).trimStart());
  }
  return service;
}

/** What is only looked for counts as absent when it cannot be looked at, as to psql: HOME may be another account's. */
function readIfThere(path: string, why: "named" | "looked for"): string | undefined {
  if (why === "looked for" && !canBeLookedAt(path)) return undefined;
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return undefined;
    throw new UsageError(`could not read service file "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}

function canBeLookedAt(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false }) !== undefined;
  } catch {
    return false;
  }
}
