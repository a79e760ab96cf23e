/** When another attempt is made, and how long it waits. */
import { describe, expect, test } from "bun:test";
import { Attempts, type RetryOptions, retrying, type Verdict } from "../../../src/storage/retry.ts";
import { abortableDelay } from "../../../src/system/delay.ts";

/** A clock that moves only when something waits. */
function setUp({ verdict = { retry: "until-deadline" } as Verdict, random = 0.5, deadlineMs = 60_000 } = {}) {
  const stopping = new AbortController();
  const waits: number[] = [];
  let clock = 0;
  const options: RetryOptions = {
    deadlineMs,
    signal: stopping.signal,
    now: () => clock,
    random: () => random,
    delay: async (ms) => {
      waits.push(ms);
      clock += ms;
    },
    verdictOf: () => verdict,
  };
  const elapse = (ms: number) => {
    clock += ms;
  };
  return { options, waits, stopping, elapse };
}

/** Fails so many times. */
function failing(times: number): () => Promise<string> {
  let left = times;
  return async () => {
    if (left-- > 0) throw new Error(`failure, ${left} to come`);
    return "done";
  };
}

describe("retrying()", () => {
  test("returns the first success and waits for nothing", async () => {
    const { options, waits } = setUp();
    expect(await retrying(options, failing(0))).toBe("done");
    expect(waits).toEqual([]);
  });

  test.each([
    // what random() gives, the waits before five more attempts
    [0, [0, 0, 0, 0, 0]],
    [0.5, [50, 100, 200, 400, 800]],
    [0.999, [99.9, 199.8, 399.6, 799.2, 1598.4]],
  ])("doubles the bound of the delay, of which it waits a random part: %d", async (random, expected) => {
    const { options, waits } = setUp({ random });
    expect(await retrying(options, failing(5))).toBe("done");
    expect(waits.map((ms) => Math.round(ms * 10) / 10)).toEqual(expected);
  });

  test("bounds the delay", async () => {
    const { options, waits } = setUp({ deadlineMs: 1e9 });
    await retrying(options, failing(30));
    expect(Math.max(...waits)).toBe(10_000);
  });

  test("gives up when the next attempt would begin after the deadline, with the last error", async () => {
    const { options, waits } = setUp({ deadlineMs: 1000 });
    await expect(retrying(options, failing(100))).rejects.toThrow("failure, 95 to come");
    expect(waits.reduce((sum, ms) => sum + ms, 0)).toBeLessThanOrEqual(1000);
  });

  test("counts the deadline from the first failure, so that a long transfer is tried again", async () => {
    const { options, elapse } = setUp({ deadlineMs: 1000 });
    let calls = 0;
    const work = async () => {
      elapse(calls === 0 ? 50_000 : 0);
      if (++calls === 1) throw new Error("broken at the end");
      return calls;
    };
    expect(await retrying(options, work)).toBe(2);
  });

  test.each([
    // Retry-After in ms, deadline, the waits
    [3000, 60_000, [3050]],
    [3000, 2000, []], // would end after the deadline: fail at once instead of at the end
  ])("waits as long as the store asked for: %i ms of at most %i", async (afterMs, deadlineMs, expected) => {
    const { options, waits } = setUp({ verdict: { retry: "until-deadline", afterMs }, deadlineMs });
    await retrying(options, failing(1)).catch(() => {});
    expect(waits).toEqual(expected);
  });

  test.each([
    // verdict, attempts
    [{ retry: "never" }, 1],
    [{ retry: "few", times: 1 }, 2],
    [{ retry: "few", times: 4 }, 5],
  ] as const)("with %j makes %i attempts", async (verdict, expected) => {
    const { options } = setUp({ verdict });
    let calls = 0;
    const work = async () => {
      calls++;
      throw new Error("always");
    };
    await expect(retrying(options, work)).rejects.toThrow("always");
    expect(calls).toBe(expected);
  });

  test("a failure that is tried a few times is so in the middle of an outage too", async () => {
    const { options } = setUp({ deadlineMs: 100_000 });
    const outage = ["until-deadline", "until-deadline", "few", "until-deadline", "few", "few"] as const;
    let calls = 0;
    const verdictOf = (): Verdict => {
      const retry = outage[calls - 1] ?? "never";
      return retry === "few" ? { retry, times: 2 } : { retry };
    };
    const work = async () => {
      if (calls++ === outage.length) return "the store is back";
      throw new Error("broken");
    };
    expect(await retrying({ ...options, verdictOf }, work)).toBe("the store is back");
  });

  test("begins nothing after a stop, and ends with its reason", async () => {
    const { options, stopping } = setUp();
    let calls = 0;
    const work = async () => {
      calls++;
      stopping.abort(new Error("stopped"));
      throw new Error("connection closed");
    };
    await expect(retrying(options, work)).rejects.toThrow("stopped");
    await expect(retrying(options, work)).rejects.toThrow("stopped");
    expect(calls).toBe(1);
  });
});

test("Attempts.progress() starts deadline and delays afresh", async () => {
  const { options, waits } = setUp({ deadlineMs: 400 });
  const attempts = new Attempts(options);
  for (let round = 0; round < 20; round++) {
    await attempts.again(new Error("broken"));
    attempts.progress();
  }
  expect(waits).toEqual(Array(20).fill(50));
  expect(attempts.failures).toBe(20);
});

test("abortableDelay() ends at once with the reason of the signal", async () => {
  const stopping = new AbortController();
  const before = performance.now();
  setTimeout(() => stopping.abort(new Error("stopped")), 20);
  await expect(abortableDelay(60_000, stopping.signal)).rejects.toThrow("stopped");
  await expect(abortableDelay(60_000, stopping.signal)).rejects.toThrow("stopped");
  expect(performance.now() - before).toBeLessThan(5000);
});
