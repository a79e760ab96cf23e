/** What one part of a backup is made of: taken from the common source until the part is full, and kept, so that it can be packed again. */
import type { DataEntry } from "../postgres/data-entry.ts";

/** Of small files there are many in a part, and each is kept until the part is written. */
const ENTRIES_PER_PART = 20_000;

export class PartEntries {
  readonly #kept: DataEntry[];
  readonly #take: () => Promise<DataEntry | undefined>;
  readonly #contentBytes: number;

  constructor(first: DataEntry, take: () => Promise<DataEntry | undefined>, contentBytes: number) {
    this.#kept = [first];
    this.#take = take;
    this.#contentBytes = contentBytes;
  }

  /** @param filledBytes  what of the part is filled by now */
  async *each(filledBytes: () => number): AsyncGenerator<DataEntry> {
    for (let n = 0; ; n++) {
      const isFull = filledBytes() >= this.#contentBytes || n >= ENTRIES_PER_PART;
      const entry = this.#kept[n] ?? (isFull ? undefined : await this.#take());
      if (entry === undefined) return;
      this.#kept[n] = entry;
      yield entry;
    }
  }
}
