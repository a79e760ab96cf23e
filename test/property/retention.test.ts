/**
 * Retention against a slow and obvious model: DESIGN's words on what recovery needs, tried on every file by its name.
 *
 * Two sides: nothing goes that a kept backup, or recovery from it, can ask for; and all goes that is before every kept backup.
 */
import { expect } from "bun:test";
import {
  type Inventory,
  planBefore,
  planEverything,
  planGarbage,
  planRetain,
  type RetainedBackup,
  type RetentionPlan,
  type WalEntry,
} from "../../src/retention/plan.ts";
import { property } from "../support/property.ts";
import type { Random } from "../support/random.ts";
import {
  anyWorld,
  clusterOf,
  neededAlone,
  neededFrom,
  numberIn,
  type Timeline,
  type World,
  wayTo,
} from "../support/timelines.ts";

interface Decided {
  readonly plan: RetentionPlan;
  /** By the words of the command: those from which recovery goes on, and those that are kept for themselves alone. */
  readonly retained: readonly RetainedBackup[];
  readonly alone: readonly RetainedBackup[];
  /** "retain" does nothing at all where no backup goes. */
  readonly mayDoNothing: boolean;
}

const newestFirst = (backups: readonly RetainedBackup[]) =>
  backups
    .map((backup, at) => ({ backup, at }))
    .toSorted((a, b) => b.backup.finishedAt.getTime() - a.backup.finishedAt.getTime() || b.at - a.at)
    .map(({ backup }) => backup);

function retain(count: number, { inventory }: World): Decided {
  const ofCluster = (one: RetainedBackup) =>
    inventory.backups.filter((each) => each.systemIdentifier === one.systemIdentifier);
  const retained = inventory.backups.filter((backup) =>
    newestFirst(ofCluster(backup)).slice(0, count).includes(backup),
  );
  return decided(planRetain(count, inventory), retained, inventory, true);
}

function before(named: RetainedBackup, { inventory }: World): Decided {
  const isOlder = (backup: RetainedBackup) => inventory.backups.indexOf(backup) < inventory.backups.indexOf(named);
  const retained = inventory.backups.filter(
    (backup) => backup.systemIdentifier !== named.systemIdentifier || !isOlder(backup),
  );
  return decided(planBefore(named.name, inventory), retained, inventory, false);
}

const garbage = ({ inventory }: World) => decided(planGarbage(inventory), inventory.backups, inventory, false);

function decided(
  plan: RetentionPlan,
  wanted: readonly RetainedBackup[],
  { backups, others, unfinished }: Inventory,
  canDoNothing: boolean,
): Decided {
  // A delta's name ends with where the backup starts that it is made on.
  const isBase = ({ name }: RetainedBackup) =>
    [...others, ...unfinished].some((other) => other.name.endsWith(name.replace("base_", "_D_")));
  const retained = backups.filter((backup) => wanted.includes(backup) || isBase(backup));
  const alone = backups.filter((backup) => !retained.includes(backup) && backup.isPermanent);
  return { plan, retained, alone, mayDoNothing: canDoNothing && retained.length + alone.length === backups.length };
}

function anyPlan(random: Random, world: World): Decided {
  const { backups } = world.inventory;
  const kinds = [() => retain(1 + random.below(4), world), () => garbage(world)];
  return random.pick(backups.length > 0 ? [...kinds, () => before(random.pick(backups), world)] : kinds)();
}

/** Whether all that is kept was written after this file, or on timelines that had left its own before. */
function isOfNoUse({ file }: WalEntry, { retained, alone }: Decided, world: World): boolean {
  const { others, unfinished, histories } = world.inventory;
  if (file === undefined || file.kind === "history" || retained.length + others.length === 0) return false;
  const isPast = (backup: RetainedBackup) => {
    const size = BigInt(backup.segmentSize);
    if (numberIn(file.name, size) < backup.startLsn / size) return true;
    if (!histories.has(backup.timeline)) return false;
    const timeline = clusterOf(world, backup).timelines.find(({ id }) => id === backup.timeline) as Timeline;
    const left = wayTo(timeline)
      .slice(0, -1)
      .find((each) => each.timeline.id === file.timeline);
    return left !== undefined && numberIn(file.name, size) > left.until / size;
  };
  return (
    retained.every(isPast) &&
    alone.every((backup) => !neededAlone(backup, clusterOf(world, backup)).has(file.name.slice(0, 24))) &&
    [...others, ...unfinished].every(({ startSegment }) => file.name.slice(8, 24) < startSegment.slice(8))
  );
}

