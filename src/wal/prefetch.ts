/**
 * The prefetcher: keeps the segments that recovery will ask for next ready on its disk, over connections that stay open.
 *
 * Started by wal-fetch, detached; ends by itself when recovery or its server does, or when it is of no more use. It changes how
 * fast recovery is, never what it sees: a segment that it cannot get is left to wal-fetch, which has the exit codes. Memory: a few
 * frames of each segment that is being loaded, whatever its size.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { asLsn, type Lsn } from "../postgres/lsn.ts";
import { isProcessRunning, readPostmasterPid } from "../postgres/postmaster-pid.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import {
  parseWalFile,
  type SegmentSize,
  segmentAt,
  segmentHolding,
  segmentNumber,
  type WalSegment,
} from "../postgres/wal-segment.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { ofCluster } from "../repository/wal-content.ts";
import { abortableDelay } from "../system/delay.ts";
import type { PrefetchClaim, PrefetchDirectory } from "./prefetch-directory.ts";

export interface PrefetchContext {
  readonly archive: Pick<WalArchive, "readOwnForm">;
  readonly directory: PrefetchDirectory;
  readonly claim: PrefetchClaim;
  /** Of the server in recovery. */
  readonly dataDirectory: string;
  readonly walDirectory: string;
  readonly systemIdentifier: bigint;
  readonly segmentSize: SegmentSize;
  /** Segments kept ready. */
  readonly count: number;
  /**
   * Recovery that asks for nothing for this long is paused, streams, or replays something slow. wal-fetch starts another
   * prefetcher when it goes on.
   */
  readonly idleMs: number;
  /** Makes the archive's answers fail that are still awaited. */
  readonly stopLoading: () => void;
  readonly signal: AbortSignal;
}

const LOADS_AT_ONCE = 4;
/** What may lie ready, whatever the count and the size of segments, but always one. */
const READY_BYTES = 2 ** 30;

const POLL_MS = 20;
const LOOK_AT_SERVER_EVERY_MS = 100;
const SHOW_LIFE_EVERY_MS = 1_000;

/** Returns when there is no more use in it. */
export async function prefetchWal(context: PrefetchContext): Promise<void> {
  const segments = new Segments(context);
  try {
    await keepReady(segments, context);
  } finally {
    context.stopLoading();
    await segments.settled();
  }
}

async function keepReady(segments: Segments, { claim, dataDirectory, signal }: PrefetchContext): Promise<void> {
  const server = runningServer(dataDirectory);
  let [lookedAt, shownAt] = [0, 0];
  while (!signal.aborted) {
    const now = performance.now();
    if (now - lookedAt >= LOOK_AT_SERVER_EVERY_MS) {
      if (server === undefined || runningServer(dataDirectory) !== server || !isInRecovery(dataDirectory)) return;
      lookedAt = now;
    }
    if (now - shownAt >= SHOW_LIFE_EVERY_MS) {
      if (!claim.isHeld()) return;
      shownAt = now;
    }
    if (segments.followRecovery(now) === "of no use") return;
    segments.startLoads();
    await abortableDelay(POLL_MS, signal).catch(() => {});
  }
}

/** What tells one run of a server from the next; undefined when it does not run, or is told to stop. */
function runningServer(dataDirectory: string): string | undefined {
  const server = readPostmasterPid(dataDirectory);
  if (server === undefined || server.status === "stopping" || !isProcessRunning(server.pid)) return undefined;
  return `${server.pid} ${server.startedAt}`;
}

/** The server removes the file when recovery ends. */
function isInRecovery(dataDirectory: string): boolean {
  return ["recovery.signal", "standby.signal"].some((name) => existsSync(join(dataDirectory, name)));
}

class Segments {
  readonly #context: PrefetchContext;
  readonly #count: number;
  readonly #loading = new Map<string, Promise<void>>();
  /** Those that could not be had. */
  readonly #lacking = new Set<string>();
  #position: WalSegment | undefined;
  #movedAt = performance.now();
  /** What recovery will ask for next, in order. */
  #wanted: readonly WalSegment[] = [];
  #ready: ReadonlySet<string> = new Set();

  constructor(context: PrefetchContext) {
    const { count, segmentSize } = context;
    this.#context = context;
    this.#count = Math.min(count, atLeastOne(READY_BYTES / segmentSize));
  }

