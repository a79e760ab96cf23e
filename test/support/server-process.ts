/** A server that a test has started: ended by its process id, whatever happens to the test. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import type { Writable } from "node:stream";

const STOP_MS = 5000;

/** This machine does not have the server and cannot get it: others may do. A server that is there and fails is no such case. */
export class ServerUnavailableError extends Error {}

export interface ServerProcess {
  readonly pid: number;
  /** @throws Error  it has ended, with the end of its log */
  checkRunning(): void;
  /** @param graceMs  after which it is killed */
  stop(graceMs?: number): Promise<void>;
}

export interface ServerProcessOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly logFile: string;
  /** Removed if the test is killed; otherwise whoever made it removes it. */
  readonly directory: string;
}

/**
 * Becomes the server, after leaving a guard behind: the end of the pipe without a word means that the test's process was
 * killed, whatever by, and then the server and its directory go too.
 */
const GUARDED = `
directory=$1; shift; server=$$
{ read -r _ <&3 || { kill -KILL $server; sleep 1; rm -rf "$directory"; }; } >/dev/null 2>&1 &
exec "$@" 3<&-
`;

export function startServer(
  command: readonly string[],
  { env = {}, logFile, directory }: ServerProcessOptions,
): ServerProcess {
  const log = openSync(logFile, "a");
  const child = spawn("sh", ["-c", GUARDED, "sh", directory, ...command], {
    env: { ...process.env, ...env },
    stdio: ["ignore", log, log, "pipe"],
  });
  closeSync(log);
  const guard = child.stdio[3] as Writable;
  guard.on("error", () => {});
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
  return {
    pid: child.pid ?? 0,
    checkRunning: () => {
      if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) return;
      const end = child.signalCode ?? `exit code ${child.exitCode}`;
      throw new Error(`${command[0]} ended with ${end}:\n${readFileSync(logFile, "utf8").slice(-2000)}`);
    },
    stop: async (graceMs = STOP_MS) => {
      guard.end("stopped\n");
      kill(child, "SIGTERM");
      const timer = setTimeout(() => kill(child, "SIGKILL"), graceMs);
      await ended;
      clearTimeout(timer);
    },
  };
}

/** Waits for a server to answer a plain HTTP request, whatever the answer. */
export async function waitForHttp(url: string, server: ServerProcess, timeoutMs = 60_000): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    server.checkRunning();
    try {
      await (await fetch(url, { signal: AbortSignal.timeout(2000) })).arrayBuffer();
      return;
    } catch (error) {
      if (performance.now() > deadline) throw new Error(`no answer from ${url} in ${timeoutMs} ms`, { cause: error });
      await Bun.sleep(100);
    }
  }
}

function kill(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.exitCode === null && child.signalCode === null) child.kill(signal);
}
