/** postmaster.pid: whether a server runs in a data directory, and where it listens. Source: pidfile.h. */
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";

export interface PostmasterPid {
  readonly pid: number;
  readonly dataDirectory: string;
  /** In seconds since 1970. With the number it tells one run of a server from another. */
  readonly startedAt: number | undefined;
  /** Missing while the server starts, for it writes the lines one after the other. */
  readonly port: number | undefined;
  /** The first of unix_socket_directories; undefined when there is none. */
  readonly socketDirectory: string | undefined;
  /** The first of listen_addresses; undefined when there is none. */
  readonly listenAddress: string | undefined;
  /** "starting", "stopping", "ready" or "standby"; "stopping" from the request on. */
  readonly status: string | undefined;
}

/**
 * @returns undefined when there is no such file, or nothing in it yet
 * @throws SourceMissingError  it is there but cannot be read
 */
export function readPostmasterPid(dataDirectory: string): PostmasterPid | undefined {
  const path = join(dataDirectory, "postmaster.pid");
  try {
    return parsePostmasterPid(readFileSync(path, "utf8"), dataDirectory);
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return undefined;
    throw new SourceMissingError(`could not read "${path}"`, {
      detail: `${reasonOf(cause)}.`,
      hint: "Run wal-b as the account that owns the data directory, usually postgres.",
      cause,
    });
  }
}

/** @param dataDirectory  a relative socket directory is relative to it, for that is where the server runs */
export function parsePostmasterPid(text: string, dataDirectory: string): PostmasterPid | undefined {
  const [pid = "", directory = "", startedAt = "", port = "", socketDirectory = "", listenAddress = "", , status = ""] =
    text.split("\n");
  // A server in single-user mode writes its number with a minus sign.
  const number = Math.abs(Number(pid.trim()));
  if (!Number.isSafeInteger(number) || number === 0) return undefined;
  return {
    pid: number,
    dataDirectory: directory.trim(),
    startedAt: Number(startedAt.trim()) || undefined,
    port: Number(port.trim()) || undefined,
    socketDirectory: socketDirectory.trim() === "" ? undefined : resolve(dataDirectory, socketDirectory.trim()),
    listenAddress: listenAddress.trim() || undefined,
    status: status.trim() || undefined,
  };
}

/** One that has ended counts as ended also while nobody has asked for its exit code, as in a container without an init. */
export function isProcessRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !isZombie(pid);
  } catch (error) {
    // EPERM: it runs, and belongs to somebody else.
    return systemCodeOf(error) === "EPERM";
  }
}

/** Linux only; elsewhere nothing is known of it. Source: proc_pid_stat(5): the state follows the name in parentheses. */
function isZombie(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return /^[ZX]/.test(stat.slice(stat.lastIndexOf(")") + 2));
  } catch {
    return false;
  }
}
