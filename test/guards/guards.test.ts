/** Every guard that needs no servers is taken out once, and its test must notice. The others: `bun run test:guards all`. */
import { afterAll, expect, test } from "bun:test";
import { GUARDS } from "./list.ts";
import { isNoticed, type Outcome, takeOut } from "./take-out.ts";

const cheap = GUARDS.filter(({ needs }) => needs === undefined);

/** Two at a time: each is a process of its own that waits as much as it computes. */
const outcomes = new Map<string, Promise<Outcome>>();
const queue = [...cheap];
const workers = [1, 2].map(async () => {
  for (let guard = queue.shift(); guard !== undefined; guard = queue.shift()) {
    const outcome = takeOut(guard);
    outcomes.set(guard.guards, outcome);
    await outcome.catch(() => {});
  }
});
afterAll(async () => void (await Promise.all(workers)));

test("every promise has a guard, and each says what it is for once", () => {
  expect([...new Set(GUARDS.map(({ promise }) => promise))].sort((a, b) => a - b)).toEqual([
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10,
  ]);
  expect(new Set(GUARDS.map(({ guards }) => guards)).size).toBe(GUARDS.length);
});

test.each(cheap.map((guard) => [guard.promise, guard.guards, guard] as const))(
  "promise %i: without it, a test fails: %s",
  async (_, name, guard) => {
    while (!outcomes.has(name)) await Bun.sleep(20);
    const outcome = (await outcomes.get(name)) as Outcome;
    expect(isNoticed(guard, outcome), outcome.output).toBe(true);
  },
  10 * 60_000,
);
