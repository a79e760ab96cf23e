/** Memory of programs that PostgreSQL starts, and of those that they leave behind when they end. */
import { readdirSync } from "node:fs";
import { residentOf, textOf } from "../measure.ts";

const POLL_MS = 50;

/** @param directory  has a part in the command line of every process that is looked for; servers themselves are left out */
export function watchPrograms(directory: string): { stop(): number } {
  let peak = 0;
  const timer = setInterval(() => {
    const pids = readdirSync("/proc").filter((name) => /^\d+$/.test(name));
    const sum = pids.filter((pid) => isOne(pid, directory)).reduce((bytes, pid) => bytes + residentOf(pid), 0);
    peak = Math.max(peak, sum);
  }, POLL_MS);
  return {
    stop() {
      clearInterval(timer);
      return peak;
    },
  };
}

function isOne(pid: string, directory: string): boolean {
  const words = textOf(`/proc/${pid}/cmdline`);
  const [program = ""] = words.split("\0");
  return words.includes(directory) && !/postgres$|^postgres: |sh$|watchdog/.test(program);
}
