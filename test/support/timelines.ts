/**
 * Random repositories in the terms of recovery: clusters whose timelines branch off one another, backups on any of them, and
 * which files recovery would ask for. Written from what PostgreSQL does (readTimeLineHistory() in timeline.c,
 * XLogFileReadAnyTLI() in xlogrecovery.c), and slow: every file of every way forward is listed by its name.
 */
import { asLsn } from "../../src/postgres/lsn.ts";
import { parseWalFile, type SegmentSize } from "../../src/postgres/wal-segment.ts";
import { type BackupName, parseBackupName } from "../../src/repository/keys.ts";
import type { Inventory, RetainedBackup, WalEntry } from "../../src/retention/plan.ts";
import type { Random } from "./random.ts";

export interface Timeline {
  readonly id: number;
  readonly parent: Timeline | undefined;
  /** Where it left its parent, and where it ends, in bytes. */
  readonly begin: bigint;
  readonly end: bigint;
}

export interface Cluster {
  readonly systemIdentifier: bigint;
  readonly segmentSize: bigint;
  readonly timelines: readonly Timeline[];
}

export interface World {
  readonly clusters: readonly Cluster[];
  readonly inventory: Inventory;
}

const MiB = 2n ** 20n;
const LOG = 2n ** 32n;
/** Segments of every size begin at its multiples. */
const UNIT = 64n * MiB;

const hex8 = (n: bigint | number) => n.toString(16).toUpperCase().padStart(8, "0");

export function segmentName(timeline: number, number: bigint, size: bigint): string {
  return `${hex8(timeline)}${hex8(number / (LOG / size))}${hex8(number % (LOG / size))}`;
}

/** What the last 16 digits of a name count, for segments of this size. */
export const numberIn = (name: string, size: bigint) =>
  BigInt(`0x${name.slice(8, 16)}`) * (LOG / size) + BigInt(`0x${name.slice(16, 24)}`);

/** From the oldest ancestor to the timeline itself: where each is left, the last one where it ends. */
export function wayTo(timeline: Timeline, until = timeline.end): readonly { timeline: Timeline; until: bigint }[] {
  return [...(timeline.parent ? wayTo(timeline.parent, timeline.begin) : []), { timeline, until }];
}

export const clusterOf = ({ clusters }: World, { systemIdentifier }: RetainedBackup): Cluster =>
  clusters.find((cluster) => cluster.systemIdentifier === systemIdentifier) as Cluster;

/** Every segment that recovery from the backup can ask for, to the end of whichever timeline it can follow. */
export function neededFrom(backup: RetainedBackup, { segmentSize, timelines }: Cluster): ReadonlySet<string> {
  const needed = new Set<string>();
  for (const target of timelines) {
    const way = wayTo(target);
    const from = way.findIndex(({ timeline }) => timeline.id === backup.timeline);
    // A timeline that was left before the backup was complete leads nowhere from it.
    if (from < 0 || (way[from]?.until ?? 0n) < backup.stopLsn) continue;
    for (const { timeline, until } of way.slice(from)) {
      for (let number = timeline.begin / segmentSize; number <= until / segmentSize; number++)
        if (number >= backup.startLsn / segmentSize) needed.add(segmentName(timeline.id, number, segmentSize));
    }
  }
  return needed;
}

/** Every segment that the backup needs to be restored to the moment it ended. */
export function neededAlone(backup: RetainedBackup, { segmentSize }: Cluster): ReadonlySet<string> {
  const needed = new Set<string>();
  for (let number = backup.startLsn / segmentSize; number * segmentSize < backup.stopLsn; number++)
    needed.add(segmentName(backup.timeline, number, segmentSize));
  return needed;
}

