import { describe, expect, test } from "bun:test";
import {
  backupKeys,
  backupNameOf,
  backupOfContent,
  backupOfSentinel,
  parseBackupName,
  parseWalKey,
  partKey,
  partName,
  sentinelKey,
  walKey,
} from "../../../src/repository/keys.ts";

const SEGMENT = "000000010000000000000004";
const BACKUP = `base_${SEGMENT}`;

describe("keys of a backup", () => {
  test("are WAL-G's, and ours beside them", () => {
    expect(backupNameOf(SEGMENT)).toBe(BACKUP);
    expect(backupKeys(BACKUP)).toEqual({
      sentinel: `basebackups_005/${BACKUP}_backup_stop_sentinel.json`,
      metadata: `basebackups_005/${BACKUP}/metadata.json`,
      filesMetadata: `basebackups_005/${BACKUP}/files_metadata.json`,
      manifest: `basebackups_005/${BACKUP}/backup_manifest.zst`,
      claim: `basebackups_005/${BACKUP}/walb_claim.json`,
    });
    expect([1, 12, 999, 1000].map(partName)).toEqual([
      "part_001.tar.zst",
      "part_012.tar.zst",
      "part_999.tar.zst",
      "part_1000.tar.zst",
    ]);
    expect(partKey(BACKUP, partName(1))).toBe(`basebackups_005/${BACKUP}/tar_partitions/part_001.tar.zst`);
  });

  test("lead back to the backup", () => {
    const { sentinel, ...contents } = backupKeys(BACKUP);
    expect(backupOfSentinel(sentinel)?.name).toBe(BACKUP);
    expect(backupOfContent(sentinel)).toBeUndefined();
    for (const key of [...Object.values(contents), partKey(BACKUP, partName(7))]) {
      expect([key, backupOfContent(key)?.name, backupOfSentinel(key)]).toEqual([key, BACKUP, undefined]);
    }
  });

  test("other tools' extra names in them hold no 24 upper-case hex digits but the segment's", () => {
    for (const key of Object.values(backupKeys(BACKUP))) expect(key.match(/[0-9A-F]{24}/g)).toEqual([SEGMENT]);
  });
});

test.each([
  [BACKUP, "wal-g", undefined],
  [`${BACKUP}_00000028`, "wal-e", undefined],
  [`${BACKUP}_D_000000010000000000000002`, "wal-g", "000000010000000000000002"],
  [`${BACKUP}_D_000000010000000000000002_00000028`, "wal-g", "000000010000000000000002"],
] as const)("parseBackupName() tells that %s was made by %s, on %s", (name, madeBy, parentSegment) => {
  expect(parseBackupName(name)).toEqual({ name, startSegment: SEGMENT, madeBy, parentSegment });
  expect(backupOfSentinel(sentinelKey(name))?.name).toBe(name);
});

test.each([
  "",
  "base_",
  SEGMENT,
  `base_${SEGMENT}x`,
  `base_${SEGMENT.toLowerCase()}a`,
  "base_000000000000000000000004",
  `${BACKUP}/x`,
  "../x",
])("parseBackupName() refuses %p", (name) => expect(parseBackupName(name)).toBeUndefined());

describe("parseWalKey()", () => {
  test.each([
    "000000010000000000000004",
    "00000002.history",
    "000000010000000000000004.00000028.backup",
    "000000010000000000000004.partial",
  ])("is the inverse of walKey(): %s", (name) => {
    expect(parseWalKey(walKey(name))).toMatchObject({ file: { name }, compression: "zst" });
    expect(parseWalKey(`wal_005/${name}`)).toMatchObject({ file: { name }, compression: "" });
    expect(parseWalKey(`wal_005/${name}.lz4`)).toMatchObject({ file: { name }, compression: "lz4" });
  });

  test.each([
    "wal_005/",
    "wal_005/000000010000000000000004.json", // WAL-G's metadata of a segment
    "wal_005/000000010000000000000004_delta.zst",
    "wal_005/sub/000000010000000000000004.zst",
    "wal_005/000000010000000000000004.zst.zst",
    "wal_004/000000010000000000000004.zst",
    "basebackups_005/000000010000000000000004.zst",
  ])("tells that %s is no archived file", (key) => expect(parseWalKey(key)).toBeUndefined());
});
