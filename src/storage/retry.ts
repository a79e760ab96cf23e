/**
 * When to ask the store again, and how long to wait: full jitter up to a deadline, Retry-After honoured.
 *
 * "Exponential Backoff and Jitter" (AWS Architecture Blog): a random delay between nothing and a doubling bound spreads
 * clients that failed together. The clock is a monotonic one, so that setting the system's date ends no retry.
 */

/** What a failure says about asking again. */
export type Verdict =
  | { readonly retry: "never" }
  /** The store may do better later: ask until the deadline. `afterMs` is what the store asked for. */
  | { readonly retry: "until-deadline"; readonly afterMs?: number | undefined }
  /** Rarely passes by itself (missing credentials, a page of some proxy): `times` more, then give up. */
  | { readonly retry: "few"; readonly times: number };

export interface RetryOptions {
  /** From the first failure on, so that a long transfer that breaks at its end is still tried again. */
  readonly deadlineMs: number;
  /** Ends every wait with its reason. */
  readonly signal: AbortSignal;
  /** Monotonic milliseconds. */
  readonly now: () => number;
  /** 0 ≤ x < 1 */
  readonly random: () => number;
  readonly delay: (ms: number, signal: AbortSignal) => Promise<void>;
  readonly verdictOf: (error: unknown) => Verdict;
  /** Told before each wait. `failingForMs`: since the first failure without progress. */
  readonly onRetry?: (error: unknown, waitMs: number, failingForMs: number) => void;
}

const FIRST_BOUND_MS = 100;
const LAST_BOUND_MS = 20_000;

/** The attempts at one thing. */
export class Attempts {
  readonly #options: RetryOptions;
  #failingSince: number | undefined;
  #failures = 0;
  /** Of those that are tried a few times only, since the last other one. */
  #few = 0;
  #total = 0;

  constructor(options: RetryOptions) {
    this.#options = options;
  }

  /** How many failed since the beginning. */
  get failures(): number {
    return this.#total;
  }

  /** Since the first failure without progress. */
  get failingForMs(): number {
    return this.#failingSince === undefined ? 0 : this.#options.now() - this.#failingSince;
  }

  /** Something was achieved: the deadline and the delays start afresh. */
  progress(): void {
    this.#failures = 0;
    this.#few = 0;
    this.#failingSince = undefined;
  }

  /** Waits until another attempt makes sense. @throws error when none does, or the signal's reason */
  async again(error: unknown): Promise<void> {
    const { deadlineMs, signal, random, delay, verdictOf, onRetry } = this.#options;
    signal.throwIfAborted();
    this.#failingSince ??= this.#options.now();
    this.#failures++;
    this.#total++;

    const verdict = verdictOf(error);
    if (verdict.retry === "never") throw error;
    // Of its kind, one after the other: what fails a few times may come in the middle of an outage, which is waited for.
    this.#few = verdict.retry === "few" ? this.#few + 1 : 0;
    if (verdict.retry === "few" && this.#few > verdict.times) throw error;

    const bound = Math.min(LAST_BOUND_MS, FIRST_BOUND_MS * 2 ** Math.min(this.#failures - 1, 16));
    const afterMs = verdict.retry === "until-deadline" ? (verdict.afterMs ?? 0) : 0;
    // Jitter on top of Retry-After: the store tells everybody the same.
    const waitMs = afterMs + random() * bound;
    if (this.failingForMs + waitMs > deadlineMs) throw error;

    onRetry?.(error, waitMs, this.failingForMs);
    await delay(waitMs, signal);
  }
}

/** Does `work` until it succeeds or trying makes no more sense. @param work  gets the attempts that failed before */
export async function retrying<Result>(
  options: RetryOptions,
  work: (attempts: Attempts) => Promise<Result>,
): Promise<Result> {
  const attempts = new Attempts(options);
  for (;;) {
    options.signal.throwIfAborted();
    try {
      return await work(attempts);
    } catch (error) {
      await attempts.again(error);
    }
  }
}

/** A signal that follows another one after a while, for a request whose answer is needed to take it back. */
export function delayedStop(signal: AbortSignal, ms: number): { readonly signal: AbortSignal } & Disposable {
  const stop = new AbortController();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const onAbort = () => {
    timer = setTimeout(() => stop.abort(signal.reason), ms);
  };
  if (signal.aborted) stop.abort(signal.reason);
  else signal.addEventListener("abort", onAbort, { once: true });
  return {
    signal: stop.signal,
    [Symbol.dispose]() {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
    },
  };
}
