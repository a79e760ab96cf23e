/** The words after `bun bench/run.ts`. */
import { parseArgs } from "node:util";

export const GROUPS = ["start", "segment", "backup", "wal"] as const;
export type Group = (typeof GROUPS)[number];

export interface Options {
  readonly groups: readonly Group[];
  /** Of the data directories that are backed up and restored, one after the other. */
  readonly sizesMiB: readonly number[];
  /** Of each command of "backup". */
  readonly backupRuns: number;
  /** Of each command of "start" and "segment". */
  readonly shortRuns: number;
  /** Of a backlog and of a recovery. */
  readonly walSegments: number;
  /** Of each backlog and recovery. */
  readonly walRuns: number;
  /** Another build of wal-b, measured beside this one. */
  readonly against: string | undefined;
  /** Beginnings of names of peers that are not measured. */
  readonly without: readonly string[];
  /** What becomes of the figures. */
  readonly report: "README" | "terminal";
}

const USAGE = `usage: bun bench/run.ts [options]
  --size MiB       of the data directory (1000); several with commas
  --runs N         of each backup and restore (5)
  --short-runs N   of each short command (20)
  --segments N     of a backlog and of a recovery (128)
  --wal-runs N     of each backlog and recovery (3)
  --only GROUPS    of start, segment, backup, wal; with commas
  --against PATH   measure another build of wal-b beside this one
  --without NAMES  leave out peers whose names begin so; with commas
  --write          put the figures into bench/README.md`;

/** @throws Error  with the usage */
export function parseOptions(words: readonly string[]): Options {
  const { values } = parseArgs({
    args: [...words],
    options: {
      size: { type: "string", default: "1000" },
      runs: { type: "string", default: "5" },
      "short-runs": { type: "string", default: "20" },
      segments: { type: "string", default: "128" },
      "wal-runs": { type: "string", default: "3" },
      only: { type: "string", default: GROUPS.join(",") },
      against: { type: "string" },
      without: { type: "string" },
      write: { type: "boolean", default: false },
    },
  });
  return {
    groups: values.only.split(",").map(groupOf),
    sizesMiB: values.size.split(",").map((word) => wholeNumber("--size", word)),
    backupRuns: wholeNumber("--runs", values.runs),
    shortRuns: wholeNumber("--short-runs", values["short-runs"]),
    walSegments: wholeNumber("--segments", values.segments),
    walRuns: wholeNumber("--wal-runs", values["wal-runs"]),
    against: values.against,
    without: values.without?.split(",") ?? [],
    report: values.write ? "README" : "terminal",
  };
}

function groupOf(word: string): Group {
  const group = GROUPS.find((known) => known === word);
  if (group === undefined) throw new Error(`"${word}" cannot be measured\n${USAGE}`);
  return group;
}

function wholeNumber(flag: string, word: string): number {
  const number = Number(word);
  if (!Number.isInteger(number) || number < 1) throw new Error(`${flag} is "${word}", not a whole number\n${USAGE}`);
  return number;
}
