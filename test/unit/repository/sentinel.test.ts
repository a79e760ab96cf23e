import { describe, expect, test } from "bun:test";
import { Failure, IntegrityError, UsageError } from "../../../src/errors.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import type { SegmentSize } from "../../../src/postgres/wal-segment.ts";
import { formatJson, parseJson } from "../../../src/repository/json.ts";
import { type BackupName, parseBackupName } from "../../../src/repository/keys.ts";
import {
  decodePermanence,
  decodeSentinel,
  encodeMetadata,
  encodeSentinel,
  type Sentinel,
  withPermanence,
} from "../../../src/repository/sentinel.ts";
import { expectGolden, readGolden } from "../../support/golden.ts";

const URL = "s3://bucket/sentinel.json";
const MiB = 2 ** 20;
const named = (name: string) => parseBackupName(name) as BackupName;

const SENTINEL: Sentinel = {
  startLsn: asLsn(0x16_ba84_0028n),
  stopLsn: asLsn(0x16_bb27_9be0n),
  systemIdentifier: 7420325342344323423n,
  pgVersion: 180004,
  timeline: 2,
  segmentSize: (16 * MiB) as SegmentSize,
  startedAt: new Date("2025-03-04T05:06:07.890Z"),
  finishedAt: new Date("2025-03-04T05:16:07.001Z"),
  hostname: "db1",
  dataDirectory: "/var/lib/postgresql/18/main",
  uncompressedBytes: 34_359_738_368,
  compressedBytes: 4_294_967_296,
  isPermanent: false,
  tablespaces: [{ oid: "16388", location: "/mnt/fast" }],
  walB: { version: "0.1.0", parts: 5, manifestSha256: "a".repeat(64) },
};
const BACKUP = named("base_0000000200000016000000BA");

describe("encodeSentinel()", () => {
  test("writes WAL-G's fields, 64-bit numbers as integers, and ours under WalB", () => {
    expectGolden("test/golden/sentinel-format-1.json", new TextDecoder().decode(encodeSentinel(SENTINEL)));
    expectGolden("test/golden/metadata-format-1.json", new TextDecoder().decode(encodeMetadata(SENTINEL)));
  });

  test("says nothing of tablespaces where there are none", () => {
    const text = new TextDecoder().decode(encodeSentinel({ ...SENTINEL, tablespaces: [] }));
    expect(text).not.toContain("Spec");
    expect(decodeSentinel(BACKUP, Buffer.from(text), URL).tablespaces).toEqual([]);
  });
});

