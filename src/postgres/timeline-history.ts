/**
 * The .history file of a timeline: which timelines it came from, and where it left each.
 * Source: readTimeLineHistory() in timeline.c. Lines are "parent<TAB>switch point<TAB>reason"; "#" begins a comment.
 */
import { IntegrityError } from "../errors.ts";
import { type Lsn, parseLsn } from "./lsn.ts";

export interface TimelineSwitch {
  /** The timeline that was left. */
  readonly timeline: number;
  /** Where it was left: the first byte that belongs to the next one. */
  readonly switchLsn: Lsn;
}

/** Oldest ancestor first. Timeline 1 has no history file and an empty history. */
export type TimelineHistory = readonly TimelineSwitch[];

/** @throws IntegrityError  a line is malformed, or timelines do not rise */
export function parseTimelineHistory(timeline: number, text: string): TimelineHistory {
  const history: TimelineSwitch[] = [];
  for (const line of text.split("\n")) {
    if (line.trim() === "" || line.trimStart().startsWith("#")) continue;

    const [parent, switchPoint] = line.trim().split(/\s+/);
    const switchLsn = parseLsn(switchPoint ?? "");
    const ancestor = /^\d+$/.test(parent ?? "") ? Number(parent) : 0;
    const previous = history.at(-1)?.timeline ?? 0;
    if (switchLsn === undefined || ancestor <= previous || ancestor >= timeline) {
      throw new IntegrityError(`history of timeline ${timeline} is damaged`, { detail: `It has the line "${line}".` });
    }
    history.push({ timeline: ancestor, switchLsn });
  }
  return history;
}

/** Where `descendant`'s history left `ancestor`; undefined when it never was on it. */
export function switchPointOf(history: TimelineHistory, ancestor: number): Lsn | undefined {
  return history.find(({ timeline }) => timeline === ancestor)?.switchLsn;
}
