import { describe, expect, test } from "bun:test";
import { IntegrityError } from "../../../src/errors.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { parseTimelineHistory, switchPointOf } from "../../../src/postgres/timeline-history.ts";

describe("parseTimelineHistory()", () => {
  test("reads ancestors, oldest first, with their switch points", () => {
    const text = "1\t0/3000148\tno recovery target specified\n\n2\t1/B0000A0\tbefore 2025-01-02 03:04:05.678+01\n";
    expect(parseTimelineHistory(5, text)).toEqual([
      { timeline: 1, switchLsn: asLsn(0x300_0148n) },
      { timeline: 2, switchLsn: asLsn(0x1_0b00_00a0n) },
    ]);
  });

  test.each([
    ["nothing", "", 0],
    ["comments and blank lines", "# a comment\n  \n  # and another\n", 0],
    ["a line without a reason", "1\t0/1", 1],
    ["spaces instead of tabs", "1 0/1 before transaction 7", 1],
    ["a reason that looks like a comment", "1\t0/1\t#\n", 1],
  ])("takes %s", (_, text, entries) => expect(parseTimelineHistory(2, text)).toHaveLength(entries));

  test.each([
    ["a timeline that is no number", "x\t0/1\t"],
    ["timeline 0", "0\t0/1\t"],
    ["a negative timeline", "-1\t0/1\t"],
    ["a switch point that is none", "1\t0-1\t"],
    ["no switch point", "1"],
    ["itself as its ancestor", "3\t0/1\t"],
    ["a later timeline", "4\t0/1\t"],
    ["timelines that do not rise", "2\t0/2\t\n1\t0/1\t"],
    ["the same timeline twice", "1\t0/1\t\n1\t0/2\t"],
    ["binary junk", "\0\xff\0"],
  ])("refuses %s", (_, text) => expect(() => parseTimelineHistory(3, text)).toThrow(IntegrityError));
});

test("switchPointOf() knows ancestors only", () => {
  const history = parseTimelineHistory(5, "1\t0/100\t\n3\t0/200\t");
  expect([1, 2, 3, 5].map((timeline) => switchPointOf(history, timeline))).toEqual([
    asLsn(0x100n),
    undefined,
    asLsn(0x200n),
    undefined,
  ]);
});