export function anyWorld(random: Random): World {
  const first = anyCluster(random, { systemIdentifier: 7n, ids: [1, 2], begin: 1n + random.bigint(5) });
  // A second one goes on behind the first, on timeline 1 again as after pg_upgrade, or on others. No two archive one history.
  const behind = ends(first).at(-1) ?? 0n;
  const second = random.once(3)
    ? [anyCluster(random, { systemIdentifier: 8n, ids: [random.pick([1, 100]), 101], begin: behind / UNIT + 2n })]
    : [];
  const clusters = [first, ...second];

  const backups = clusters
    .flatMap((cluster) => random.list(6, () => anyBackup(random, cluster)))
    .filter((backup, at, all) => all.findIndex(({ name }) => name === backup.name) === at)
    .toSorted((a, b) => a.finishedAt.getTime() - b.finishedAt.getTime());
  const timelines = clusters.flatMap((cluster) => cluster.timelines);
  const withHistory = timelines.filter(({ id, parent }) => parent !== undefined && id > 1 && !random.once(6));
  const histories = new Map(
    withHistory.map((timeline) => [
      timeline.id,
      wayTo(timeline)
        .slice(0, -1)
        .map(({ timeline: { id }, until }) => ({ timeline: id, switchLsn: asLsn(until) })),
    ]),
  );
  const names = [
    ...clusters.flatMap((cluster) => cluster.timelines.flatMap((timeline) => namesOf(random, timeline, cluster))),
    ...withHistory.map(({ id }) => `${hex8(id)}.history`),
    ...backups.filter(() => random.once(2)).map(({ name }) => `${name.slice("base_".length)}.00000028.backup`),
  ];
  // There may be none: a backup that is not known may be of a time whose WAL is gone.
  const segments = names.filter((name) => name.length === 24);
  const anySegment = () => (segments.length === 0 ? `${hex8(1)}${hex8(0)}${hex8(1)}` : random.pick(segments));
  const others = random.once(6) ? [{ name: "a foreign one", startSegment: anySegment() }] : [];
  const unfinished = random.once(4) ? [{ name: "a running one", startSegment: anySegment() }] : [];
  // Each on any backup or the delta before it, by the name that WAL-G gives it; the last may still be running.
  for (let count = random.once(3) ? 1 + random.below(3) : 0; count > 0; count--) {
    const parent = random.pick([...backups, ...others.filter(isDelta), { startSegment: anySegment() }]).startSegment;
    const delta = parseBackupName(`base_${anySegment()}_D_${parent}`) as BackupName;
    (count === 1 && random.once(3) ? unfinished : others).push(delta);
  }
  const foreign = random.list(2, () => ({ key: `wal_005/notes${random.below(9)}.txt`, sizeBytes: 1 }));
  const wal = [...new Set(names)].map(
    (name): WalEntry => ({ key: `wal_005/${name}.zst`, sizeBytes: 1, file: parseWalFile(name) }),
  );
  return {
    clusters,
    inventory: { backups, wal: shuffled([...wal, ...foreign], random), others, unfinished, histories },
  };
}

const isDelta = ({ name }: { readonly name: string }) => name.includes("_D_");

const ends = ({ timelines }: Cluster) => timelines.map(({ end }) => end).toSorted((a, b) => Number(a - b));

interface ClusterOptions {
  readonly systemIdentifier: bigint;
  /** Of the first timeline, and of the next at least. */
  readonly ids: readonly [number, number];
  /** In units. */
  readonly begin: bigint;
}

function anyCluster(random: Random, { systemIdentifier, ids, begin: units }: ClusterOptions): Cluster {
  const segmentSize = random.pick([1n, 16n, 64n]) * MiB;
  const position = (from: bigint) => from + BigInt(random.below(25)) * segmentSize + random.bigint(20);
  const begin = units * UNIT;
  const timelines: Timeline[] = [{ id: ids[0], parent: undefined, begin, end: position(begin) }];
  for (let count = random.below(5); count > 0; count--) {
    const parent = random.pick(timelines);
    // Not always inside: a server is also promoted exactly where a segment ends.
    const at = parent.begin + (random.bigint(40) % (parent.end - parent.begin + 1n));
    const left =
      random.once(4) && at / segmentSize > parent.begin / segmentSize ? (at / segmentSize) * segmentSize : at;
    timelines.push({
      id: Math.max(timelines.at(-1)?.id ?? 0, ids[1] - 1) + 1 + random.below(2),
      parent,
      begin: left,
      end: position(left),
    });
  }
  return { systemIdentifier, segmentSize, timelines };
}

function anyBackup(random: Random, { systemIdentifier, segmentSize, timelines }: Cluster): RetainedBackup {
  const timeline = random.pick(timelines);
  const length = timeline.end - timeline.begin + 1n;
  const start = timeline.begin + (random.bigint(40) % length);
  const stop = start + 1n + (random.bigint(random.pick([10, 26])) % (timeline.end - start + 1n));
  const startSegment = segmentName(timeline.id, start / segmentSize, segmentSize);
  return {
    name: `base_${startSegment}`,
    startSegment,
    timeline: timeline.id,
    startLsn: asLsn(start),
    stopLsn: asLsn(stop),
    finishedAt: new Date(random.below(1000)),
    isPermanent: random.once(4),
    segmentSize: Number(segmentSize) as SegmentSize,
    systemIdentifier,
  };
}

/** With gaps, and the partial segment that a promoted server leaves of the timeline before. */
function namesOf(random: Random, { id, parent, begin, end }: Timeline, { segmentSize: size }: Cluster): string[] {
  const names = parent && random.once(2) ? [`${segmentName(parent.id, begin / size, size)}.partial`] : [];
  const hasGaps = random.once(4);
  for (let number = begin / size; number <= end / size; number++)
    if (!hasGaps || !random.once(5)) names.push(segmentName(id, number, size));
  return names;
}

function shuffled<Item>(items: readonly Item[], random: Random): Item[] {
  return items
    .map((item) => ({ item, at: random.below(2 ** 32) }))
    .toSorted((a, b) => a.at - b.at)
    .map(({ item }) => item);
}
