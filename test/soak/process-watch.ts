/** What processes of wal-b take at most while others watch: memory (VmHWM) and file descriptors, from Linux' /proc. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";

export interface Usage {
  readonly command: string;
  maxKiB: number;
  maxDescriptors: number;
}

export class ProcessWatch implements Disposable {
  readonly #marker: string;
  readonly #known = new Map<number, Usage | "none of ours">();
  readonly #timer: ReturnType<typeof setInterval>;
  /** The most of any process, by command. */
  readonly usage = new Map<string, Usage>();

  /** @param marker  what stands in the environment of the processes that are watched */
  constructor(marker: string) {
    this.#marker = marker;
    this.#timer = setInterval(() => this.#look(), 50);
  }

  /** Numbers of the processes that run now. */
  running(): readonly number[] {
    this.#look();
    return [...this.#known].filter(([, usage]) => usage !== "none of ours").map(([pid]) => pid);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }

  #look(): void {
    const pids = new Set(
      readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .map(Number),
    );
    for (const pid of this.#known.keys()) if (!pids.has(pid)) this.#known.delete(pid);
    for (const pid of pids) {
      const usage = this.#known.get(pid) ?? this.#identify(pid);
      if (usage === undefined) continue;
      this.#known.set(pid, usage);
      if (usage !== "none of ours") measure(pid, usage);
    }
  }

  /** @returns undefined when it cannot be told yet: a process that was just made has its parent's program */
  #identify(pid: number): Usage | "none of ours" | undefined {
    try {
      if (!readlinkSync(`/proc/${pid}/exe`).endsWith("/wal-b")) {
        const isYoung = !/^(postgres|bun|minio|node)/.test(readFileSync(`/proc/${pid}/comm`, "latin1"));
        return isYoung ? undefined : "none of ours";
      }
      if (!readFileSync(`/proc/${pid}/environ`, "latin1").includes(this.#marker)) return "none of ours";
      const words = readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0");
      const command = words.slice(1).find((word) => /^[a-z]+(-[a-z]+)*$/.test(word)) ?? "?";
      const usage = this.usage.get(command) ?? { command, maxKiB: 0, maxDescriptors: 0 };
      this.usage.set(command, usage);
      return usage;
    } catch {
      // It has ended.
      return undefined;
    }
  }
}

function measure(pid: number, usage: Usage): void {
  try {
    const [, kibibytes] = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1")) ?? [];
    usage.maxKiB = Math.max(usage.maxKiB, Number(kibibytes ?? 0));
    usage.maxDescriptors = Math.max(usage.maxDescriptors, readdirSync(`/proc/${pid}/fd`).length);
  } catch {
    // It has ended.
  }
}
