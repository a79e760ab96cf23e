import { describe, expect, test } from "bun:test";
import { asLsn, type Lsn, parseLsn } from "../../../src/postgres/lsn.ts";
import { parseTimelineHistory, type TimelineHistory } from "../../../src/postgres/timeline-history.ts";
import {
  parseWalFile,
  type SegmentSize,
  segmentBefore,
  segmentHolding,
  segmentStart,
  segmentsBetween,
} from "../../../src/postgres/wal-segment.ts";
import { type BackupName, parseBackupName, walKey } from "../../../src/repository/keys.ts";
import {
  type Inventory,
  planBefore,
  planEverything,
  planGarbage,
  planRetain,
  type RetainedBackup,
  type RetentionPlan,
  type WalEntry,
} from "../../../src/retention/plan.ts";
import { random } from "../../support/random.ts";

const SIZE = (16 * 2 ** 20) as SegmentSize;
const DAY = 86_400_000;
const lsn = (text: string) => parseLsn(text) as Lsn;

interface BackupOptions {
  readonly timeline?: number;
  readonly start: string;
  readonly stop: string;
  readonly day: number;
  readonly isPermanent?: boolean;
  readonly systemIdentifier?: bigint;
}

function backup({
  timeline = 1,
  start,
  stop,
  day,
  isPermanent = false,
  systemIdentifier = 7n,
}: BackupOptions): RetainedBackup {
  const startSegment = segmentHolding(timeline, lsn(start), SIZE).name;
  return {
    name: `base_${startSegment}`,
    startSegment,
    timeline,
    startLsn: lsn(start),
    stopLsn: lsn(stop),
    finishedAt: new Date(day * DAY),
    isPermanent,
    segmentSize: SIZE,
    systemIdentifier,
  };
}

const entry = (name: string): WalEntry => ({ key: walKey(name), sizeBytes: 1, file: parseWalFile(name) });
const segments = (timeline: number, from: number, to: number) =>
  Array.from({ length: to - from + 1 }, (_, n) =>
    entry(segmentHolding(timeline, asLsn(BigInt((from + n) * SIZE)), SIZE).name),
  );

const namesOf = (wal: readonly WalEntry[]) => wal.map(({ key }) => key.slice("wal_005/".length, -".zst".length));

const FIRST = backup({ start: "0/2000028", stop: "0/3000100", day: 1 });
const SECOND = backup({ start: "0/5000028", stop: "0/6000000", day: 2 });
const THIRD = backup({ start: "0/8000028", stop: "0/8000100", day: 3 });
const INVENTORY: Inventory = {
  backups: [FIRST, SECOND, THIRD],
  wal: segments(1, 1, 9),
  others: [],
  unfinished: [],
  histories: new Map(),
};

/** `backups` with one of them permanent. */
const withPermanent = (permanent: RetainedBackup): Inventory => ({
  ...INVENTORY,
  backups: INVENTORY.backups.map((each) => (each === permanent ? { ...each, isPermanent: true } : each)),
});

const HEX = "0000000100000000000000";

