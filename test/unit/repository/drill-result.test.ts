import { describe, expect, test } from "bun:test";
import { asLsn } from "../../../src/postgres/lsn.ts";
import {
  type DrillResult,
  decodeRecoverySeconds,
  findLastDrill,
  putDrillResult,
  readRecoverySeconds,
} from "../../../src/repository/drill-result.ts";
import { drillKey, parseDrillKey } from "../../../src/repository/keys.ts";
import { keysOfBackup } from "../../../src/retention/inventory.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";

const BACKUP = "base_000000010000000000000004";

const result = (change: Partial<DrillResult> = {}): DrillResult => ({
  backup: BACKUP,
  startedAt: new Date("2026-11-23T17:00:00.000Z"),
  finishedAt: new Date("2026-11-23T17:30:00.123Z"),
  hostname: "db1",
  version: "0.1.0",
  target: "the end of the archive",
  postgres: "18.4",
  restore: { files: 980, bytes: 1000, ms: 2000 },
  replay: { from: asLsn(0xffff_ffff_0000_0001n), to: asLsn(0xffff_ffff_0000_0041n), ms: 500 },
  recoveryMs: 3210,
  checks: { databases: 3, relations: 291, indexes: 437, bytes: 4096n, amcheck: "1.5", ms: 900 },
  findings: [],
  otherFindings: 0,
  notes: [],
  ...change,
});

describe("the key of a result", () => {
  const key = `basebackups_005/${BACKUP}/walb_drill_2026-11-23T17-30-00.123Z_good.json`;
  const name = { backup: BACKUP, finishedAt: new Date("2026-11-23T17:30:00.123Z"), verdict: "good" } as const;

  test("has time and verdict in it, and is read back", () => {
    expect(drillKey(name)).toBe(key);
    expect(parseDrillKey(key)).toEqual(name);
  });

  test.each([
    [`basebackups_005/${BACKUP}/walb_claim.json`],
    [`basebackups_005/${BACKUP}/walb_drill_yesterday_good.json`],
    [`basebackups_005/${BACKUP}/walb_drill_2026-13-99T17-30-00.123Z_good.json`],
    [`basebackups_005/${BACKUP}/walb_drill_2026-11-23T17-30-00.123Z_unknown.json`],
    [`basebackups_005/${BACKUP}/tar_partitions/walb_drill_2026-11-23T17-30-00.123Z_good.json`],
    ["basebackups_005/other/walb_drill_2026-11-23T17-30-00.123Z_good.json"],
  ])("%s is none", (other) => {
    expect(parseDrillKey(other)).toBeUndefined();
  });
});

test("the last of several is found, whatever else is there", async () => {
  await using store = new MemoryObjectStore();
  await putDrillResult(store, result());
  const bad = {
    finishedAt: new Date("2026-11-24T01:00:00.000Z"),
    findings: [{ problem: "page lost" }],
    recoveryMs: undefined,
  };
  const key = await putDrillResult(store, result(bad));
  await store.putIfAbsent(`basebackups_005/${BACKUP}/walb_drill_zzz.json`, new Uint8Array());
  const last = await findLastDrill(store, BACKUP);
  expect(last).toEqual({ key: key ?? "", backup: BACKUP, finishedAt: bad.finishedAt, verdict: "bad" });
  expect(last && (await readRecoverySeconds(store, last))).toBeUndefined();
  expect(await findLastDrill(store, "base_000000010000000000000005")).toBeUndefined();
});

test("a result goes with its backup", async () => {
  await using store = new MemoryObjectStore();
  const key = await putDrillResult(store, result());
  expect(await keysOfBackup(store, BACKUP)).toContain(key ?? "");
});

test("a result is never overwritten", async () => {
  await using store = new MemoryObjectStore();
  expect(await putDrillResult(store, result())).toBeString();
  expect(await putDrillResult(store, result({ hostname: "db2" }))).toBeUndefined();
});

test("LSNs are plain integers, every digit of them", async () => {
  await using store = new MemoryObjectStore();
  const key = await putDrillResult(store, result());
  const text = new TextDecoder().decode((await store.get(key ?? "", 1e6)).body);
  expect(text).toContain('"start_lsn":18446744069414584321,"end_lsn":18446744069414584385,"wal_bytes":64,');
  expect(decodeRecoverySeconds(new TextEncoder().encode(text), "url")).toBe(3.21);
});

test.each([
  ['{"format_version":2,"recovery_seconds":"soon"}', "url has format version 2, this program knows 1"],
  ["{", "url is not valid JSON"],
  ["{}", 'url has no "format_version"'],
  ['{"format_version":1,"recovery_seconds":"soon"}', '"recovery_seconds" of url is not a number'],
])("%s is refused", (text, message) => {
  expect(() => decodeRecoverySeconds(new TextEncoder().encode(text), "url")).toThrow(message);
});
