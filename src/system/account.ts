/**
 * The operating system account that this process runs as.
 *
 * Not os.userInfo(): Bun takes the name from $USER and says "unknown" where cron or systemd do not set it.
 */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

export interface CurrentAccount {
  /** undefined when no entry of the account database has the process's number. */
  readonly name: string | undefined;
  readonly homeDirectory: string | undefined;
}

/** @param env  HOME is believed before the account database, as libpq and the shell do */
export function currentAccount(env: Readonly<Record<string, string | undefined>>): CurrentAccount {
  const entry = passwdEntry(process.geteuid?.() ?? -1);
  return { name: entry?.name ?? askId(), homeDirectory: env["HOME"] || entry?.homeDirectory };
}

/** @returns undefined when there is no account of this name, or nobody can tell */
export function accountNamed(wanted: string): { readonly uid: number; readonly gid: number } | undefined {
  for (const line of readPasswd().split("\n")) {
    const [name, , uid, gid] = line.split(":");
    if (name === wanted && uid && gid) return { uid: Number(uid), gid: Number(gid) };
  }
  return undefined;
}

function passwdEntry(uid: number): { readonly name: string; readonly homeDirectory: string } | undefined {
  for (const line of readPasswd().split("\n")) {
    const [name, , number, , , homeDirectory] = line.split(":");
    if (name && homeDirectory !== undefined && Number(number) === uid) return { name, homeDirectory };
  }
  return undefined;
}

function readPasswd(): string {
  try {
    return readFileSync("/etc/passwd", "utf8");
  } catch {
    return "";
  }
}

/** Accounts from LDAP, SSSD or macOS's directory are not in /etc/passwd. */
function askId(): string | undefined {
  try {
    return execFileSync("id", ["-un"], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim() || undefined;
  } catch {
    return undefined;
  }
}
