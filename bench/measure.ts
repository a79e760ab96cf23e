/**
 * One run of one command: how long, how much processor, how much memory.
 *
 * GNU time starts the command, because the kernel counts the memory of whoever forked a process to its peak, and this one is
 * large. While the command runs, /proc is asked for the memory of all its processes together, for programs that are several.
 */
import { readFileSync } from "node:fs";
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { baseEnvironment } from "../test/support/run-program.ts";

export interface Sample {
  readonly wallMs: number;
  /** User and system time of the command and of every process that it waited for; left out where it cannot be told. */
  readonly cpuMs?: number;
  /** Of all its processes together, as far as POLL_MS sees it, and at least that of the largest one, which is exact. */
  readonly peakBytes?: number;
}

export interface RunContext {
  /** Writable by the account; holds what GNU time writes. */
  readonly directory: string;
  readonly env?: Readonly<Record<string, string>>;
  readonly as?: { readonly uid: number; readonly gid: number } | undefined;
  /** 0 when left out. */
  readonly expectedExitCode?: number;
}

const POLL_MS = 20;
const KIB = 1024;

/** @throws Error  GNU time is missing, or the command ended with another exit code */
export async function measure(command: readonly string[], context: RunContext): Promise<Sample> {
  const { directory, env, as, expectedExitCode = 0 } = context;
  const time = gnuTime();
  const report = join(directory, "time");
  await rm(report, { force: true });

  const begun = performance.now();
  const child = Bun.spawn([time, "-q", "-f", "%M", "-o", report, ...command], {
    cwd: directory,
    env: { ...baseEnvironment(), ...env },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    ...(as && { uid: as.uid, gid: as.gid }),
  });
  let wallMs = Number.NaN;
  const exited = child.exited.then((exitCode) => {
    wallMs = performance.now() - begun;
    return exitCode;
  });
  const memory = watchMemory(child.pid);
  const [exitCode, stderr] = await Promise.all([exited, new Response(child.stderr).text()]);
  const treeBytes = memory.stop();

  if (exitCode !== expectedExitCode) throw new Error(`${command.join(" ")} ended with ${exitCode}:\n${stderr}`);
  const largestBytes = Number((await readFile(report, "utf8")).trim()) * KIB;
  const cpuMs = Number(child.resourceUsage()?.cpuTime.total ?? 0) / 1_000;
  return { wallMs, cpuMs, peakBytes: Math.max(treeBytes, largestBytes) };
}

function gnuTime(): string {
  const path = Bun.which("time");
  if (path === null) throw new Error("GNU time is needed to measure memory: install the package time");
  return path;
}

/** Asks every POLL_MS how much the processes below `root` hold; `root` itself is GNU time. */
function watchMemory(root: number): { stop(): number } {
  let peak = 0;
  const timer = setInterval(() => {
    peak = Math.max(peak, residentBelow(root));
  }, POLL_MS);
  return {
    stop() {
      clearInterval(timer);
      return peak;
    },
  };
}

function residentBelow(pid: number): number {
  return textOf(`/proc/${pid}/task/${pid}/children`)
    .split(" ")
    .filter(Boolean)
    .reduce((sum, child) => sum + residentOf(child) + residentBelow(Number(child)), 0);
}

export function residentOf(pid: string): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(textOf(`/proc/${pid}/status`))?.[1] ?? 0) * KIB;
}

/** A process that ended meanwhile has no memory. */
export function textOf(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
