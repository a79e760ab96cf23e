/**
 * What a program asks of the operating system, watched and spoiled by strace: stopped behind every call whose effect others can
 * see, or with a call that fails. What is on the disk while it is stopped is what kill -9 would leave.
 */
import { spawn } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { systemCodeOf } from "../../src/errors.ts";
import { isProcessRunning } from "../../src/postgres/postmaster-pid.ts";
import { giveTo, type RunAs } from "./account.ts";
import { baseEnvironment, type ProgramResult, type RunOptions } from "./run-program.ts";
import { ensureProgram } from "./system-packages.ts";
import { temporaryDirectory } from "./temporary-directory.ts";
import { waitFor } from "./wait-for.ts";

/** Calls that make, name, remove or make durable what another process could find. */
export const VISIBLE_CALLS: readonly string[] = [
  ...["mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "rename", "renameat", "renameat2"],
  ...["unlink", "unlinkat", "rmdir", "fsync", "fdatasync"],
];

export interface Stop {
  /** Calls carried out since the stop before, as strace writes them: `link("/from", "/to") = 0`. More than one where threads made them together. */
  readonly calls: readonly string[];
  /** Of the program. */
  readonly pid: number;
}

export interface SteppedOptions extends Pick<RunOptions, "env" | "cwd"> {
  readonly as?: RunAs;
  readonly calls?: readonly string[];
  /** Only calls with one of these paths, or with a descriptor of one; they are told with the paths of descriptors then. */
  readonly only?: readonly string[];
}

/** As it does, rarely, when a program ends by itself in the moment at which it is to stay stopped (PTRACE_LISTEN: EIO). */
export class StraceGaveUp extends Error {}

/**
 * Runs a program and stops it behind each of the calls; `look` sees the world as it is then, and decides.
 *
 * SIGSTOP arrives with the call's return, so the call itself is done, and nothing runs until SIGCONT.
 *
 * @throws StraceGaveUp  how the program ended is not known
 * @throws Error         a process that the program started makes such a call, too: not for those
 */
export async function runInSteps(
  command: readonly string[],
  { env, cwd, as, calls = VISIBLE_CALLS, only = [] }: SteppedOptions,
  look: (stop: Stop) => Promise<"go on" | "kill">,
): Promise<ProgramResult & { readonly calls: readonly string[] }> {
  const set = calls.join(",");
  await using directory = await temporaryDirectory();
  await giveTo(as, directory.path);
  const trace = join(directory.path, "trace");
  const expressions = [`trace=${set}`, `inject=${set}:signal=SIGSTOP`];
  const paths = only.length === 0 ? [] : ["-y", ...only.map((path) => `-P${path}`)];
  const child = await spawnTraced(expressions, command, { env, cwd, as }, [...paths, "-o", trace]);
  const newLines = lineReader(trace);
  const wholeCall = callJoiner();
  const carriedOut: string[] = [];
  const programs = new Set<number>();

  /** @returns whether one of the lines says that the program was stopped */
  const follow = (lines: readonly string[]): boolean => {
    let isStopped = false;
    for (const line of lines) {
      const call = wholeCall(line);
      if (call !== undefined) carriedOut.push(call);
      const [, thread = "", text] = LINE.exec(line) ?? [];
      if (text !== "--- stopped by SIGSTOP ---") continue;
      const program = processOf(thread);
      // One that ends while it is being stopped is not there any more.
      if (program === undefined) continue;
      isStopped = true;
      programs.add(program);
    }
    if (programs.size > 1) throw new Error("more than one process makes the calls");
    return isStopped;
  };

  try {
    const verdict = await goThrough();
    const ended = await child.ended;
    if (verdict === "go on") {
      const complaint = /^strace: ptrace\(.*$/m.exec(ended.stderr)?.[0];
      // Its exit code is strace's then.
      if (complaint !== undefined) throw new StraceGaveUp(complaint);
      return { ...ended, calls: carriedOut };
    }
    // strace may end before what it traced, and then with a failure of its own.
    const areGone = () => [...programs].every((program) => !isProcessRunning(program));
    await waitFor(areGone, { intervalMs: 5, what: "the killed program to end" });
    return { ...ended, exitCode: null, signal: "SIGKILL", calls: carriedOut };
  } catch (error) {
    for (const each of programs) if (isProcessRunning(each)) process.kill(each, "SIGKILL");
    throw error;
  }

  async function goThrough(): Promise<"go on" | "kill"> {
    for (let [seen, ended] = [0, false]; !ended; ) {
      // Asked before the lines are read: what is read behind its end is all there is.
      ended = await Promise.race([child.ended.then(() => true), Bun.sleep(1).then(() => false)]);
      if (!follow(newLines())) continue;
      const [program = 0] = programs;
      if (!(await areAllStopped(program, child.pid as number))) continue;
      // What other threads have done until then belongs to this stop, and to none behind it.
      follow(newLines());
      const calls = carriedOut.slice(seen);
      seen = carriedOut.length;
      const verdict = await look({ calls, pid: program });
      process.kill(program, verdict === "kill" ? "SIGKILL" : "SIGCONT");
      if (verdict === "kill") return verdict;
    }
    return "go on";
  }
}

/**
 * A thread that made its call as another was being stopped returns behind that, and strace has yet to write what it did. A thread
 * that stops wakes strace: nothing is left to be written when all are stopped and strace slept before and behind that look, and
 * was not awake in between.
 *
 * Source: proc_pid_stat(5): "t" is stopped by a tracer, "S" asleep.
 *
 * @returns false when the program has ended meanwhile
 */
async function areAllStopped(program: number, strace: number): Promise<boolean> {
  const isSettled = () => {
    const before = sleepOf(strace);
    const areStopped = statesOf(program).every((state) => state === "t");
    return areStopped && before !== undefined && before === sleepOf(strace);
  };
  await waitFor(() => !isProcessRunning(program) || isSettled(), { intervalMs: 1, what: "all threads to stop" });
  return isProcessRunning(program);
}

/** The number of a process's sleep; undefined when it is awake. */
const sleepOf = (pid: number) =>
  /^State:\tS.*^voluntary_ctxt_switches:\t(\d+)$/ms.exec(textOf(`/proc/${pid}/status`))?.[1];

/** A letter of each thread that has not ended. */
const statesOf = (pid: number): readonly string[] =>
  threadsOf(pid)
    .map((thread) => textOf(`/proc/${pid}/task/${thread}/stat`))
    .map((stat) => stat.charAt(stat.lastIndexOf(")") + 2))
    .filter((state) => !["", "Z", "X"].includes(state));

const threadsOf = (pid: number) => ifItRuns(() => readdirSync(`/proc/${pid}/task`)) ?? [];

/** Of a file that tells of a process; empty when that has ended. */
const textOf = (path: string) => ifItRuns(() => readFileSync(path, "latin1")) ?? "";

/** @returns undefined when the process that is asked about has ended */
function ifItRuns<Result>(ask: () => Result): Result | undefined {
  try {
    return ask();
  } catch (error) {
    if (systemCodeOf(error) === "ENOENT" || systemCodeOf(error) === "ESRCH") return undefined;
    throw error;
  }
}

/** @returns what reads the whole lines that were written since the time before */
function lineReader(path: string): () => readonly string[] {
  let [position, rest] = [0, ""];
  return () => {
    if (!existsSync(path) || statSync(path).size === position) return [];
    const bytes = readFileSync(path).subarray(position);
    position += bytes.byteLength;
    const lines = (rest + bytes.toString("latin1")).split("\n");
    rest = lines.pop() ?? "";
    return lines;
  };
}

/** Runs a program and notes the calls that it carries out, with the paths of descriptors: `fsync(6</path>) = 0`. */
export async function runWatched(
  command: readonly string[],
  { env, cwd, as, calls = VISIBLE_CALLS }: SteppedOptions,
): Promise<ProgramResult & { readonly calls: readonly string[] }> {
  const child = await spawnTraced([`trace=${calls.join(",")}`], command, { env, cwd, as }, ["-y", ...TO_PIPE]);
  const wholeCall = callJoiner();
  const carriedOut: string[] = [];
  for await (const line of createInterface({ input: child.trace })) {
    const call = wholeCall(line);
    if (call !== undefined) carriedOut.push(call);
  }
  return { ...(await child.ended), calls: carriedOut };
}

const LINE = /^(\d+) +(.*)$/;

/** A call during which another thread made one has two lines. @returns of each line the call that it completes, if it does */
function callJoiner(): (line: string) => string | undefined {
  const unfinished = new Map<string, string>();
  return (line) => {
    const [, thread = "", text = ""] = LINE.exec(line) ?? [];
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(text)?.[1];
    if (resumed !== undefined) return `${unfinished.get(thread) ?? ""}${resumed}`;
    if (!text.endsWith("<unfinished ...>")) return /^\w+\(/.test(text) ? text : undefined;
    unfinished.set(thread, text.slice(0, -" <unfinished ...>".length));
    return undefined;
  };
}

/** A thread may end while its process goes on. @returns undefined when the thread has ended */
function processOf(thread: string): number | undefined {
  const id = /^Tgid:\s+(\d+)$/m.exec(textOf(`/proc/${thread}/status`))?.[1];
  return id === undefined ? undefined : Number(id);
}

export interface FailingCall {
  readonly call: string;
  /** As the system names it: "ENOSPC". */
  readonly error: string;
  /** Only the calls with exactly this path, or with a descriptor of it. */
  readonly path?: string;
  /** Which one fails, counted in each thread by itself; all of them when left out. */
  readonly when?: number;
  /**
   * For a call that the program also makes to wake its own threads, which a failure may leave asleep: a program in which another
   * call failed than one on a file below this directory is killed after a while.
   */
  readonly below?: string;
}

/** Runs a program in which a call fails. `hit` is what failed, as strace writes it. */
export async function runWithFailingCall(
  command: readonly string[],
  { call, error, path, when, below }: FailingCall,
  { env, cwd, as }: SteppedOptions,
): Promise<ProgramResult & { readonly hit: readonly string[] }> {
  const inject = `inject=${call}:error=${error}${when === undefined ? "" : `:when=${when}`}`;
  const only = path === undefined ? [] : [`-P${path}`];
  const child = await spawnTraced([`trace=${call}`, inject], command, { env, cwd, as }, ["-y", ...only, ...TO_PIPE]);
  const hit: string[] = [];
  const wholeCall = callJoiner();
  let asleep: ReturnType<typeof setTimeout> | undefined;
  for await (const line of createInterface({ input: child.trace })) {
    const made = wholeCall(line);
    if (!made?.includes("(INJECTED)")) continue;
    hit.push(made);
    if (below === undefined || made.includes(below)) continue;
    asleep ??= killLater(LINE.exec(line)?.[1] ?? "");
  }
  clearTimeout(asleep);
  return { ...(await child.ended), hit };
}

const ASLEEP_MS = 1_000;

function killLater(thread: string): ReturnType<typeof setTimeout> {
  return setTimeout(() => {
    const program = processOf(thread);
    if (program !== undefined && isProcessRunning(program)) process.kill(program, "SIGKILL");
  }, ASLEEP_MS);
}

const TO_PIPE = ["-o", "|cat >&3"];

async function spawnTraced(
  expressions: readonly string[],
  command: readonly string[],
  { env, cwd, as }: SteppedOptions,
  more: readonly string[],
) {
  await ensureProgram("strace");
  const quiet = ["-f", "-qq", "-s", "4096", ...more];
  const child = spawn("strace", [...quiet, ...expressions.flatMap((each) => ["-e", each]), ...command], {
    cwd,
    env: {
      ...baseEnvironment(),
      ...Object.fromEntries(Object.entries(env ?? {}).filter(([, value]) => value !== undefined)),
    },
    stdio: ["ignore", "pipe", "pipe", "pipe"],
    ...(as && { uid: as.uid, gid: as.gid }),
  });
  const output = { stdout: "", stderr: "" };
  for (const stream of ["stdout", "stderr"] as const)
    child[stream]?.on("data", (chunk: Buffer) => {
      output[stream] += chunk.toString("utf8");
    });
  const ended = new Promise<ProgramResult>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (exitCode, signal) => resolve({ exitCode, signal, ...output, timedOut: false }));
  });
  ended.catch(() => undefined);
  return { pid: child.pid, trace: child.stdio[3] as NodeJS.ReadableStream, ended };
}
