/**
 * ~/.pgpass: passwords by host, port, database and user. Source: passwordFromFile() in fe-connect.c; manual,
 * "The Password File". Not the package pgpass: it reads process.env, writes to stderr by itself, takes a line without
 * a match for the default port, and fails on passwords that end in a backslash.
 */
import { readFileSync, statSync } from "node:fs";
import { reasonOf, systemCodeOf } from "../errors.ts";
import type { Log } from "../system/log.ts";

export interface PasswordKey {
  /** A socket directory, a host name or an address, as it was given. */
  readonly host: string;
  readonly port: number;
  readonly database: string;
  readonly user: string;
}

/** Directories that libpq calls "localhost" in a password file; which one depends on how it was built. */
const DEFAULT_SOCKET_DIRECTORIES = ["/var/run/postgresql", "/run/postgresql", "/tmp"];

/** @returns undefined when there is no such file, no line of it fits, or it may not be used (a warning says why) */
export function passwordFromFile(path: string, key: PasswordKey, log: Log): string | undefined {
  const text = readPasswordFile(path, log);
  return text === undefined ? undefined : findPassword(text, key);
}

/** The password of the first line that fits. */
export function findPassword(text: string, { host, port, database, user }: PasswordKey): string | undefined {
  const hosts = DEFAULT_SOCKET_DIRECTORIES.includes(host) ? [host, "localhost"] : [host];
  const wanted = [hosts, [String(port)], [database], [user]];

  for (const line of text.split("\n")) {
    const content = line.replace(/\r$/, "");
    if (content.startsWith("#")) continue;
    const fields = splitFields(content);
    if (fields.length < 5) continue;
    const fits = wanted.every(
      (values, index) => fields[index] === "*" || values.includes(withoutBackslashes(fields[index] ?? "")),
    );
    if (fits && fields[4] !== "") return withoutBackslashes(fields[4] ?? "");
  }
  return undefined;
}

/** At colons that no backslash precedes; fields keep their backslashes. What follows the fifth is passed over. */
function splitFields(line: string): string[] {
  const fields = [""];
  for (let index = 0; index < line.length; index++) {
    const character = line[index] as string;
    if (character === ":") {
      fields.push("");
    } else if (character === "\\" && index + 1 < line.length) {
      index++;
      fields[fields.length - 1] += character + line[index];
    } else {
      fields[fields.length - 1] += character;
    }
  }
  return fields;
}

const withoutBackslashes = (field: string) => field.replace(/\\(.)/gsu, "$1");

function readPasswordFile(path: string, log: Log): string | undefined {
  const ignored = (detail: string) => log.warning(`password file "${path}" is not used`, { detail });
  try {
    const stat = statSync(path);
    if (!stat.isFile()) return void ignored("It is not a plain file.");
    if ((stat.mode & 0o077) !== 0) {
      return void ignored("Its group or others have access to it; permissions must be u=rw (0600) or less.");
    }
    return readFileSync(path, "utf8");
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return undefined;
    return void ignored(`${reasonOf(cause)}.`);
  }
}