  /** @returns "of no use" when recovery asks for nothing, or has got itself what we could not get: it has caught up with us */
  followRecovery(now: number): "of no use" | "of use" {
    const { directory, idleMs } = this.#context;
    const position = directory.position();
    if (position === undefined || position.name === this.#position?.name)
      return now - this.#movedAt > idleMs ? "of no use" : "of use";

    this.#position = position;
    this.#movedAt = now;
    this.#wanted = this.#segmentsAfter(position);
    this.#removeUnwanted();
    return [...this.#lacking].every((name) => this.#isWanted(name)) ? "of use" : "of no use";
  }

  #isWanted(name: string): boolean {
    return this.#wanted.some((segment) => segment.name === name);
  }

  #removeUnwanted(): void {
    const { directory } = this.#context;
    directory.keepOnly(new Set([...this.#wanted.map(({ name }) => name), ...this.#loading.keys()]));
    this.#ready = directory.ready();
  }

  startLoads(): void {
    const { directory, segmentSize } = this.#context;
    // Behind a segment that cannot be had, there is nothing to ask for.
    const end = this.#wanted.findIndex(({ name }) => this.#lacking.has(name));
    for (const segment of this.#wanted.slice(0, end === -1 ? undefined : end)) {
      if (this.#loading.size >= LOADS_AT_ONCE) return;
      if (this.#ready.has(segment.name) || this.#loading.has(segment.name)) continue;
      // Recovery itself needs the disk more: as much again as we may fill stays free.
      if (directory.freeBytes() < 2 * this.#count * segmentSize) return;
      if (!directory.beginLoading(segment.name)) continue;
      if (this.#hasBeenLoaded(segment)) {
        directory.endLoading(segment.name);
        return;
      }
      this.#loading.set(segment.name, this.#load(segment));
    }
  }

  /** Whoever loads a segment ends that only after it has told of the outcome, so this is asked once nobody is loading it. */
  #hasBeenLoaded(segment: WalSegment): boolean {
    const { directory } = this.#context;
    this.#ready = directory.ready();
    return this.#ready.has(segment.name) || directory.position()?.name !== this.#position?.name;
  }

  async settled(): Promise<void> {
    await Promise.all(this.#loading.values());
  }

  /** Whatever goes wrong, recovery learns it from wal-fetch, when and if it asks. */
  async #load(segment: WalSegment): Promise<void> {
    const { archive, directory, systemIdentifier } = this.#context;
    const { name } = segment;
    try {
      const pieces = archive.readOwnForm(segment);
      await directory.put(name, ofCluster(systemIdentifier, { file: segment, url: name, pieces }));
      this.#ready = new Set([...this.#ready, name]);
    } catch {
      this.#lacking.add(name);
    } finally {
      // Before another segment takes this one's place: left to itself, the collector lets garbage grow to hundreds of megabytes.
      Bun.gc(true);
      this.#loading.delete(name);
      directory.endLoading(name);
      // Recovery went past it meanwhile.
      if (!this.#isWanted(name)) this.#removeUnwanted();
    }
  }

  /**
   * As recovery goes on (xlogrecovery.c, XLogFileReadAnyTLI): of each segment the newest timeline's that has begun by then.
   * What is guessed wrong is fetched in vain, and no more.
   */
  #segmentsAfter(position: WalSegment): readonly WalSegment[] {
    const { segmentSize, walDirectory } = this.#context;
    const history = newestHistory(walDirectory);
    const timelineOf = (number: bigint) =>
      history.findLast(({ begin }) => segmentNumber(segmentHolding(1, begin, segmentSize), segmentSize) <= number)
        ?.timeline;
    const number = segmentNumber(position, segmentSize);
    const isFollowed = timelineOf(number) === position.timeline;
    return Array.from({ length: this.#count }, (_, n) => {
      const next = number + BigInt(n + 1);
      return segmentAt((isFollowed ? timelineOf(next) : undefined) ?? position.timeline, next, segmentSize);
    });
  }
}

const atLeastOne = (n: number) => Math.max(1, Math.floor(n));

interface BegunTimeline {
  readonly timeline: number;
  readonly begin: Lsn;
}

/** The server keeps the histories that it follows in pg_wal. Oldest timeline first; empty when there is none to be read. */
function newestHistory(walDirectory: string): readonly BegunTimeline[] {
  const files = readdirSync(walDirectory).map((name) => parseWalFile(name));
  const newest = Math.max(...files.map((file) => (file?.kind === "history" ? file.timeline : 0)), 0);
  const file = files.find((found) => found?.kind === "history" && found.timeline === newest);
  if (file === undefined) return [];
  try {
    const switches = parseTimelineHistory(newest, readFileSync(join(walDirectory, file.name), "utf8"));
    const timelines = [...switches.map(({ timeline }) => timeline), newest];
    return timelines.map((timeline, n) => ({ timeline, begin: switches[n - 1]?.switchLsn ?? asLsn(0n) }));
  } catch {
    return [];
  }
}