describe("planRetain()", () => {
  test.each([
    ["the newest alone", 1, INVENTORY, [FIRST.name, SECOND.name], ["01", "02", "03", "04", "05", "06", "07"]],
    ["the newest two", 2, INVENTORY, [FIRST.name], ["01", "02", "03", "04"]],
    ["as many as there are: nothing goes, not even WAL before them", 3, INVENTORY, [], []],
    ["more than there are: nothing goes", 9, INVENTORY, [], []],
    // Of a permanent one, what it needs to be restored to the moment it ended; its stop is the first byte of 06.
    ["a permanent one too", 1, withPermanent(SECOND), [FIRST.name], ["01", "02", "03", "04", "06", "07"]],
    ["a permanent one that spans two segments", 1, withPermanent(FIRST), [SECOND.name], ["01", "04", "05", "06", "07"]],
    ["a permanent one among the newest, which counts", 2, withPermanent(THIRD), [FIRST.name], ["01", "02", "03", "04"]],
    ["no backups: nothing tells what WAL is needed, so it stays", 1, { ...INVENTORY, backups: [] }, [], []],
  ])("keeps %s", (_, count, inventory, backups, wal) => {
    const plan = planRetain(count, inventory);
    expect(plan.removeBackups.map(({ name }) => name)).toEqual(backups);
    expect(namesOf(plan.removeWal)).toEqual(wal.map((last) => `${HEX}${last}`));
    expect(plan.keptWal).toBe(inventory.wal.length - plan.removeWal.length);
    expect(plan.keep.length + plan.removeBackups.length).toBe(inventory.backups.length);
  });

  test("says why", () => {
    const plan = planRetain(1, withPermanent(FIRST));
    expect(plan.keep).toEqual([
      { name: FIRST.name, because: "permanent" },
      { name: THIRD.name, because: "1st newest; 1 is kept" },
    ]);
    expect(plan.removeBackups).toEqual([{ name: SECOND.name, because: "2nd newest; 1 is kept" }]);
  });

  test("counts the backups of each cluster for themselves", () => {
    const other = backup({ start: "0/4000028", stop: "0/4000100", day: 0, systemIdentifier: 8n });
    const plan = planRetain(1, { ...INVENTORY, backups: [other, ...INVENTORY.backups] });
    expect(plan.keep.map(({ name }) => name)).toEqual([other.name, THIRD.name]);
    expect(namesOf(plan.removeWal)).toEqual(["01", "02", "03"].map((last) => `${HEX}${last}`));
  });
});

test("a backup of another kind stays, with all WAL from its start on", () => {
  const others = [{ name: `base_${HEX}04_00000040`, startSegment: `${HEX}04` }];
  const plan = planRetain(1, { ...INVENTORY, others });
  expect(plan.keep.map(({ name }) => name)).toEqual([others[0]?.name ?? "", THIRD.name]);
  expect(namesOf(plan.removeWal)).toEqual(["01", "02", "03"].map((last) => `${HEX}${last}`));
});

describe("a delta", () => {
  const delta = (start: string, parent: string) => parseBackupName(`base_${start}_D_${parent}`) as BackupName;
  const onFirst = delta(`${HEX}04`, FIRST.startSegment);
  const base = { name: FIRST.name, because: `the delta ${onFirst.name} is made on it` };

  test.each([
    ["retain", (inventory: Inventory) => planRetain(1, inventory)],
    ["before", (inventory: Inventory) => planBefore(THIRD.name, inventory)],
  ])("keeps the backup that it is made on, with its WAL: %s", (_, plan) => {
    // One that is still running would be listed without its base in the end.
    for (const kind of ["others", "unfinished"] as const) {
      const { keep, removeBackups, removeWal } = plan({ ...INVENTORY, [kind]: [onFirst] });
      expect(keep).toContainEqual(base);
      expect(removeBackups.map(({ name }) => name)).toEqual([SECOND.name]);
      expect(namesOf(removeWal)).toEqual([`${HEX}01`]);
    }
  });

  test("keeps it through every delta between them, each of which is kept", () => {
    const onDelta = delta(`${HEX}07`, onFirst.startSegment);
    const plan = planRetain(1, { ...INVENTORY, others: [onFirst, onDelta] });
    expect(plan.keep.map(({ name }) => name)).toEqual([onFirst.name, onDelta.name, FIRST.name, THIRD.name]);
  });

  test("keeps a permanent one with all WAL from its start on, and not to its stop alone", () => {
    const plan = planRetain(1, { ...withPermanent(FIRST), others: [onFirst] });
    expect(plan.keep).toContainEqual(base);
    expect(namesOf(plan.removeWal)).toEqual([`${HEX}01`]);
  });

  test("of another timeline keeps its parent's, and none that starts at the same place of its own", () => {
    const onNew = backup({ timeline: 2, start: "0/2000028", stop: "0/2000100", day: 2 });
    const others = [delta("000000020000000000000004", FIRST.startSegment)];
    const plan = planRetain(1, { ...INVENTORY, backups: [FIRST, onNew, THIRD], others });
    expect(plan.removeBackups.map(({ name }) => name)).toEqual([onNew.name]);
  });

  test("changes nothing of what is kept for a reason of its own, nor of what garbage keeps", () => {
    const onThird = delta(`${HEX}09`, THIRD.startSegment);
    expect(planRetain(1, { ...INVENTORY, others: [onThird] }).keep).toContainEqual({
      name: THIRD.name,
      because: "1st newest; 1 is kept",
    });
    expect(namesOf(planGarbage({ ...INVENTORY, others: [onFirst] }).removeWal)).toEqual([`${HEX}01`]);
  });

  test("goes with its base when everything goes", () => {
    const plan = planEverything({ ...INVENTORY, others: [onFirst] });
    expect(plan.removeBackups.map(({ name }) => name)).toEqual([onFirst.name, FIRST.name, SECOND.name, THIRD.name]);
  });
});

