/**
 * The prefetcher: keeps the segments that recovery will ask for next ready on its disk, over one connection to the store.
 *
 * Started by wal-fetch, detached; ends by itself when recovery does, and removes what it made. It changes how fast recovery
 * is, never what it sees: a segment it cannot get is left to wal-fetch, which has the exit codes.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { IntegrityError } from "../errors.ts";
import { checkSegment } from "../postgres/wal-page-header.ts";
import { nextSegment, parseWalFile, type SegmentSize, type WalSegment } from "../postgres/wal-segment.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { abortableDelay } from "../system/delay.ts";
import type { PrefetchDirectory } from "./prefetch-directory.ts";

export interface PrefetchContext {
  readonly archive: WalArchive;
  readonly directory: PrefetchDirectory;
  /** Of the server in recovery: its signal files tell when recovery ends. */
  readonly dataDirectory: string;
  readonly systemIdentifier: bigint;
  readonly segmentSize: SegmentSize;
  /** Segments kept ready. */
  readonly count: number;
  readonly signal: AbortSignal;
}

const LOADS_AT_ONCE = 4;
const POLL_MS = 10;
const TOUCH_EVERY_MS = 1_000;
/** A segment that is not archived yet, or could not be read, is asked for again after this. */
const ASK_AGAIN_MS = 2_000;
/** Recovery that asks for nothing for this long has ended, is paused, or replays a slow segment: wal-fetch starts us again. */
const IDLE_MS = 60_000;
/** What may lie on the disk, whatever the count and the size of segments. */
const MAX_READY_BYTES = 2 ** 30;

/** Returns when recovery has ended, or another prefetcher is at work. */
export async function prefetchWal(context: PrefetchContext): Promise<void> {
  const { directory } = context;
  const claim = await directory.claim();
  if (claim === undefined) return;
  try {
    await new Prefetcher(context, claim).run();
  } finally {
    if (await directory.stillClaimed(claim).catch(() => false)) await directory.remove();
  }
}

class Prefetcher {
  readonly #context: PrefetchContext;
  readonly #claim: string;
  readonly #count: number;
  readonly #loading = new Map<string, Promise<void>>();
  /** When to ask for a segment again. */
  readonly #later = new Map<string, number>();

  constructor(context: PrefetchContext, claim: string) {
    this.#context = context;
    this.#claim = claim;
    this.#count = Math.max(1, Math.min(context.count, Math.floor(MAX_READY_BYTES / context.segmentSize)));
  }

  async run(): Promise<void> {
    const { directory, signal } = this.#context;
    let position: string | undefined;
    let movedAt = Date.now();
    let touchedAt = 0;
    while (!signal.aborted && Date.now() - movedAt < IDLE_MS && this.#isInRecovery()) {
      if (Date.now() - touchedAt >= TOUCH_EVERY_MS) {
        if (!(await directory.stillClaimed(this.#claim))) break;
        touchedAt = Date.now();
      }
      const current = await directory.position();
      if (current !== position) {
        position = current;
        movedAt = Date.now();
        await directory.keepOnly(new Set([current ?? "", ...this.#wanted(current)]));
      }
      await this.#startLoads(this.#wanted(position));
      await abortableDelay(POLL_MS, signal).catch(() => {});
    }
    await Promise.allSettled(this.#loading.values());
  }

  #isInRecovery(): boolean {
    const { dataDirectory } = this.#context;
    return ["recovery.signal", "standby.signal"].some((name) => existsSync(join(dataDirectory, name)));
  }

  /** The segments after the one that recovery asked for last, on its timeline: a switch shows in what it asks for. */
  #wanted(position: string | undefined): readonly string[] {
    const last = parseWalFile(position ?? "");
    const wanted: WalSegment[] = [];
    for (let n = 0, at = last; n < this.#count && at?.kind === "segment"; n++) {
      at = nextSegment(at, this.#context.segmentSize);
      if (at.kind === "segment") wanted.push(at);
    }
    return wanted.map(({ name }) => name);
  }

  async #startLoads(wanted: readonly string[]): Promise<void> {
    const { directory, segmentSize } = this.#context;
    if (this.#loading.size >= LOADS_AT_ONCE) return;
    const ready = await directory.ready();
    // Behind a segment that is not there yet, there is nothing to ask for.
    const end = wanted.findIndex((name) => (this.#later.get(name) ?? 0) > Date.now());
    const missing = wanted
      .slice(0, end === -1 ? undefined : end)
      .filter((name) => !ready.has(name) && !this.#loading.has(name));
    for (const name of missing.slice(0, LOADS_AT_ONCE - this.#loading.size)) {
      // Recovery itself needs the disk more: as much again as we may fill stays free.
      if ((await directory.freeBytes()) < 2 * this.#count * segmentSize) return;
      const loading = this.#load(name).finally(() => this.#loading.delete(name));
      this.#loading.set(name, loading);
    }
  }

  async #load(name: string): Promise<void> {
    const { archive, directory, systemIdentifier } = this.#context;
    const file = parseWalFile(name);
    if (file?.kind !== "segment") return;
    try {
      await directory.beginLoading(name);
      const content = await archive.get(file);
      if (checkSegment(name, file, content).systemIdentifier !== systemIdentifier)
        throw new IntegrityError("of another cluster");
      await directory.put(name, content);
      this.#later.delete(name);
    } catch {
      // Whatever it is, recovery learns it from wal-fetch, when and if it asks.
      this.#later.set(name, Date.now() + ASK_AGAIN_MS);
    } finally {
      await directory.endLoading(name).catch(() => {});
    }
  }
}
