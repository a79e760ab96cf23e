/** wal-b delete …: prints the plan; acts only with --confirm */
import { UsageError } from "../errors.ts";
import type { Leftovers } from "../retention/inventory.ts";
import type { Inventory, RetentionPlan } from "../retention/plan.ts";
import { printableLine } from "../system/printable.ts";
import { formatBytes } from "../system/quantity.ts";
import type { Command, CommandContext, Words } from "./command.ts";
import type { Repository } from "./open-repository.ts";

export const remove: Command = {
  name: "delete",
  summary: "show what retention would remove; remove it with --confirm",
  description:
    "WHAT is one of\n  retain N      keep the newest N backups and the WAL from the oldest of them on\n  before NAME   keep the backup NAME and what is newer\n  garbage       what failed backups left, and WAL that no backup needs\n  everything    all backups and all WAL; with FORCE permanent ones and unknown kinds too\n  old-versions  what WAL-E stored before its format 005\nPermanent backups (backup-mark) stay, with the WAL that they need. Nothing is removed without --confirm, and nothing at all when something in the repository cannot be read.",
  positionals: {
    what: { help: "retain, before, garbage, everything or old-versions" },
    value: { help: "N, NAME or FORCE", optional: true },
  },
  options: {
    confirm: { kind: "flag", help: "remove what the plan shows" },
    "dry-run": { alias: "n", kind: "flag", help: "only show the plan, even with --confirm" },
    "min-age": {
      kind: "text",
      value: "TIME",
      help: "garbage: spare unfinished backups that were written to within this time, such as 24h, which it is if not set",
    },
  },
  examples: [
    ["wal-b delete retain 7 --confirm", "from cron, after backup-push"],
    ["wal-b delete garbage", "what would go"],
  ],
  isLong: true,

  async run(words, context) {
    const { openRepository } = await import("./open-repository.ts");
    const request = parseRequest(words);
    await using repository = await openRepository(context);
    await DELETIONS[request.what]({
      ...request,
      acts: words.isSet("confirm") && !words.isSet("dry-run"),
      words,
      repository,
      context,
    });
  },
};

type What = "retain" | "before" | "garbage" | "everything" | "old-versions";

interface Request {
  readonly what: What;
  readonly value: string | undefined;
}

interface Deletion extends Request {
  readonly acts: boolean;
  readonly words: Words;
  readonly repository: Repository;
  readonly context: CommandContext;
}

function parseRequest(words: Words): Request {
  const [what, value] = [words.required("what"), words.text("value")];
  const refuse = (message: string): never => {
    throw new UsageError(message, { hint: 'Run "wal-b delete --help".' });
  };
  switch (what) {
    case "retain":
      if (!/^\d+$/.test(value ?? "") || Number(value) < 1)
        refuse(
          `"delete retain" needs how many backups to keep, 1 or more${value === undefined ? "" : `, not "${value}"`}`,
        );
      return { what, value };
    case "before":
      if (value === undefined) refuse('"delete before" needs the name of a backup');
      return { what, value };
    case "everything":
      if (value !== undefined && value !== "FORCE")
        refuse(`"delete everything" takes FORCE and nothing else, not "${value}"`);
      return { what, value };
    case "garbage":
    case "old-versions":
      if (value !== undefined) refuse(`"delete ${what}" takes no "${value}"`);
      return { what, value };
    default:
      return refuse(`"${what}" is nothing that can be deleted`);
  }
}

