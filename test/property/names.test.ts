/** Names, positions and keys: what is written is read again, and any text is either one of them or none. */
import { expect } from "bun:test";
import { IntegrityError, UsageError } from "../../src/errors.ts";
import { asLsn, formatLsn, parseLsn } from "../../src/postgres/lsn.ts";
import {
  describeTarget,
  formatTime,
  type Microseconds,
  parseRecoveryTarget,
  targetSetting,
} from "../../src/postgres/recovery-target.ts";
import { parseRelationFilePath } from "../../src/postgres/relation-file.ts";
import { parseTimelineHistory } from "../../src/postgres/timeline-history.ts";
import {
  nextSegment,
  parseWalFile,
  type SegmentSize,
  segmentAt,
  segmentBefore,
  segmentHolding,
  segmentNumber,
  segmentStart,
} from "../../src/postgres/wal-segment.ts";
import {
  BACKUPS,
  backupKeys,
  backupNameOf,
  backupOfContent,
  backupOfSentinel,
  nameOfLookalike,
  parseBackupName,
  parseWalKey,
  partKey,
  partName,
  walKey,
} from "../../src/repository/keys.ts";
import { compareKeys } from "../../src/storage/object-key.ts";
import { anyText, damagedText } from "../support/damage.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";

const hex8 = (n: number) => n.toString(16).toUpperCase().padStart(8, "0");
const timeline = (random: Random) => 1 + random.below(random.pick([3, 300, 2 ** 32 - 1]));
const segmentSize = (random: Random) => (2 ** (20 + random.below(11))) as SegmentSize;

function walName(random: Random): string {
  const segment = `${hex8(timeline(random))}${hex8(random.below(2 ** 32))}${hex8(random.below(4096))}`;
  return random.pick([
    segment,
    `${segment}.partial`,
    `${segment}.${hex8(random.below(2 ** 32))}.backup`,
    `${segment.slice(0, 8)}.history`,
  ]);
}

property("a file of pg_wal keeps its name, and its key leads back to it", (random) => {
  const name = walName(random);
  const file = parseWalFile(name);
  expect(file?.name).toBe(name);
  expect(file?.timeline).toBe(Number.parseInt(name.slice(0, 8), 16));
  expect(parseWalKey(walKey(name))).toEqual({ file: file as never, compression: "zst" });
});

property("any text is a name that reads as it stands, or none", (random) => {
  const text = random.once(2) ? anyText(random, 40) : damagedText(walName(random), random);
  const file = parseWalFile(text);
  if (file) {
    expect(text).toMatch(/^[0-9A-F]{8}(\.history|[0-9A-F]{16}(\.partial|\.[0-9A-F]{8}\.backup)?)$/);
    expect(file.name).toBe(text);
  }
  for (const key of [text, `wal_005/${text}`, `basebackups_005/${text}`, `basebackups_005/${text}/${text}`]) {
    expect(parseWalKey(key)?.file.name ?? "").toBe(parseWalKey(key) ? (key.slice(8).split(".zst")[0] as string) : "");
    backupOfSentinel(key);
    backupOfContent(key);
    parseRelationFilePath(key);
  }
  expect(parseBackupName(text)?.name ?? text).toBe(text);
});

property("segments are where their numbers say, with every size", (random) => {
  const size = segmentSize(random);
  const number = random.bigint(64) / BigInt(size);
  const segment = segmentAt(timeline(random), number, size);
  expect(segmentNumber(segment, size)).toBe(number);
  expect(parseWalFile(segment.name)).toEqual(segment);
  expect(segmentHolding(segment.timeline, segmentStart(segment, size), size)).toEqual(segment);
  if (number > 0n) {
    const before = segmentBefore(segment.timeline, segmentStart(segment, size), size);
    expect(nextSegment(before, size)).toEqual(segment);
  }
});

property("the keys of a backup lead back to it", (random) => {
  const name = backupNameOf(segmentAt(timeline(random), random.bigint(32), segmentSize(random)).name);
  const { sentinel, ...contents } = backupKeys(name);
  expect(backupOfSentinel(sentinel)?.name).toBe(name);
  for (const key of [...Object.values(contents), partKey(name, partName(1 + random.below(20_000)))]) {
    expect(backupOfContent(key)?.name).toBe(name);
    expect(backupOfSentinel(key)).toBeUndefined();
  }
});

