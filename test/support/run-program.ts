/** Runs a program to its end, in an environment that is spelled out, within a time that is spelled out. */
import { spawn } from "node:child_process";

export interface RunOptions {
  /** Everything the program sees beside `baseEnvironment()`; a variable that is undefined is left out. */
  readonly env?: Readonly<Record<string, string | undefined>> | undefined;
  readonly cwd?: string | undefined;
  readonly stdin?: string | Uint8Array | undefined;
  readonly timeoutMs?: number | undefined;
  /** The program gets this signal once it is known. */
  readonly signalled?: Promise<NodeJS.Signals> | undefined;
  /** Root hands the program to this account. */
  readonly as?: { readonly uid: number; readonly gid: number } | undefined;
}

export interface ProgramResult {
  /** null when a signal ended it. */
  readonly exitCode: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
  /** It was killed, with all that it had started, because the time was up. */
  readonly timedOut: boolean;
}

/**
 * What every program under test starts from: a path to the system's programs and fixed language and time zone.
 * Nothing of the developer's own environment (AWS_*, PG*, WALB_*) gets in.
 */
export function baseEnvironment(): Record<string, string> {
  return {
    PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    HOME: "/nonexistent",
    LANG: "C",
    LC_ALL: "C",
    TZ: "UTC",
  };
}

/**
 * Waits for the program and for its output to end; what it left running in the background is not waited for.
 *
 * @throws Error  the program could not be started
 */
export async function runProgram(command: readonly string[], options: RunOptions = {}): Promise<ProgramResult> {
  const [program, ...args] = command;
  if (program === undefined) throw new Error("no program to run");
  const { timeoutMs = 60_000, stdin, cwd } = options;

  const child = spawn(program, args, {
    cwd,
    env: environmentOf(options.env),
    stdio: ["pipe", "pipe", "pipe"],
    // A process group of its own, so that the end of the time ends its children too.
    detached: true,
    ...(options.as && { uid: options.as.uid, gid: options.as.gid }),
  });
  const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
  child.stdout.on("data", (chunk: Buffer) => output.stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => output.stderr.push(chunk));
  // A program that does not read its input is no failure of the test.
  child.stdin.on("error", () => undefined);
  child.stdin.end(stdin);

  options.signalled?.then((signal) => child.kill(signal)).catch(() => undefined);
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child.pid);
  }, timeoutMs);
  try {
    const { exitCode, signal } = await ended(child);
    const text = (chunks: readonly Buffer[]) => Buffer.concat(chunks).toString("utf8");
    return { exitCode, signal, stdout: text(output.stdout), stderr: text(output.stderr), timedOut };
  } finally {
    clearTimeout(timer);
    child.stdout.destroy();
    child.stderr.destroy();
  }
}

/** How long output may stay open after the program's end; a background child may have inherited it. */
const OUTPUT_GRACE_MS = 1_000;

function ended(child: ReturnType<typeof spawn>): Promise<{ exitCode: number | null; signal: NodeJS.Signals | null }> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (exitCode, signal) => resolve({ exitCode, signal }));
    child.once("exit", (exitCode, signal) => {
      setTimeout(() => resolve({ exitCode, signal }), OUTPUT_GRACE_MS).unref();
    });
  });
}

function environmentOf(extra: RunOptions["env"] = {}): Record<string, string> {
  const merged = { ...baseEnvironment(), ...extra };
  return Object.fromEntries(
    Object.entries(merged).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // It ended by itself in the meantime.
  }
}