const DELETIONS: Record<What, (deletion: Deletion) => Promise<void>> = {
  retain: (deletion) =>
    deleteByPlan(deletion, async ({ planRetain }, inventory) => planRetain(Number(deletion.value), inventory)),

  before: (deletion) =>
    deleteByPlan(deletion, async ({ planBefore }, inventory) => {
      const { findBackup } = await import("../repository/backup-catalog.ts");
      const name = await nameOf(deletion, inventory.backups);
      return planBefore((await findBackup(deletion.repository.store, name)).name, inventory);
    }),

  everything: (deletion) =>
    deleteByPlan(deletion, async ({ planEverything }, inventory) => {
      if (deletion.value !== "FORCE") refusePermanent(inventory);
      return planEverything(inventory);
    }),

  async garbage({ repository, context, acts, words }) {
    const minAge = minAgeMs(words.text("min-age"));
    const [{ planGarbage }, { readInventory, readLeftovers }, { carryOutGarbage }] = await Promise.all([
      import("../retention/plan.ts"),
      import("../retention/inventory.ts"),
      import("../retention/delete.ts"),
    ]);
    const { store, archive } = repository;
    const inventory = await readInventory(store, archive);
    const leftovers = oldEnough(await readLeftovers(store), context.now().getTime() - minAge);
    const plan = planGarbage(
      inventory,
      leftovers.backups.map(({ name }) => name),
    );
    const removed = [...linesOfLeftovers(leftovers), ...removedBy(plan, inventory)];
    const none = leftovers.backups.length + leftovers.uploads.length === 0;
    const kept = [...keptBy(plan), ...(none ? ["no unfinished backups or uploads that are old enough"] : [])];
    context.output.write(describe([...kept, ...removed], removed.length > 0, acts));
    if (acts) await carryOutGarbage(inventory, leftovers, { store, log: context.log });
  },

  async "old-versions"({ repository, context, acts }) {
    const keys: string[] = [];
    for (const version of ["000", "001", "002", "003", "004"]) {
      for (const folder of [`basebackups_${version}/`, `wal_${version}/`]) {
        for await (const { key } of repository.store.list(folder)) keys.push(key);
      }
    }
    context.output.write(
      `${keys.length} objects of WAL-E's formats before 005${acts || keys.length === 0 ? "" : "; nothing is removed without --confirm"}\n`,
    );
    if (acts) await repository.store.delete(keys);
  },
};

/** @throws UsageError  a backup is permanent, or nobody can tell */
function refusePermanent({ backups, others }: Inventory): void {
  const quoted = (some: readonly { readonly name: string }[]) => some.map(({ name }) => `"${name}"`).join(", ");
  const permanent = backups.filter(({ isPermanent }) => isPermanent);
  if (permanent.length > 0) {
    throw new UsageError("there are permanent backups", {
      detail: `${quoted(permanent)}.`,
      hint: 'Take the marks back with "wal-b backup-mark NAME --impermanent", or say "delete everything FORCE".',
    });
  }
  if (others.length > 0) {
    throw new UsageError("there are backups of a kind that this program does not know, which may be permanent", {
      detail: `${quoted(others)}.`,
      hint: 'Remove them with the program that wrote them, or say "delete everything FORCE".',
    });
  }
}

/** WAL-E took a segment's name as well: then everything before the oldest backup that starts at it or later goes. */
async function nameOf(
  { value, repository }: Deletion,
  backups: readonly { readonly name: string; readonly systemIdentifier: bigint }[],
): Promise<string> {
  if (value === "LATEST") {
    const { checkOneCluster } = await import("../repository/backup-catalog.ts");
    checkOneCluster(backups, { location: repository.store.location, hint: "Name a backup instead of LATEST." });
    return backups.at(-1)?.name ?? value;
  }
  if (!/^[0-9A-F]{24}$/.test(value ?? "")) return value ?? "";
  const from = backups.find(({ name }) => name.slice("base_".length) >= (value ?? ""));
  if (from) return from.name;
  throw new UsageError(`no backup starts at "${value}" or later`, {
    hint: "Deleting what is before it would leave nothing to restore.",
  });
}