describe("decodeSentinel()", () => {
  test("gives back what encodeSentinel() was given", () => {
    expect(decodeSentinel(BACKUP, encodeSentinel(SENTINEL), URL)).toEqual(SENTINEL);
  });

  test("gives back how pages were verified", () => {
    const walB = { ...SENTINEL.walB, pages: { verification: "done", damaged: 3 } } as Sentinel["walB"];
    expect(decodeSentinel(BACKUP, encodeSentinel({ ...SENTINEL, walB }), URL).walB).toEqual(walB);
  });

  test("gives back that a backup holds its own WAL, and says nothing of it elsewhere", () => {
    const walB = { ...SENTINEL.walB, holdsWal: true } as Sentinel["walB"];
    expect(decodeSentinel(BACKUP, encodeSentinel({ ...SENTINEL, walB }), URL).walB).toEqual(walB);
    expect(new TextDecoder().decode(encodeSentinel(SENTINEL))).not.toContain("HoldsWal");
  });

  test("reads the sentinel of format 1 that was released", () => {
    expect(decodeSentinel(BACKUP, readGolden("test/golden/sentinel-format-1.json"), URL)).toEqual(SENTINEL);
  });

  test("reads WAL-G's", () => {
    const sentinel = decodeSentinel(
      named("base_0000000100000016000000BA"),
      readGolden("test/golden/wal-g-3.0-sentinel.json"),
      URL,
    );
    expect(sentinel).toEqual({
      startLsn: asLsn(97_619_367_488n),
      stopLsn: asLsn(97_634_459_104n),
      systemIdentifier: 7420325342344323423n,
      pgVersion: 150004,
      timeline: 1,
      segmentSize: (16 * MiB) as SegmentSize,
      startedAt: new Date("2025-01-02T03:04:05.123Z"),
      finishedAt: new Date("2025-01-02T03:14:05.100Z"),
      hostname: "db1.example.org",
      dataDirectory: "/var/lib/postgresql/15/main",
      uncompressedBytes: 34_359_738_368,
      compressedBytes: 4_294_967_296,
      isPermanent: true,
      tablespaces: [{ oid: "16388", location: "/mnt/fast" }],
      walB: undefined,
    });
  });

  test.each([
    [16, "000000010000001600000077"],
    [64, "00000001000000160000001D"],
    [1024, "000000010000001600000001"],
    [1, "000000010000001600000777"],
  ])("finds that WAL-G's segments have %i MiB by the name of the backup", (mebibytes, segment) => {
    const body = changed({ LSN: 0x16_7777_7728n, FinishLSN: 0x16_7777_8000n, WalB: undefined });
    expect(decodeSentinel(named(`base_${segment}`), body, URL).segmentSize).toBe((mebibytes * MiB) as SegmentSize);
  });

  test.each([
    [
      "a delta by its name",
      named("base_0000000200000016000000BA_D_000000020000001600000001"),
      {},
      "is a delta backup, which is not supported",
    ],
    [
      "a delta by its parent",
      BACKUP,
      { DeltaFrom: "base_000000020000001600000001" },
      "is a delta backup, which is not supported",
    ],
    ["WAL-E's", named("base_0000000200000016000000BA_00000040"), {}, "was made by WAL-E, which cannot be restored yet"],
    ["a newer format", BACKUP, { WalB: { FormatVersion: 2 } }, "has format version 2, this program knows 1"],
    [
      "a newer format with other fields",
      BACKUP,
      { LSN: "16/BA840028", WalB: { FormatVersion: 9 } },
      "has format version 9",
    ],
  ])("refuses %s as what it cannot restore, with what to do", (_, backup, change, message) => {
    const failure = failureOf(() => decodeSentinel(backup, changed(change), URL));
    expect(failure).toBeInstanceOf(UsageError);
    expect(failure.message).toContain(message);
    expect(failure.hint).toBeDefined();
  });

  test.each([
    ["no start", { LSN: undefined }],
    ["a negative start", { LSN: -1 }],
    ["a start of more than 64 bits", { LSN: 1n << 64n }],
    ["a start that is not in the segment of its name", { LSN: 0x16_bc00_0000n, FinishLSN: 0x16_bc00_0001n }],
    ["an end before the start", { FinishLSN: 0x16_ba84_0027n }],
    ["no end", { FinishLSN: null }],
    ["no system identifier", { SystemIdentifier: undefined }],
    ["a version that is a text", { PgVersion: "180004" }],
    ["no time", { FinishTime: undefined }],
    ["a time that is none", { StartTime: "yesterday" }],
    [
      "an impossible segment size",
      { WalB: { FormatVersion: 1, Version: "1", WalSegmentBytes: 5, Parts: 1, ManifestSha256: "" } },
    ],
    ["no count of parts", { WalB: { FormatVersion: 1, Version: "1", WalSegmentBytes: 16 * MiB, ManifestSha256: "" } }],
    ["a tablespace without a place", { Spec: { base_prefix: "/", tablespaces: ["16388"] } }],
    [
      "a tablespace that is no number",
      { Spec: { base_prefix: "/", tablespaces: ["../x"], "../x": { loc: "/etc", link: "" } } },
    ],
  ])("refuses %s as damaged", (_, change) => {
    expect(failureOf(() => decodeSentinel(BACKUP, changed(change), URL))).toBeInstanceOf(IntegrityError);
  });

  test.each(["", "null", "[]", "{", '{"LSN":1}'])("refuses %p as damaged", (text) => {
    expect(failureOf(() => decodeSentinel(BACKUP, Buffer.from(text), URL))).toBeInstanceOf(IntegrityError);
  });
});

describe("withPermanence()", () => {
  test("changes one field of what WAL-G wrote and keeps the others to the last digit", () => {
    const before = readGolden("test/golden/wal-g-3.0-metadata.json").toString();
    const after = new TextDecoder().decode(withPermanence(Buffer.from(before), URL, false));
    expect(after).toBe(before.replace('"is_permanent":true', '"is_permanent":false'));
    expect([before, after].map((text) => decodePermanence(Buffer.from(text), URL))).toEqual([true, false]);
  });

  test("decodePermanence() knows when nothing is said, and refuses what is no answer", () => {
    expect(decodePermanence(Buffer.from("{}"), URL)).toBeUndefined();
    expect(() => decodePermanence(Buffer.from('{"is_permanent":"no"}'), URL)).toThrow(IntegrityError);
  });
});

/** Our own sentinel with other fields; undefined leaves one out. */
function changed(change: Readonly<Record<string, unknown>>): Uint8Array {
  const fields = parseJson(new TextDecoder().decode(encodeSentinel(SENTINEL)), "it") as Record<string, unknown>;
  return Buffer.from(formatJson({ ...fields, ...change }));
}

function failureOf(act: () => unknown): Failure {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(Failure);
    return error as Failure;
  }
  throw new Error("nothing was thrown");
}
