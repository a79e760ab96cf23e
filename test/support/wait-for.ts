export type Falsy = undefined | null | false | 0 | "";

export interface WaitOptions {
  readonly timeoutMs?: number;
  readonly intervalMs?: number;
  /** For the message: what is waited for. */
  readonly what?: string;
}

/** Asks until the answer is truthy, and returns it. @throws Error  the time is up, or the question itself failed */
export async function waitFor<T>(
  predicate: () => T | Promise<T>,
  { timeoutMs = 30_000, intervalMs = 50, what = "the expected state" }: WaitOptions = {},
): Promise<Exclude<T, Falsy>> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const answer = await predicate();
    if (answer) return answer as Exclude<T, Falsy>;
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await Bun.sleep(intervalMs);
  }
}