describe("a backup that is not complete", () => {
  const unfinished = [{ name: `base_${HEX}04`, startSegment: `${HEX}04` }];
  const line = { name: `base_${HEX}04`, because: "not complete: it may still be running" };

  test.each([
    ["retain", planRetain(1, { ...INVENTORY, unfinished })],
    ["before", planBefore(THIRD.name, { ...INVENTORY, unfinished })],
    ["garbage", planGarbage({ ...INVENTORY, backups: [THIRD], unfinished })],
  ])("keeps all WAL from its start on: %s", (_, plan) => {
    expect(plan.keep.at(-1)).toEqual(line);
    expect(namesOf(plan.removeWal)).toEqual(["01", "02", "03"].map((last) => `${HEX}${last}`));
  });

  test("keeps none when garbage removes what it left", () => {
    const plan = planGarbage({ ...INVENTORY, backups: [THIRD], unfinished }, [line.name]);
    expect(plan.keep).toEqual([{ name: THIRD.name, because: "complete" }]);
    expect(namesOf(plan.removeWal)).toHaveLength(7);
  });

  test("tells nothing of what WAL before it is good for, where there is no complete one", () => {
    expect(planGarbage({ ...INVENTORY, backups: [], unfinished }).removeWal).toEqual([]);
  });

  test("is told of when everything goes, and what it has written is left alone", () => {
    const plan = planEverything({ ...INVENTORY, unfinished });
    expect(plan.keep).toEqual([{ ...line, because: `${line.because}, and then fails without its WAL` }]);
    expect(plan.removeBackups).toHaveLength(3);
    expect(plan.removeWal).toHaveLength(9);
  });
});

test("timeline histories, and what PostgreSQL did not archive, always stay", () => {
  const foreign: WalEntry = { key: "wal_005/readme.txt", sizeBytes: 1 };
  const wal = [foreign, entry("00000002.history"), entry("00000009.history"), ...segments(1, 1, 9)];
  const plan = planRetain(1, { ...INVENTORY, wal });
  expect(plan.foreign).toEqual([foreign.key]);
  expect(plan.removeWal.every(({ file }) => file?.kind === "segment")).toBe(true);
});

test("partial segments and backup histories go with the segments they belong to", () => {
  const names = ["01.partial", "07.00000028.backup", "08.00000028.backup", "08.partial"].map((last) => `${HEX}${last}`);
  const plan = planRetain(1, { ...INVENTORY, wal: names.map(entry) });
  expect(namesOf(plan.removeWal)).toEqual(names.slice(0, 2));
});

describe("timelines", () => {
  const history = parseTimelineHistory(2, "1\t0/5800000\tno recovery target specified\n");
  const onNew = backup({ timeline: 2, start: "0/7000028", stop: "0/7000100", day: 4 });
  const wal = [...segments(1, 1, 9), entry("00000002.history"), ...segments(2, 5, 9)];

  test("WAL that the old one went on with after it was left goes, once every backup kept is on the new one", () => {
    const plan = planRetain(1, {
      backups: [FIRST, onNew],
      wal,
      others: [],
      unfinished: [],
      histories: new Map([[2, history]]),
    });
    expect(namesOf(plan.removeWal)).toEqual([
      ...["01", "02", "03", "04", "05", "06", "07", "08", "09"].map((last) => `${HEX}${last}`),
      ...["05", "06"].map((last) => `0000000200000000000000${last}`),
    ]);
  });

  test("without the history nothing is known of where it was left, so all that could follow stays", () => {
    const plan = planRetain(1, { backups: [FIRST, onNew], wal, others: [], unfinished: [], histories: new Map() });
    expect(namesOf(plan.removeWal)).not.toContain(`${HEX}09`);
    expect(namesOf(plan.removeWal)).toContain(`${HEX}06`);
  });

  test("a timeline that begins after a backup that is kept stays, however it came about", () => {
    const plan = planGarbage({
      backups: [FIRST, SECOND],
      wal: [...wal, ...segments(7, 6, 8)],
      others: [],
      unfinished: [],
      histories: new Map(),
    });
    expect(namesOf(plan.removeWal)).toEqual([`${HEX}01`]);
  });
});

