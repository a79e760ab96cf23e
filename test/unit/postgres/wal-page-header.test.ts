import { describe, expect, test } from "bun:test";
import { type Failure, IntegrityError } from "../../../src/errors.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { checkSegment, majorOfMagic } from "../../../src/postgres/wal-page-header.ts";
import { segmentNamed } from "../../../src/postgres/wal-segment.ts";
import { MiB, SYSTEM_IDENTIFIER, walContent } from "../../support/wal-content.ts";

const NAME = "000000020000000000000003";
const check = (content: Uint8Array) => checkSegment(NAME, segmentNamed(NAME), content);

describe("checkSegment()", () => {
  test.each([1, 16, 64])("reads the header of a segment of %i MiB", (mebibytes) => {
    const sizeBytes = mebibytes * MiB;
    expect(check(walContent(NAME, { sizeBytes }))).toEqual({
      magic: 0xd118,
      timeline: 2,
      pageAddress: asLsn(3n * BigInt(sizeBytes)),
      systemIdentifier: SYSTEM_IDENTIFIER,
      segmentSize: sizeBytes as never,
    });
  });

  test("takes a lower timeline in the header: a new timeline begins with the pages of the old one", () => {
    expect(check(walContent(NAME, { change: (view) => view.setUint32(4, 1, true) })).timeline).toBe(1);
  });

  test("takes the magic number of a release that is not out yet", () => {
    expect(check(walContent(NAME, { change: (view) => view.setUint16(0, 0xd120, true) })).magic).toBe(0xd120);
  });

  test.each([
    ["an empty file", () => new Uint8Array(), "It has 0 bytes, fewer than the header of its first page."],
    [
      "zeros",
      () => new Uint8Array(MiB),
      "Its first page has the magic number 0x0000, which no release of PostgreSQL wrote.",
    ],
    ["the other byte order", () => changed((view) => view.setUint16(0, 0xd118, false)), "magic number 0x18D1"],
    ["no long header", () => changed((view) => view.setUint16(2, 0, true)), "Its first page has no long header."],
    [
      "a higher timeline",
      () => changed((view) => view.setUint32(4, 3, true)),
      "Its first page is of timeline 3, the name of timeline 2.",
    ],
    [
      "another segment's content",
      () => walContent("000000020000000000000004"),
      "Its first page is at 0/400000, the name stands for 0/300000.",
    ],
    [
      "an impossible segment size",
      () => changed((view) => view.setUint32(32, 3 * MiB, true)),
      "Its header states a segment size of 3145728 bytes.",
    ],
    ["a cut off file", () => walContent(NAME).subarray(0, MiB - 1), "It has 1048575 bytes, its header states 1048576."],
    [
      "a file with something behind it",
      () => Buffer.concat([walContent(NAME), Buffer.alloc(1)]),
      "It has 1048577 bytes, its header states 1048576.",
    ],
  ])("refuses %s", (_, content, detail) => {
    let thrown: unknown;
    try {
      check(content());
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(IntegrityError);
    expect((thrown as Failure).message).toBe(`"${NAME}" is not a valid WAL segment`);
    expect((thrown as Failure).detail).toContain(detail);
  });

  test("reads a view into a larger buffer", () => {
    const padded = Buffer.concat([Buffer.alloc(13), walContent(NAME), Buffer.alloc(5)]);
    expect(check(padded.subarray(13, 13 + MiB)).systemIdentifier).toBe(SYSTEM_IDENTIFIER);
  });
});

const changed = (change: (view: DataView) => void) => walContent(NAME, { change });

test("majorOfMagic() knows the releases that are supported, and no other", () => {
  expect([0xd101, 0xd110, 0xd118, 0xd119, 0].map(majorOfMagic)).toEqual([12, 15, 18, undefined, undefined]);
});
