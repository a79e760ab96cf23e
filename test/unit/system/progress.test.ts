import { describe, expect, test } from "bun:test";
import { progressIn } from "../../../src/system/progress.ts";
import { recordingLog } from "../../support/expect-log.ts";

const MiB = 2 ** 20;
const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;

/** A clock that ticks when it is told to. */
function clock() {
  let at = 0;
  const tickers = new Set<{ readonly ms: number; readonly tick: () => void; dueAt: number }>();
  return {
    now: () => at,
    every(ms: number, tick: () => void) {
      const ticker = { ms, tick, dueAt: at + ms };
      tickers.add(ticker);
      return { [Symbol.dispose]: () => void tickers.delete(ticker) };
    },
    isTicking: () => tickers.size > 0,
    /** @param also  what happens in each tick's time, before it */
    pass(ms: number, also: (tickMs: number) => void = () => {}) {
      for (const end = at + ms; ; ) {
        const [next] = [...tickers].sort((a, b) => a.dueAt - b.dueAt);
        if (next === undefined || next.dueAt > end) {
          at = end;
          return;
        }
        at = next.dueAt;
        next.dueAt += next.ms;
        also(next.ms);
        next.tick();
      }
    },
  };
}

describe("without a terminal", () => {
  const setUp = () => {
    const time = clock();
    const recorded = recordingLog();
    const progress = progressIn({ ...time, log: recorded.log, line: undefined })("copied");
    return { time, progress, ...recorded };
  };

  test("what takes less than half a minute is not told", () => {
    const { time, progress, expectLog } = setUp();
    progress.advance(100 * MiB);
    time.pass(29 * SECOND);
    progress[Symbol.dispose]();
    time.pass(HOUR);
    expectLog();
    expect(time.isTicking()).toBe(false);
  });

  test("bytes and rate are told, and with the whole known, percent and the time left", () => {
    const { time, progress, expectLog } = setUp();
    time.pass(30 * SECOND, () => progress.advance(10 * MiB));
    expectLog("INFO: copied 300.0 MiB, 10.0 MiB/s");
    progress.expect(1200 * MiB);
    time.pass(30 * SECOND, () => progress.advance(20 * MiB));
    expectLog("INFO: copied 900.0 MiB of 1.2 GiB (75 %), 20.0 MiB/s, 15 s left");
  });

  test("the rate is that of the latest work, also when there was none", () => {
    const { time, progress, expectLog } = setUp();
    progress.expect(1000 * MiB);
    time.pass(30 * SECOND, () => progress.advance(10 * MiB));
    expectLog("INFO: copied 300.0 MiB of 1000.0 MiB (30 %), 10.0 MiB/s, 70 s left");
    time.pass(30 * SECOND);
    expectLog("INFO: copied 300.0 MiB of 1000.0 MiB (30 %), 0.0 MiB/s");
  });

  test("an estimate that is exceeded is no more than 100 %", () => {
    const { time, progress, expectLog } = setUp();
    progress.expect(30 * MiB);
    time.pass(30 * SECOND, () => progress.advance(2 * MiB));
    expectLog("INFO: copied 60.0 MiB of 60.0 MiB (100 %), 2.0 MiB/s, 0 s left");
  });

  test("the next piece of work begins at nothing, and is no reason for a message sooner or later", () => {
    const { time, progress, expectLog } = setUp();
    progress.expect(1000 * MiB);
    time.pass(20 * SECOND, () => progress.advance(10 * MiB));
    progress.turnTo("compared");
    time.pass(10 * SECOND, () => progress.advance(5 * MiB));
    expectLog("INFO: compared 50.0 MiB, 5.0 MiB/s");
    progress.turnTo("synced");
    progress.expect(100 * MiB);
    time.pass(30 * SECOND, () => progress.advance(1 * MiB));
    expectLog("INFO: synced 30.0 MiB of 100.0 MiB (30 %), 1.0 MiB/s, 70 s left");
  });

  test("ten hours are told in fewer than 70 messages, and none is further from the next than ten minutes", () => {
    const time = clock();
    const at: number[] = [];
    const { log } = recordingLog();
    using _ = progressIn({ ...time, log: { ...log, info: () => void at.push(time.now()) }, line: undefined })("copied");
    time.pass(10 * HOUR);
    expect(at.slice(0, 4)).toEqual([30, 60, 90, 135].map((seconds) => seconds * SECOND));
    expect(at.length).toBeLessThan(70);
    expect(Math.max(...at.map((time, n) => time - (at[n - 1] ?? 0)))).toBeLessThanOrEqual(10 * MINUTE + SECOND);
  });
});

describe("on a terminal", () => {
  test("one line is drawn again and again, taken away at the end, and nothing is logged", () => {
    const time = clock();
    const { log, expectLog } = recordingLog();
    const shown: string[] = [];
    const progress = progressIn({ ...time, log, line: { show: (text) => void shown.push(text) } })("copied");
    progress.expect(100 * MiB);
    time.pass(500, () => progress.advance(10 * MiB));
    progress[Symbol.dispose]();
    time.pass(HOUR);
    expect(shown).toEqual([
      "copied 10.0 MiB of 100.0 MiB (10 %), 40.0 MiB/s, 3 s left",
      "copied 20.0 MiB of 100.0 MiB (20 %), 40.0 MiB/s, 2 s left",
      "",
    ]);
    expectLog();
  });
});
