import { describe, expect, test } from "bun:test";
import {
  type BackupBound,
  boundOf,
  chooseBackup,
  gapBehind,
  pathTo,
  runFrom,
  runsOf,
  segmentOnPath,
  segmentsInstead,
} from "../../../src/backup/recovery-path.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { microsecondsOf, parseRecoveryTarget } from "../../../src/postgres/recovery-target.ts";
import { switchPointOf, type TimelineHistory } from "../../../src/postgres/timeline-history.ts";
import type { SegmentSize } from "../../../src/postgres/wal-segment.ts";
import { random } from "../../support/random.ts";

const SIZE = (16 * 2 ** 20) as SegmentSize;
const at = (segment: number, offset = 0) => asLsn(BigInt(segment * SIZE + offset));
const backup = (name: string, timeline: number, stop: bigint, minute = 0) => ({
  name,
  timeline,
  stopLsn: asLsn(stop),
  finishedAt: new Date(Date.UTC(2026, 10, 23, 12, minute)),
});
const HISTORY: TimelineHistory = [
  { timeline: 1, switchLsn: at(5, 100) },
  { timeline: 2, switchLsn: at(9) },
];

describe("segmentOnPath()", () => {
  const path = pathTo(4, HISTORY);
  test.each([
    [1n, "000000010000000000000001"],
    [4n, "000000010000000000000004"],
    // The segment with the switch is copied to the new timeline, and read from there.
    [5n, "000000020000000000000005"],
    [8n, "000000020000000000000008"],
    [9n, "000000040000000000000009"],
    [300n, "00000004000000010000002C"],
  ])("number %p is in %s", (number, name) => {
    expect(segmentOnPath(path, number, SIZE).name).toBe(name);
  });
});

describe("segmentsInstead()", () => {
  // Two promotions in one segment, and one where a segment ends.
  const path = pathTo(5, [
    { timeline: 1, switchLsn: at(5, 100) },
    { timeline: 2, switchLsn: at(5, 200) },
    { timeline: 3, switchLsn: at(9) },
  ]);
  test.each([
    [4n, []],
    [5n, ["000000020000000000000005", "000000010000000000000005"]],
    [6n, []],
    [8n, []],
    [9n, ["000000030000000000000009"]],
    [10n, []],
  ])("of number %p: %p", (number, names) => {
    expect(segmentsInstead(path, number, SIZE).map(({ name }) => name)).toEqual(names);
  });

  test("of the segment in which the first timeline begins, there is none", () => {
    expect(segmentsInstead(path, 0n, SIZE)).toEqual([]);
    expect(segmentsInstead(pathTo(1, []), 0n, SIZE)).toEqual([]);
  });
});

describe("chooseBackup()", () => {
  const backups = [
    backup("first", 1, at(2, 80), 0),
    backup("before the switch", 1, at(5, 100), 10),
    backup("over the switch", 1, at(5, 101), 20),
    backup("abandoned", 1, at(7), 30),
    backup("second timeline", 2, at(7), 40),
    backup("third timeline", 3, at(12), 50),
    backup("fourth timeline", 4, at(11), 55),
  ];
  const time = (minute: number): BackupBound => ({
    kind: "time",
    time: microsecondsOf(new Date(Date.UTC(2026, 10, 23, 12, minute))),
  });

  test.each([
    // timeline, bound, chosen, why
    [4, { kind: "any" }, "fourth timeline", "the newest on the way"],
    [4, time(55), "second timeline", "one that finished at the very moment does not count"],
    [4, time(35), "before the switch", "what was over the switch, or behind it, is of another way"],
    [4, time(0), undefined, "nothing is before the first"],
    [4, { kind: "lsn", lsn: at(7) }, "second timeline", "the stop itself can be a target"],
    [4, { kind: "lsn", lsn: at(6) }, "before the switch", "the stop may be the very switch"],
    [4, { kind: "lsn", lsn: at(2, 79) }, undefined, "a byte before the stop there is no consistency"],
    [1, { kind: "any" }, "abandoned", "the first timeline went on"],
    [1, { kind: "lsn", lsn: at(6) }, "over the switch", "there, the switch is nothing"],
  ] as const)("timeline %i, %p: %p, because %s", (timeline, bound, name) => {
    const path = pathTo(timeline, timeline === 1 ? [] : HISTORY);
    expect(chooseBackup(backups, path, bound)?.name).toBe(name as string);
  });

  /** What the manual says, word by word: every backup is looked at with the history itself. */
  test("agrees with a model that knows no paths, whatever the backups and histories are", () => {
    const { below } = random(20261123);
    for (let turn = 0; turn < 2_000; turn++) {
      let lsn = 0;
      const ancestors = [1, 2, 3, 4, 5].filter(() => below(10) < 6);
      const history = ancestors.map((timeline) => ({ timeline, switchLsn: at(++lsn * 3 + below(3), below(3)) }));
      const timeline = (ancestors.at(-1) ?? 0) + 1 + below(2);
      const some = Array.from({ length: 8 }, (_, n) => backup(`${n}`, 1 + below(7), at(below(20), below(3)), n));
      const target = at(below(20), below(3));
      const leads = some.filter((each) => {
        const left = switchPointOf(history, each.timeline);
        const isAncestor = left !== undefined && each.stopLsn <= left;
        return (each.timeline === timeline || isAncestor) && each.stopLsn <= target;
      });
      const chosen = chooseBackup(some, pathTo(timeline, history), { kind: "lsn", lsn: target });
      expect(chosen === undefined).toBe(leads.length === 0);
      if (chosen) expect(leads.every((each) => each.stopLsn <= chosen.stopLsn)).toBe(true);
      if (chosen) expect(leads).toContain(chosen);
    }
  });
});

test("boundOf() knows a place for what has no order of its own", () => {
  expect(boundOf(parseRecoveryTarget("latest"))).toEqual({ kind: "any" });
  expect(boundOf(parseRecoveryTarget("xid:7"), at(3))).toEqual({ kind: "lsn", lsn: at(3) });
  expect(boundOf(parseRecoveryTarget("0/28"))).toEqual({ kind: "lsn", lsn: asLsn(0x28n) });
});

describe("runs of segments", () => {
  async function* numbers(...all: number[]) {
    for (const each of all) yield BigInt(each);
  }
  const runs = async (...all: number[]) => await runsOf(numbers(...all));

  test.each([
    // archived, from, goes on to, first missing of a gap
    [[3, 4, 5], 3, 5, undefined],
    [[3, 4, 5], 4, 5, undefined],
    [[3, 4, 6, 7], 3, 4, 5],
    [[3, 4, 6, 8], 6, 6, 7],
    [[4, 5], 3, undefined, 3],
    [[3, 4], 5, undefined, undefined],
    [[], 3, undefined, undefined],
    // The same segment in two forms.
    [[3, 3, 4], 3, 4, undefined],
  ])("%p, from %p: on to %p, a gap at %p", async (archived, from, last, gap) => {
    const found = await runs(...archived);
    expect(runFrom(found, BigInt(from))?.last).toBe(last === undefined ? undefined : BigInt(last));
    expect(gapBehind(found, BigInt(from))).toBe(gap === undefined ? undefined : BigInt(gap));
  });
});
