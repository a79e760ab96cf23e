import { describe, expect, test } from "bun:test";
import { asLsn, parseLsn } from "../../../src/postgres/lsn.ts";
import {
  isSegmentSize,
  nextSegment,
  parseWalFile,
  type SegmentSize,
  segmentAt,
  segmentBefore,
  segmentHolding,
  segmentNamed,
  segmentNumber,
  segmentStart,
  segmentsBetween,
} from "../../../src/postgres/wal-segment.ts";
import { random } from "../../support/random.ts";

const MiB = 2 ** 20;
const SIZES = [1, 16, 64, 1024].map((mebibytes) => (mebibytes * MiB) as SegmentSize);

describe("parseWalFile()", () => {
  test.each([
    ["000000010000000000000004", { kind: "segment", timeline: 1, log: 0, segment: 4 }],
    ["FFFFFFFFFFFFFFFF00000FFF", { kind: "segment", timeline: 0xffff_ffff, log: 0xffff_ffff, segment: 0xfff }],
    ["000000020000000A00000003.partial", { kind: "partial", timeline: 2, log: 10, segment: 3 }],
    ["000000010000000000000004.00000028.backup", { kind: "backup", timeline: 1, log: 0, segment: 4 }],
    ["0000000A.history", { kind: "history", timeline: 10 }],
  ])("tells what %s is", (name, expected) => {
    expect(parseWalFile(name)).toEqual({ ...expected, name } as ReturnType<typeof parseWalFile> & object);
  });

  test.each([
    ["an empty name", ""],
    ["one digit too few", "00000001000000000000004"],
    ["one digit too many", "0000000100000000000000004"],
    ["lower case", "00000001000000000000000a"],
    ["timeline 0", "000000000000000000000004"],
    ["timeline 0 of a history", "00000000.history"],
    ["more segments than a log has, whatever their size", "000000010000000000001000"],
    ["a path", "pg_wal/000000010000000000000004"],
    ["a compressed file", "000000010000000000000004.zst"],
    ["a mark", "000000010000000000000004.ready"],
    ["a line end", "000000010000000000000004\n"],
    ["a partial history", "00000001.history.partial"],
    ["what restore_command gets as %p", "RECOVERYXLOG"],
  ])("refuses %s", (_, name) => expect(parseWalFile(name)).toBeUndefined());
});

test("segmentNamed() refuses what is no segment, which would be a mistake of ours", () => {
  expect(() => segmentNamed("00000002.history")).toThrow(RangeError);
  expect(() => segmentNamed("000000020000000A00000003.partial")).toThrow(RangeError);
});

describe("nextSegment()", () => {
  test.each([
    [16, "000000010000000000000051", "000000010000000000000052"],
    [16, "00000001000000010000005F", "000000010000000100000060"],
    [16, "0000000100000001000000FF", "000000010000000200000000"], // last of 256 in a log
    [1, "000000010000000100000FFF", "000000010000000200000000"], // last of 4,096
    [64, "00000001000000010000003F", "000000010000000200000000"], // last of 64
    [1024, "000000020000000A00000003", "000000020000000B00000000"], // last of 4
  ])("with segments of %i MiB, %s is followed by %s", (mebibytes, from, to) => {
    expect(nextSegment(segmentNamed(from), (mebibytes * MiB) as SegmentSize).name).toBe(to);
  });
});

test.each([
  // segment size in MiB, LSN, the segment that holds it, the segment that holds the byte before
  [16, "0/0", "000000010000000000000000", "000000010000000000000000"],
  [16, "0/3000028", "000000010000000000000003", "000000010000000000000003"],
  [16, "0/3000000", "000000010000000000000003", "000000010000000000000002"], // XLByteToPrevSeg
  [16, "16/B374D848", "0000000100000016000000B3", "0000000100000016000000B3"],
  [16, "1/0", "000000010000000100000000", "0000000100000000000000FF"],
  [1, "0/300000", "000000010000000000000003", "000000010000000000000002"],
  [64, "0/10000000", "000000010000000000000004", "000000010000000000000003"],
  [1024, "1/40000000", "000000010000000100000001", "000000010000000100000000"],
  [1024, "FFFFFFFF/FFFFFFFF", "00000001FFFFFFFF00000003", "00000001FFFFFFFF00000003"],
])("with segments of %i MiB, %s is in %s and the byte before in %s", (mebibytes, text, holding, before) => {
  const [lsn, size] = [parseLsn(text) ?? asLsn(0n), (mebibytes * MiB) as SegmentSize];
  expect(segmentHolding(1, lsn, size).name).toBe(holding);
  expect(segmentBefore(1, lsn, size).name).toBe(before);
});

test("names, numbers and positions agree, at every size", () => {
  const seed = 42;
  const { below, pick } = random(seed);
  for (let n = 0; n < 500; n++) {
    const size = pick(SIZES);
    const lsn = asLsn((BigInt(below(2 ** 32)) << 32n) | BigInt(below(2 ** 32)));
    const segment = segmentHolding(1 + below(1000), lsn, size);
    expect(parseWalFile(segment.name), `seed ${seed}, round ${n}`).toEqual(segment);
    expect(segmentAt(segment.timeline, segmentNumber(segment, size), size)).toEqual(segment);
    const offset = lsn - segmentStart(segment, size);
    expect(offset >= 0n && offset < BigInt(size)).toBe(true);
  }
});

test("segmentsBetween() has both ends, crosses logs, and is empty backwards", () => {
  const size = (1024 * MiB) as SegmentSize;
  const [from, to] = [segmentNamed("000000010000000000000002"), segmentNamed("000000010000000100000001")];
  expect([...segmentsBetween(from, to, size)].map(({ name }) => name)).toEqual([
    "000000010000000000000002",
    "000000010000000000000003",
    "000000010000000100000000",
    "000000010000000100000001",
  ]);
  expect([...segmentsBetween(to, from, size)]).toEqual([]);
});

test("isSegmentSize() takes powers of two from 1 MiB to 1 GiB", () => {
  const taken = [0, 1, MiB / 2, MiB, 3 * MiB, 16 * MiB, 16 * MiB + 1, 1024 * MiB, 2048 * MiB, Number.NaN, -MiB];
  expect(taken.filter((bytes): boolean => isSegmentSize(bytes))).toEqual([MiB, 16 * MiB, 1024 * MiB]);
});
