/**
 * How far a long piece of work has come: on a terminal one line that is written over and over, elsewhere a message now and
 * then. Both tell bytes and rate; where the whole is known also percent and the time left.
 */
import type { Log } from "./log.ts";
import { formatBytes, formatSeconds } from "./quantity.ts";
import type { StatusLine } from "./status-line.ts";

/** What is told to it by whoever does the work. */
export interface Progress {
  /** How much there will be in all, as soon as that is known or estimated. */
  expect(totalBytes: number): void;
  /** @param bytes  less than nothing when work is lost and done again */
  advance(bytes: number): void;
}

/** It is shown until it is disposed. */
export interface RunningProgress extends Progress, Disposable {
  /** Goes on to another piece of work, of which nothing is done yet. Messages keep their distances. */
  turnTo(what: string): void;
}

/** @param what  in the past, as in "copied 3.2 GiB of 10.0 GiB (32 %), 412.0 MiB/s, 17 s left" */
export type StartProgress = (what: string) => RunningProgress;

/** For work that nobody watches. */
export const NO_PROGRESS: StartProgress = () => ({ expect() {}, advance() {}, turnTo() {}, [Symbol.dispose]() {} });

export interface ProgressContext {
  readonly log: Log;
  /** Of the terminal, where there is one. */
  readonly line: Pick<StatusLine, "show"> | undefined;
  /** Milliseconds of a clock that does not jump. */
  readonly now: () => number;
  /** Calls `tick` again and again until the result is disposed. */
  readonly every: (ms: number, tick: () => void) => Disposable;
}

const DRAW_EVERY_MS = 250;
const ASK_EVERY_MS = 1_000;

/** Messages come after 30 s, and ever later: a backup of ten hours makes 66 of them. */
const FIRST_MESSAGE_MS = 30_000;
const LONGEST_SILENCE_MS = 10 * 60_000;

/** Rate and time left are those of the latest work, so that they follow a store that slows down. */
const RATE_OVER_MS = 15_000;

export function progressIn(context: ProgressContext): StartProgress {
  return (first) => {
    const { log, line, now, every } = context;
    const startedAt = now();
    let [what, course] = [first, new Course(startedAt)];
    const text = () => `${what} ${course.describe(now())}`;
    const draw = () => line?.show(text());
    let nextMessageAt = startedAt + FIRST_MESSAGE_MS;
    const tell = () => {
      if (now() < nextMessageAt) return;
      log.info(text());
      const silence = Math.max(FIRST_MESSAGE_MS, (now() - startedAt) / 2);
      nextMessageAt = now() + Math.min(LONGEST_SILENCE_MS, silence);
    };

    const ticking = line ? every(DRAW_EVERY_MS, draw) : every(ASK_EVERY_MS, tell);
    return {
      expect: (totalBytes) => {
        course.totalBytes = totalBytes;
      },
      advance: (bytes) => {
        course.doneBytes += bytes;
      },
      turnTo: (next) => {
        [what, course] = [next, new Course(now())];
      },
      [Symbol.dispose]() {
        ticking[Symbol.dispose]();
        line?.show("");
      },
    };
  };
}

export function repeat(ms: number, tick: () => void): Disposable {
  const timer = setInterval(tick, ms);
  return { [Symbol.dispose]: () => clearInterval(timer) };
}

class Course {
  totalBytes: number | undefined;
  doneBytes = 0;
  /** What was done by when, as far back as the rate looks. */
  readonly #marks: { readonly at: number; readonly doneBytes: number }[];

  constructor(startedAt: number) {
    this.#marks = [{ at: startedAt, doneBytes: 0 }];
  }

  describe(now: number): string {
    const rate = this.#bytesPerSecond(now);
    const speed = `${formatBytes(rate)}/s`;
    if (this.totalBytes === undefined) return `${formatBytes(this.doneBytes)}, ${speed}`;

    // An estimate may be exceeded.
    const total = Math.max(this.totalBytes, this.doneBytes);
    const percent = total === 0 ? 100 : Math.floor((100 * this.doneBytes) / total);
    const left = rate > 0 ? `, ${formatSeconds((total - this.doneBytes) / rate)} left` : "";
    return `${formatBytes(this.doneBytes)} of ${formatBytes(total)} (${percent} %), ${speed}${left}`;
  }

  #bytesPerSecond(now: number): number {
    for (let [, next] = this.#marks; next && now - next.at >= RATE_OVER_MS; [, next] = this.#marks) this.#marks.shift();
    const [since = { at: now, doneBytes: this.doneBytes }] = this.#marks;
    this.#marks.push({ at: now, doneBytes: this.doneBytes });
    const doneBytes = Math.max(0, this.doneBytes - since.doneBytes);
    return now > since.at ? (doneBytes / (now - since.at)) * 1000 : 0;
  }
}
