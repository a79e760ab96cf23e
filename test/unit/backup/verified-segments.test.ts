import { expect, test } from "bun:test";
import { VerifiedSegments } from "../../../src/backup/verified-segments.ts";
import { IntegrityError } from "../../../src/errors.ts";
import type { SegmentSize } from "../../../src/postgres/wal-segment.ts";
import { random } from "../../support/random.ts";

const SIZE = (64 * 2 ** 20) as SegmentSize;
/** 64 segments of this size to a log file: names go on at the next one. */
const name = (number: number, timeline = 1) =>
  [timeline, Math.floor(number / 64), number % 64]
    .map((part) => part.toString(16).toUpperCase().padStart(8, "0"))
    .join("");

test("knows what was read, good and bad, each on its timeline", () => {
  const known = new VerifiedSegments(SIZE);
  const bad = new IntegrityError("bad");
  known.set(name(63), "good");
  known.set(name(64), bad);
  expect([62, 63, 64, 65].map((number) => known.get(name(number)))).toEqual([undefined, "good", bad, undefined]);
  expect(known.get(name(63, 2))).toBeUndefined();
});

test("keeps good ones in as many runs as there are gaps between them, in whatever order they came", () => {
  const known = new VerifiedSegments(SIZE);
  const { below } = random(3);
  const numbers = Array.from({ length: 300 }, (_, n) => n).filter((n) => n !== 100 && n !== 200);
  for (let left = numbers.length; left > 0; left--) {
    const at = below(left);
    known.set(name(numbers[at] ?? 0), "good");
    [numbers[at], numbers[left - 1]] = [numbers[left - 1] ?? 0, numbers[at] ?? 0];
  }
  expect(known.runs).toBe(3);
  expect(numbers.every((number) => known.get(name(number)) === "good")).toBe(true);
  expect([known.get(name(100)), known.get(name(200)), known.get(name(300))]).toEqual([undefined, undefined, undefined]);
});
