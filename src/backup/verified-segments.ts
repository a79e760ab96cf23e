/**
 * What verify found of segments that more than one backup needs: each is read once. Good ones are kept as runs, because an
 * archive holds millions of them.
 */
import type { IntegrityError } from "../errors.ts";
import { type SegmentSize, segmentNamed, segmentNumber } from "../postgres/wal-segment.ts";
import type { Run } from "./recovery-path.ts";

export class VerifiedSegments {
  readonly #size: SegmentSize;
  /** By timeline, in the order in which they began. */
  readonly #good = new Map<number, Run[]>();
  readonly #bad = new Map<string, IntegrityError>();

  constructor(size: SegmentSize) {
    this.#size = size;
  }

  /** How many pieces the good ones are kept in. */
  get runs(): number {
    return this.#good.values().reduce((sum, runs) => sum + runs.length, 0);
  }

  /** @returns undefined for one that was not read */
  get(name: string): "good" | IntegrityError | undefined {
    const { timeline, number } = this.#place(name);
    const isGood = this.#good.get(timeline)?.some(({ first, last }) => first <= number && number <= last);
    return isGood ? "good" : this.#bad.get(name);
  }

  set(name: string, outcome: "good" | IntegrityError): void {
    if (outcome === "good") this.#addGood(name);
    else this.#bad.set(name, outcome);
  }

  #addGood(name: string): void {
    const { timeline, number } = this.#place(name);
    const runs = this.#good.get(timeline) ?? [];
    const before = runs.findIndex(({ last }) => last === number - 1n);
    const behind = runs.findIndex(({ first }) => first === number + 1n);
    const run = { first: runs[before]?.first ?? number, last: runs[behind]?.last ?? number };
    this.#good.set(timeline, [...runs.filter((_, n) => n !== before && n !== behind), run]);
  }

  #place(name: string): { readonly timeline: number; readonly number: bigint } {
    const position = segmentNamed(name);
    return { timeline: position.timeline, number: segmentNumber(position, this.#size) };
  }
}