describe("planBefore()", () => {
  test("keeps the one named and what finished after it", () => {
    const plan = planBefore(SECOND.name, INVENTORY);
    expect(plan.keep).toEqual([
      { name: SECOND.name, because: "the one named" },
      { name: THIRD.name, because: `finished after ${SECOND.name}` },
    ]);
    expect(plan.removeBackups).toEqual([{ name: FIRST.name, because: `finished before ${SECOND.name}` }]);
    expect(namesOf(plan.removeWal)).toEqual(["01", "02", "03", "04"].map((last) => `${HEX}${last}`));
  });

  test("keeps the backups of other clusters", () => {
    const other = backup({ start: "0/1000028", stop: "0/1000100", day: 0, systemIdentifier: 8n });
    const plan = planBefore(THIRD.name, { ...INVENTORY, backups: [other, ...INVENTORY.backups] });
    expect(plan.keep[0]).toEqual({ name: other.name, because: "of another cluster, 8" });
    expect(plan.removeWal).toEqual([]);
  });

  test("refuses a backup that is not there", () => {
    expect(() => planBefore("base_000000010000000000000099", INVENTORY)).toThrow(RangeError);
  });
});

test("planGarbage() keeps every backup, and removes WAL that none of them needs", () => {
  const plan = planGarbage(INVENTORY);
  expect(plan.removeBackups).toEqual([]);
  expect(namesOf(plan.removeWal)).toEqual([`${HEX}01`]);
});

test("planEverything() removes permanent backups and histories too, but nothing that is none of ours", () => {
  const foreign: WalEntry = { key: "wal_005/readme.txt", sizeBytes: 1 };
  const { backups } = withPermanent(FIRST);
  const plan = planEverything({
    backups,
    wal: [entry("00000002.history"), foreign],
    others: [],
    unfinished: [],
    histories: new Map(),
  });
  expect(plan.removeBackups).toHaveLength(3);
  expect(namesOf(plan.removeWal)).toEqual(["00000002.history"]);
  expect(plan).toMatchObject({ keep: [], keptWal: 1, foreign: [foreign.key] });
});

describe("no plan removes WAL that a backup it keeps needs", () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])("seed %i", (seed) => {
    const numbers = random(seed);
    let removed = 0;
    for (let round = 0; round < 60; round++) {
      const world = randomWorld(numbers);
      const { inventory } = world;
      const plans: [string, RetentionPlan][] = [
        ["retain", planRetain(1 + numbers.below(3), inventory)],
        ["before", planBefore(numbers.pick(inventory.backups).name, inventory)],
        ["garbage", planGarbage(inventory)],
      ];
      for (const [what, plan] of plans) {
        const gone = new Set(namesOf(plan.removeWal));
        removed += gone.size;
        for (const { name, because } of plan.keep) {
          const kept = inventory.backups.find((each) => each.name === name) as RetainedBackup;
          const needed = because === "permanent" ? neededToComplete(kept) : neededByAnyRecovery(kept, world);
          const lost = needed.filter((segment) => gone.has(segment));
          expect(lost, `seed ${seed}, round ${round}, ${what}: ${name} (${because})`).toEqual([]);
        }
        expect(
          plan.removeBackups.filter(({ name }) => inventory.backups.find((each) => each.name === name)?.isPermanent),
        ).toEqual([]);
      }
    }
    // The test of the test: a planner that keeps everything would pass.
    expect(removed).toBeGreaterThan(100);
  });
});

interface Branch {
  readonly timeline: number;
  readonly parent: number | undefined;
  readonly begin: bigint;
  readonly end: bigint;
}

interface World {
  readonly inventory: Inventory;
  readonly branches: readonly Branch[];
}