property("a sentinel of which one letter was changed is another backup's, or looks like one", (random) => {
  const name = backupNameOf(segmentAt(timeline(random), random.bigint(32), segmentSize(random)).name);
  const { sentinel } = backupKeys(name);
  expect(nameOfLookalike(sentinel)).toBeUndefined();
  const at = BACKUPS.length + random.below(sentinel.length - BACKUPS.length);
  const letter = String.fromCharCode(33 + random.below(94));
  const changed = `${sentinel.slice(0, at)}${letter}${sentinel.slice(at + 1)}`;
  if (changed !== sentinel) expect(backupOfSentinel(changed)?.name ?? nameOfLookalike(changed)).toBeDefined();
});

property("a position in the log reads as it was printed", (random) => {
  const lsn = asLsn(random.bigint(random.pick([8, 32, 64])));
  expect(parseLsn(formatLsn(lsn))).toBe(lsn);
  const read = parseLsn(damagedText(formatLsn(lsn), random));
  if (read !== undefined) expect(BigInt.asUintN(64, read)).toBe(read);
});

property("a history of timelines reads as it was written; a damaged one rises, or is refused", async (random) => {
  let last = 0;
  const switches = random.list(20, () => {
    last += 1 + random.below(3);
    return { timeline: last, switchLsn: asLsn(random.bigint(64)) };
  });
  const text = switches
    .map(
      ({ timeline: parent, switchLsn }) =>
        `${parent}\t${formatLsn(switchLsn)}\t${random.pick(["no recovery target", "#", "before 2026-11-23 14:42:40+00"])}\n`,
    )
    .join(random.pick(["", "# a comment\n", "\n"]));
  expect(parseTimelineHistory(last + 1, text)).toEqual(switches);

  const read = await answerOf([IntegrityError], () => parseTimelineHistory(last + 1, damagedText(text, random)));
  const timelines = (read ?? []).map((each) => each.timeline);
  expect(timelines).toEqual(timelines.toSorted((a, b) => a - b));
  expect(timelines.every((each) => each > 0 && each <= last)).toBe(true);
});

property("a target of recovery is one for PostgreSQL too, or is refused", async (random) => {
  const time = (random.bigint(random.pick([40, 50])) - 2n ** 39n) as Microseconds;
  expect(parseRecoveryTarget(formatTime(time))).toEqual({ kind: "time", time });

  expect(formatTime((random.bigint(64) - 2n ** 63n) as Microseconds)).toMatch(/^[+-]?\d{4,6}-\d\d-\d\d [\d:.]+\+00$/);

  const texts = [
    "latest",
    "immediate",
    formatTime(time),
    formatLsn(asLsn(random.bigint(64))),
    "xid:731",
    "name:before_release",
    "before_release",
  ];
  const text = random.once(3) ? anyText(random, 30) : damagedText(random.pick(texts), random);
  const target = await answerOf([UsageError], () => parseRecoveryTarget(text));
  if (target === undefined) return;
  const [, value = ""] = targetSetting(target) ?? [];
  expect(value).not.toMatch(/[\0\r\n]/);
  expect(describeTarget(target)).not.toContain("undefined");
  if (target.kind !== "latest" && target.kind !== "immediate" && target.kind !== "xid" && target.kind !== "name")
    expect(parseRecoveryTarget(value)).toEqual(target);
});

property("keys are in the order of their bytes", (random) => {
  const [beginning, letters] = [anyText(random), ["", "a", "b", "/", "é", "\ud7ff", "\ue000", "\uffff", "😀", "😁"]];
  const [a, b] = [0, 1].map(() => beginning + random.pick(letters) + (random.once(2) ? anyText(random) : "")) as [
    string,
    string,
  ];
  const order = Buffer.compare(Buffer.from(a), Buffer.from(b));
  expect(Math.sign(compareKeys(a, b))).toBe(order);
});
