/** A server that a test has started: ended by its process id, whatever happens to the test. */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:net";

const STOP_MS = 5000;

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
}

export function startServer(command: readonly string[], { env = {}, logFile }: ServerProcessOptions): ServerProcess {
  const [program = "", ...args] = command;
  const log = openSync(logFile, "a");
  const child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ["ignore", log, log] });
  closeSync(log);
  const ended = new Promise<void>((resolve) => {
    child.once("exit", () => resolve());
    child.once("error", () => resolve());
  });
  const atExit = () => kill(child, "SIGKILL");
  process.once("exit", atExit);
  return {
    pid: child.pid ?? 0,
    checkRunning: () => {
      if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) return;
      const end = child.signalCode ?? `exit code ${child.exitCode}`;
      throw new Error(`${program} ended with ${end}:\n${readFileSync(logFile, "utf8").slice(-2000)}`);
    },
    stop: async (graceMs = STOP_MS) => {
      process.removeListener("exit", atExit);
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

/** Free at this moment; the server that is given it should start soon. */
export async function freePort(): Promise<number> {
  const listener = createServer();
  await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
  const address = listener.address();
  await new Promise((resolve) => listener.close(resolve));
  if (typeof address !== "object" || address === null) throw new Error("no free port");
  return address.port;
}

function kill(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.exitCode === null && child.signalCode === null) child.kill(signal);
}
