import { expect, test } from "bun:test";
import { rateLimit, UNLIMITED } from "../../../src/system/rate-limit.ts";

const never = new AbortController().signal;

test("rateLimit() lets the first through and makes the next wait until that is paid for", async () => {
  const limit = rateLimit(1000);
  const begun = performance.now();
  expect(Bun.peek.status(limit.take(50, never))).toBe("fulfilled");
  await limit.take(50, never);
  await limit.take(1, never);
  expect(performance.now() - begun).toBeGreaterThanOrEqual(99);
});

test("rateLimit() counts what is taken side by side", async () => {
  const limit = rateLimit(1000);
  const begun = performance.now();
  await Promise.all([1, 2, 3].map(() => limit.take(50, never)));
  expect(performance.now() - begun).toBeGreaterThanOrEqual(99);
});

test("rateLimit() ends waiting with the signal's reason", async () => {
  const limit = rateLimit(1);
  await limit.take(1000, never);
  const stop = new AbortController();
  const waiting = limit.take(1, stop.signal);
  stop.abort(new Error("stopped"));
  await expect(waiting).rejects.toThrow("stopped");
});

test("UNLIMITED never waits", async () => {
  await UNLIMITED.take(Number.MAX_SAFE_INTEGER, never);
});