const namesOf = (wal: readonly WalEntry[]) => wal.map(({ file }) => file?.name ?? "no file of WAL");

property("no plan removes what a kept backup, or recovery from it, needs", (random) => {
  const world = anyWorld(random);
  const { plan, retained, alone } = anyPlan(random, world);
  const removed = namesOf(plan.removeWal);
  expect(removed.filter((name) => name.endsWith(".history") || name === "no file of WAL")).toEqual([]);
  for (const backup of retained) {
    const needed = neededFrom(backup, clusterOf(world, backup));
    expect({ from: backup.name, gone: removed.filter((name) => needed.has(name)) }).toEqual({
      from: backup.name,
      gone: [],
    });
  }
  for (const backup of alone) {
    const needed = neededAlone(backup, clusterOf(world, backup));
    expect({ alone: backup.name, gone: removed.filter((name) => needed.has(name)) }).toEqual({
      alone: backup.name,
      gone: [],
    });
  }
  // What nobody can read here, or is not complete yet, may need all WAL from its start on.
  for (const { startSegment } of [...world.inventory.others, ...world.inventory.unfinished])
    expect(removed.filter((name) => name.slice(8, 24) >= startSegment.slice(8))).toEqual([]);
  if (retained.length + world.inventory.others.length === 0) expect(removed).toEqual([]);
});

property("every plan removes what nothing needs, and the backups that its words say", (random) => {
  const world = anyWorld(random);
  const decision = anyPlan(random, world);
  const { plan, retained, alone, mayDoNothing } = decision;
  const { backups, others, unfinished, wal } = world.inventory;
  const kept = new Set([...retained, ...alone]);
  expect(plan.removeBackups.map(({ name }) => name)).toEqual(
    backups.filter((backup) => !kept.has(backup)).map(({ name }) => name),
  );
  expect(plan.keep.map(({ name }) => name).sort()).toEqual(
    [...others, ...unfinished, ...kept].map(({ name }) => name).sort(),
  );

  const ofNoUse = mayDoNothing ? [] : namesOf(wal.filter((entry) => isOfNoUse(entry, decision, world)));
  expect(namesOf(plan.removeWal).sort()).toEqual(ofNoUse.sort());
  expect(plan.keptWal).toBe(wal.length - plan.removeWal.length);
});

property("a plan that was carried out has nothing left to do, and garbage neither", (random) => {
  const world = anyWorld(random);
  const { plan, mayDoNothing } = anyPlan(random, world);
  const { inventory } = world;
  const gone = new Set(plan.removeBackups.map(({ name }) => name));
  const after = {
    ...inventory,
    backups: inventory.backups.filter(({ name }) => !gone.has(name)),
    wal: inventory.wal.filter((entry) => !plan.removeWal.includes(entry)),
  };
  if (!mayDoNothing) expect(namesOf(planGarbage(after).removeWal)).toEqual([]);
  for (let count = inventory.backups.length; count > 0; count--) {
    const { removeWal, removeBackups } = planRetain(count, after);
    if (removeBackups.length === 0) expect(namesOf(removeWal)).toEqual([]);
  }
});

property("everything means every backup and every file of WAL, and nothing that is none", (random) => {
  const { inventory } = anyWorld(random);
  const plan = planEverything(inventory);
  expect(plan.removeBackups.map(({ name }) => name).sort()).toEqual(
    [...inventory.others, ...inventory.backups].map(({ name }) => name).sort(),
  );
  expect(plan.removeWal).toEqual(inventory.wal.filter(({ file }) => file !== undefined));
  expect(plan.foreign).toEqual(inventory.wal.filter(({ file }) => file === undefined).map(({ key }) => key));
});
