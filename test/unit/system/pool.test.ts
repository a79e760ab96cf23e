import { expect, test } from "bun:test";
import { forEachAtOnce } from "../../../src/system/pool.ts";

test("forEachAtOnce() runs each item once, no more at a time than it may", async () => {
  const seen: number[] = [];
  let [running, most] = [0, 0];
  await forEachAtOnce(3, [1, 2, 3, 4, 5, 6, 7], async (item) => {
    most = Math.max(most, ++running);
    seen.push(item);
    await Bun.sleep(1);
    running--;
  });
  expect(seen).toEqual([1, 2, 3, 4, 5, 6, 7]);
  expect(most).toBe(3);
});

test("forEachAtOnce() takes items only when one can be worked on, from an endless source too", async () => {
  let taken = 0;
  const endless = async function* () {
    for (;;) yield ++taken;
  };
  const failing = forEachAtOnce(2, endless(), async (item) => {
    expect(taken - item).toBeLessThanOrEqual(2);
    if (item === 50) throw new Error("enough");
  });
  await expect(failing).rejects.toThrow("enough");
  expect(taken).toBeLessThanOrEqual(53);
});

test("the first failure stops the others, is the one that is thrown, and waits until all have settled", async () => {
  const events: string[] = [];
  const work = forEachAtOnce(3, ["fails", "is stopped", "ends by itself", "never begins"], async (item, stopped) => {
    events.push(`${item} began`);
    if (item === "fails") throw new Error("the first");
    if (item === "is stopped") {
      await new Promise<void>((_, reject) => stopped.addEventListener("abort", () => reject(new Error("a later one"))));
    }
    await Bun.sleep(5);
    events.push(`${item} ended`);
  });
  await expect(work).rejects.toThrow("the first");
  expect(events).toEqual(["fails began", "is stopped began", "ends by itself began", "ends by itself ended"]);
});

test("the signal's reason is the first failure", async () => {
  const first = new Error("the first");
  const reasons: unknown[] = [];
  const work = forEachAtOnce(2, [1, 2], async (item, stopped) => {
    if (item === 1) throw first;
    await Bun.sleep(2);
    reasons.push(stopped.reason);
  });
  await expect(work).rejects.toBe(first);
  expect(reasons).toEqual([first]);
});

test("a source that fails is the failure, and one that is not read to its end is closed", async () => {
  const broken = async function* () {
    yield 1;
    throw new Error("the list broke");
  };
  await expect(forEachAtOnce(2, broken(), async () => {})).rejects.toThrow("the list broke");

  const source = { isClosed: false };
  const closing = function* () {
    try {
      for (;;) yield 1;
    } finally {
      source.isClosed = true;
    }
  };
  await expect(forEachAtOnce(2, closing(), () => Promise.reject(new Error("work")))).rejects.toThrow("work");
  expect(source.isClosed).toBe(true);
});

test("a source that fails on its way out does not hide the first failure", async () => {
  const source = async function* () {
    try {
      for (;;) yield 1;
    } finally {
      // biome-ignore lint/correctness/noUnsafeFinally: this is what a source may do
      throw new Error("and the list too");
    }
  };
  await expect(forEachAtOnce(2, source(), () => Promise.reject(new Error("the first")))).rejects.toThrow("the first");
});

test("nothing to do is done", async () => {
  await forEachAtOnce(4, [], async () => expect.unreachable());
});