/** A cluster that was restored to earlier points now and then, whose old timelines sometimes went on. */
function randomWorld({ below, pick }: ReturnType<typeof random>): World {
  const branches: Branch[] = [
    { timeline: 1, parent: undefined, begin: BigInt(SIZE), end: BigInt(SIZE * (4 + below(12))) },
  ];
  for (let timeline = 2; timeline <= 1 + below(5); timeline++) {
    const parent = pick(branches);
    const begin = parent.begin + BigInt(1 + below(Number(parent.end - parent.begin)));
    branches.push({ timeline, parent: parent.timeline, begin, end: begin + BigInt(1 + below(SIZE * 10)) });
  }

  const backups = Array.from({ length: 2 + below(6) }, (_, n): RetainedBackup => {
    const { timeline, begin, end } = pick(branches);
    const start = begin + BigInt(below(Number(end - begin)));
    const stop = start + BigInt(1 + below(Number(end - start)));
    const startSegment = segmentHolding(timeline, asLsn(start), SIZE).name;
    return {
      // Names are unique in a repository; here by the day.
      name: `${startSegment} of day ${n}`,
      startSegment,
      timeline,
      startLsn: asLsn(start),
      stopLsn: asLsn(stop),
      finishedAt: new Date(n * DAY),
      isPermanent: below(5) === 0,
      segmentSize: SIZE,
      systemIdentifier: 7n,
    };
  });

  const wal = branches.flatMap(({ timeline, begin, end }) => {
    const [first, last] = [segmentHolding(timeline, asLsn(begin), SIZE), segmentBefore(timeline, asLsn(end), SIZE)];
    return [...segmentsBetween(first, last, SIZE)].map(({ name }) => entry(name));
  });
  // A history that nobody archived, or that was lost, must never cost WAL.
  const histories = new Map(
    branches
      .filter(({ timeline }) => timeline > 1 && below(4) > 0)
      .map(({ timeline }): [number, TimelineHistory] => [timeline, historyOf(timeline, branches)]),
  );
  return { branches, inventory: { backups, wal, others: [], unfinished: [], histories } };
}

function historyOf(timeline: number, branches: readonly Branch[]): TimelineHistory {
  const branch = branches.find((each) => each.timeline === timeline);
  if (branch?.parent === undefined) return [];
  return [...historyOf(branch.parent, branches), { timeline: branch.parent, switchLsn: asLsn(branch.begin) }];
}

/** Segments from the start to the byte before the end, on the backup's own timeline. */
function neededToComplete({ timeline, startLsn, stopLsn }: RetainedBackup): readonly string[] {
  return namesBetween(timeline, startLsn, stopLsn);
}

/** The slow and obvious way: recover to the end of every timeline that the backup can reach, and note each byte on the way. */
function neededByAnyRecovery(backup: RetainedBackup, { branches }: World): readonly string[] {
  return branches.flatMap((target) => {
    const way = wayTo(target.timeline, branches);
    const from = way.findIndex(({ timeline }) => timeline === backup.timeline);
    // Not an ancestor, or left before the backup was consistent.
    if (from === -1 || (way[from]?.until ?? 0n) < backup.stopLsn) return [];
    return way.slice(from).flatMap(({ timeline, since, until }) => {
      const begin = later(since, backup.startLsn);
      return begin < until ? namesBetween(timeline, begin, until) : [];
    });
  });
}

function later(a: bigint, b: bigint): bigint {
  if (a > b) return a;
  return b;
}

/** The timelines that recovery to the end of one goes through, oldest first. */
function wayTo(timeline: number, branches: readonly Branch[]): { timeline: number; since: bigint; until: bigint }[] {
  const branch = branches.find((each) => each.timeline === timeline) as Branch;
  const before = branch.parent === undefined ? [] : wayTo(branch.parent, branches);
  const left = before.map((each, index) => (index === before.length - 1 ? { ...each, until: branch.begin } : each));
  return [...left, { timeline, since: branch.begin, until: branch.end }];
}

function namesBetween(timeline: number, begin: bigint, end: bigint): readonly string[] {
  const names: string[] = [];
  for (
    let at = segmentStart(segmentHolding(timeline, asLsn(begin), SIZE), SIZE) as bigint;
    at < end;
    at += BigInt(SIZE)
  )
    names.push(segmentHolding(timeline, asLsn(at), SIZE).name);
  return names;
}
