/** Whether this process was started without one of its standard streams, as a shell's ">&-" does. */
import { readFileSync } from "node:fs";

/** O_CLOEXEC of Linux, the same on every machine that Bun runs on. */
const CLOSED_ON_EXEC = 0o2000000;

/**
 * Bun opens /dev/null in the place of what is closed when it starts, so that no file gets the descriptor and then what is meant
 * for a person; writing succeeds, and nobody gets it. Bun's is told by its flag: a descriptor that is closed on exec cannot have
 * come from whoever started us. Source: Linux, open(2), "O_CLOEXEC", and proc_pid_fdinfo(5).
 *
 * @returns false also where there is no /proc to find out
 */
export function wasClosedAtStart(descriptor: 0 | 1 | 2): boolean {
  try {
    const flags = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${descriptor}`, "utf8"))?.[1];
    return flags !== undefined && (Number.parseInt(flags, 8) & CLOSED_ON_EXEC) !== 0;
  } catch {
    return false;
  }
}
