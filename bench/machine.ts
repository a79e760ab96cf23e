/** Where the figures come from: processors, memory, versions. */
import { availableParallelism, cpus, loadavg, release, totalmem } from "node:os";

const GiB = 2 ** 30;

export function describeMachine(): string {
  const memory = (totalmem() / GiB).toFixed(0);
  const model = cpus()[0]?.model.trim() || process.arch;
  return `${availableParallelism()} cores (${model}), ${memory} GiB of memory, ${process.platform} ${release()}`;
}

/** Processes that wanted a processor during the last minute: much more than 0 before anything is measured is a busy machine. */
export const machineLoad = () => (loadavg()[0] ?? 0).toFixed(1);
