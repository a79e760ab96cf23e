import { expect, test } from "bun:test";
import { ByteBudget } from "../../../src/system/byte-budget.ts";

test("ByteBudget grants in order what fits, and more than everything when nothing else is out", async () => {
  const budget = new ByteBudget(10);
  const granted: string[] = [];
  const take = async (name: string, bytes: number) => {
    const lease = await budget.take(bytes);
    granted.push(name);
    return lease;
  };
  const first = await take("first", 6);
  const [huge, small] = [take("huge", 100), take("small", 1)];
  await Bun.sleep(1);
  // The small one would fit, but overtaking would let the huge one wait for ever.
  expect(granted).toEqual(["first"]);
  first.shrinkTo(2);
  await Bun.sleep(1);
  expect(granted).toEqual(["first"]);
  first[Symbol.dispose]();
  const lease = await huge;
  expect(granted).toEqual(["first", "huge"]);
  lease.shrinkTo(3);
  await small;
  expect(granted).toEqual(["first", "huge", "small"]);
});

test("ByteBudget takes back once what is given back twice", async () => {
  const budget = new ByteBudget(10);
  const lease = await budget.take(10);
  lease[Symbol.dispose]();
  lease[Symbol.dispose]();
  using _all = await budget.take(10);
  let isGranted = false;
  void budget.take(1).then(() => {
    isGranted = true;
  });
  await Bun.sleep(1);
  expect(isGranted).toBe(false);
});