async function deleteByPlan(
  { repository, context, acts }: Deletion,
  plan: (planner: typeof import("../retention/plan.ts"), inventory: Inventory) => Promise<RetentionPlan>,
): Promise<void> {
  const [planner, { readInventory }, { carryOut }] = await Promise.all([
    import("../retention/plan.ts"),
    import("../retention/inventory.ts"),
    import("../retention/delete.ts"),
  ]);
  const { store, archive } = repository;
  const inventory = await readInventory(store, archive);
  const decided = await plan(planner, inventory);
  const removed = removedBy(decided, inventory);
  context.output.write(describe([...keptBy(decided), ...removed], removed.length > 0, acts));
  if (acts) await carryOut(decided, { store, log: context.log });
}

function describe(lines: readonly string[], removes: boolean, acts: boolean): string {
  const end = removes ? (acts ? [] : ["nothing was removed: that needs --confirm"]) : ["nothing to remove"];
  return `${[...lines, ...end].join("\n")}\n`;
}

function keptBy({ keep, keptWal, foreign }: RetentionPlan): string[] {
  return [
    ...keep.map(({ name, because }) => `keep    ${name}  ${because}`),
    `keep    ${keptWal} objects of the WAL archive`,
    ...foreign.slice(0, 5).map((key) => `keep    ${printableLine(key)}  not an archived WAL file`),
  ];
}

function removedBy(plan: RetentionPlan, inventory: Inventory): string[] {
  const { removeBackups, removeWal } = plan;
  const size = formatBytes(removeWal.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
  const wal = `remove  ${removeWal.length} objects of the WAL archive, ${size}, that no backup kept needs${rangesOf(plan, inventory)}`;
  return [
    ...removeBackups.map(({ name, because }) => `remove  ${name}  ${because}`),
    ...(removeWal.length > 0 ? [wal] : []),
  ];
}

const RANGES_SHOWN = 3;

/** First and last of what goes, and again behind each file that stays; histories stay anywhere, and are passed over. */
function rangesOf({ removeWal }: RetentionPlan, { wal }: Inventory): string {
  const removed = new Set(removeWal);
  const ranges: string[][] = [[]];
  for (const entry of wal) {
    if (entry.file === undefined) continue;
    if (removed.has(entry)) ranges.at(-1)?.push(entry.file.name);
    else if (entry.file.kind !== "history" && ranges.at(-1)?.length !== 0) ranges.push([]);
  }
  const texts = ranges
    .filter((names) => names.length > 0)
    .map((names) => (names.length > 1 ? `${names[0]} … ${names.at(-1)}` : names[0]));
  const more = texts.length - RANGES_SHOWN;
  return `: ${texts.slice(0, RANGES_SHOWN).join(", ")}${more > 0 ? ` and ${more} more ranges` : ""}`;
}

function oldEnough(leftovers: Leftovers, limit: number): Leftovers {
  return {
    backups: leftovers.backups.filter(({ lastWrite }) => lastWrite.getTime() <= limit),
    uploads: leftovers.uploads.filter(({ initiated }) => initiated.getTime() <= limit),
  };
}

const HOUR_MS = 3_600_000;

function minAgeMs(text: string | undefined): number {
  if (text === undefined) return 24 * HOUR_MS;
  const [, digits, unit = "s"] = /^(\d+)(s|min|h|d)?$/.exec(text) ?? [];
  if (digits === undefined)
    throw new UsageError(`--min-age is "${text}"`, { hint: "It must be a time such as 90s, 30min, 24h or 2d." });
  return Number(digits) * ({ s: 1000, min: 60_000, h: HOUR_MS, d: 24 * HOUR_MS }[unit] ?? 1000);
}

function linesOfLeftovers({ backups, uploads }: Leftovers): string[] {
  return [
    ...backups.map(
      ({ name, keys, sizeBytes, lastWrite }) =>
        `remove  ${name}  unfinished: ${keys.length} objects, ${(sizeBytes / 2 ** 20).toFixed(1)} MiB, last written ${lastWrite.toISOString()}`,
    ),
    ...uploads.map(({ key, initiated }) => `abort   upload of ${printableLine(key)}, begun ${initiated.toISOString()}`),
  ];
}
