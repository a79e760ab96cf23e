/** Finds the processes that a test's server has started, so that they and no others are ended. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { runProgram } from "./run-program.ts";

/** Process ids of the children of `root`, of their children, and so on. */
export async function processesBelow(root: number): Promise<number[]> {
  const parents = await parentOfEach();
  const found: number[] = [];
  collect(root);
  return found;

  function collect(parent: number): void {
    for (const [pid, of] of parents) {
      if (of !== parent) continue;
      found.push(pid);
      collect(pid);
    }
  }
}

/** Of those, the ones whose command line has these words; one that has ended and was not waited for has none. */
export async function processesNamed(root: number, words: string): Promise<number[]> {
  const found: number[] = [];
  for (const pid of await processesBelow(root)) {
    if ((await commandLineOf(pid)).includes(words)) found.push(pid);
  }
  return found;
}

/** Empty when the process has ended. */
export async function commandLineOf(pid: number): Promise<string> {
  return (await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "")).replaceAll("\0", " ");
}

export function processIsAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // Another account's.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Kills what a stopped server left behind: those of its descendants that still run, and programs that detached
 * themselves and carry the server's marker in their environment (seen on Linux only).
 */
export async function killLeftovers(of: { readonly below: readonly number[]; readonly marker: string }): Promise<void> {
  for (const pid of await processIds()) {
    if (pid === process.pid) continue;
    const environment = await readFile(`/proc/${pid}/environ`, "utf8").catch(() => "");
    const carriesMarker = environment.split("\0").includes(of.marker);
    const isOrphan = of.below.includes(pid) && processIsAlive(pid);
    if (carriesMarker || isOrphan) tryKill(pid);
  }
}

/** A killed postmaster leaves its System V segment; postmaster.pid has the identifier at the end of line 7. */
export async function removeSharedMemory(dataDirectory: string): Promise<void> {
  const text = await readFile(join(dataDirectory, "postmaster.pid"), "utf8").catch(() => "");
  const identifier = text.split("\n")[6]?.trim().split(/\s+/)[1];
  if (identifier && Number(identifier) >= 0) await runProgram(["ipcrm", "-m", identifier]).catch(() => undefined);
}

async function parentOfEach(): Promise<Map<number, number>> {
  const parents = new Map<number, number>();
  if (process.platform !== "linux") {
    const { stdout } = await runProgram(["ps", "-A", "-o", "pid=,ppid="]);
    for (const [, pid, parent] of stdout.matchAll(/(\d+)\s+(\d+)/g)) parents.set(Number(pid), Number(parent));
    return parents;
  }
  for (const pid of await processIds()) {
    const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => "");
    // The second field is the program's name in parentheses and may itself contain blanks and parentheses.
    const parent = stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1];
    if (parent) parents.set(pid, Number(parent));
  }
  return parents;
}

async function processIds(): Promise<number[]> {
  const names = await readdir("/proc").catch(() => []);
  return names.filter((name) => /^\d+$/.test(name)).map(Number);
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It ended by itself in the meantime.
  }
}
