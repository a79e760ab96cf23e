/**
 * Reads the WAL that a backup needs: to its own stop, or on to the end of the archive, along every timeline that recovery can
 * follow from it.
 *
 * Recovery takes segment n from the newest timeline that had begun by then (xlogrecovery.c, XLogFileReadAnyTLI): a timeline
 * must be whole up to the segment before the one in which the next left it; that one is copied to the next (xlog.c,
 * XLogInitNewTimeline).
 */
import { IntegrityError, NotFoundError } from "../errors.ts";
import type { Lsn } from "../postgres/lsn.ts";
import { parseTimelineHistory, switchPointOf, type TimelineHistory } from "../postgres/timeline-history.ts";
import { checkSegmentHeader } from "../postgres/wal-page-header.ts";
import {
  type SegmentSize,
  segmentAt,
  segmentBefore,
  segmentHolding,
  segmentNumber,
  type TimelineHistoryFile,
  type WalSegment,
} from "../postgres/wal-segment.ts";
import type { Backup } from "../repository/backup-catalog.ts";
import { walKey } from "../repository/keys.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { pathTo, type RecoveryPath, segmentOnPath, segmentsInstead } from "./recovery-path.ts";
import type { VerifiedSegments } from "./verified-segments.ts";
import { type Finding, findingOf, type WalReach, type WalRead } from "./verify-report.ts";

export interface VerifyWalContext {
  readonly archive: WalArchive;
  /** Each takes the memory of a few frames. */
  readonly segmentsAtOnce: number;
  /** What was found of segments that another backup needs too: each is read once. */
  readonly known?: VerifiedSegments | undefined;
  /** Waits a moment: segments are archived side by side, so a gap may close by itself. */
  readonly pause: () => Promise<void>;
  /** Takes how many bytes of content there are to read, when that is known. */
  readonly onPlan: (bytes: number) => void;
  /** Takes how many bytes of content were read. */
  readonly onRead: (bytes: number) => void;
  readonly signal: AbortSignal;
}

export interface VerifiedWal {
  readonly read: readonly WalRead[];
  readonly findings: readonly Finding[];
  readonly notes: readonly string[];
}

/** Numbers of segments, both included. */
interface Range {
  readonly first: bigint;
  readonly last: bigint;
}

/** The stretch of one timeline that must be there. */
interface Stretch extends Range {
  readonly timeline: number;
  /** Where the archive has nothing, in order. */
  readonly gaps: readonly Range[];
}

/** @throws StorageError, AccessError  as the store */
export async function verifyWal(backup: Backup, reach: WalReach, context: VerifyWalContext): Promise<VerifiedWal> {
  const { archive } = context;
  const findings: Finding[] = [];
  const found = (name: string, failure: IntegrityError) =>
    void findings.push(findingOf(walKey(name), archive.urlOf(name), failure));

  const plan =
    reach === "stop of the backup"
      ? { stretches: [{ ...ownStretch(backup), gaps: [] }].filter(isNotEmpty), notes: [] }
      : await planToEnd(backup, context, found);
  context.onPlan(segmentsToRead(plan.stretches, backup, context) * backup.segmentSize);
  const read: WalRead[] = [];
  for (const stretch of plan.stretches) read.push(await readStretch(stretch, backup, { ...context, found }));
  return { read, findings, notes: plan.notes };
}

/** What must be archived for the backup itself: nothing where it holds its own WAL. */
function ownStretch(backup: Backup): Range & { readonly timeline: number } {
  const { timeline, startLsn, stopLsn, segmentSize, walB } = backup;
  const first = segmentNumber(segmentHolding(timeline, startLsn, segmentSize), segmentSize);
  const last = segmentNumber(segmentBefore(timeline, stopLsn, segmentSize), segmentSize);
  return { timeline, first, last: walB?.holdsWal ? first - 1n : last };
}

const isNotEmpty = ({ first, last }: Range) => first <= last;

type Found = (name: string, failure: IntegrityError) => void;

/** One timeline while the archive is listed; its gaps are all that is kept of the list. */
class Walk {
  readonly timeline: number;
  readonly first: bigint;
  /** The last one archived, or the one before the first. */
  last: bigint;
  /** As far as it must go, whatever is archived. */
  needed: bigint;
  readonly gaps: Range[] = [];

  constructor({ timeline, first, last }: Range & { readonly timeline: number }) {
    this.timeline = timeline;
    this.first = first;
    this.last = first - 1n;
    this.needed = last;
  }

  /** @param number  of an archived segment; they come in order */
  add(number: bigint): void {
    if (number <= this.last) return;
    if (number > this.last + 1n) this.gaps.push({ first: this.last + 1n, last: number - 1n });
    this.last = number;
  }

  has(number: bigint): boolean {
    const inGap = this.gaps.some(({ first, last }) => first <= number && number <= last);
    return this.first <= number && number <= this.last && !inGap;
  }

  need(number: bigint): void {
    if (number > this.needed) this.needed = number;
  }

  stretch(): Stretch {
    const { timeline, first, last, needed, gaps } = this;
    return needed > last
      ? { timeline, first, last: needed, gaps: [...gaps, { first: last + 1n, last: needed }] }
      : { timeline, first, last, gaps };
  }
}

/** One LIST over the archive: histories come before the segments of their timeline, and parents before their children. */
async function planToEnd(
  backup: Backup,
  { archive, signal }: VerifyWalContext,
  found: Found,
): Promise<{ readonly stretches: readonly Stretch[]; readonly notes: readonly string[] }> {
  const { segmentSize } = backup;
  const walks = new Map([[backup.timeline, new Walk(ownStretch(backup))]]);
  const withoutHistory = new Set<number>();
  const known = new Set<number>([backup.timeline]);
  const notes: string[] = [];
  let newest = pathTo(backup.timeline, []);
  const numberAt = (lsn: Lsn) => segmentNumber(segmentHolding(1, lsn, segmentSize), segmentSize);

  for await (const { file } of archive.list()) {
    signal.throwIfAborted();
    if (file?.kind === "history" && file.timeline > backup.timeline && !known.has(file.timeline)) {
      known.add(file.timeline);
      const history = await readHistory(file, archive, found);
      if (history === undefined) continue;
      const left = switchPointOf(history, backup.timeline);
      if (left === undefined || left < backup.stopLsn) {
        notes.push(
          `Recovery from this backup cannot follow timeline ${file.timeline}: ${left === undefined ? "it does not come from the backup's timeline" : "it left the backup's timeline before the backup ended"}. To restore this backup, set recovery_target_timeline = 'current'.`,
        );
        continue;
      }
      follow(file.timeline, history);
      newest = pathTo(file.timeline, history);
    } else if (file?.kind === "segment" && file.timeline >= backup.timeline) {
      if (!known.has(file.timeline)) withoutHistory.add(file.timeline);
      walks.get(file.timeline)?.add(segmentNumber(file, segmentSize));
    }
  }

  for (const timeline of withoutHistory) {
    const name = `${timeline.toString(16).toUpperCase().padStart(8, "0")}.history`;
    const detail = `There are segments of timeline ${timeline}, and without its history no recovery follows it.`;
    found(name, new IntegrityError(`"${name}" is missing`, { detail }));
  }
  notes.push(...noteOfFork(newest, walks, segmentSize));
  const stretches = [...walks.values()].map((walk) => walk.stretch()).filter(isNotEmpty);
  return { stretches, notes };

  /** Each ancestor, from the backup's timeline on, must be whole up to where the next one begins. */
  function follow(timeline: number, history: TimelineHistory): void {
    let first = ownStretch(backup).first;
    for (const { timeline: ancestor, switchLsn } of history) {
      if (ancestor < backup.timeline) continue;
      const next = numberAt(switchLsn);
      // An ancestor without a history is reported as such where it has segments.
      if (!walks.has(ancestor) && !withoutHistory.has(ancestor))
        walks.set(ancestor, new Walk({ timeline: ancestor, first, last: next - 1n }));
      walks.get(ancestor)?.need(next - 1n);
      first = next;
    }
    walks.set(timeline, new Walk({ timeline, first, last: first - 1n }));
  }
}

/** Nothing is damaged: a new timeline's first segment is archived when it is full. */
function noteOfFork(path: RecoveryPath, walks: ReadonlyMap<number, Walk>, size: SegmentSize): readonly string[] {
  const walk = walks.get(path.at(-1)?.timeline ?? 0);
  if (walk === undefined) return [];
  const missing = walk.last + 1n;
  const instead = segmentsInstead(path, missing, size).find(({ timeline }) => walks.get(timeline)?.has(missing));
  if (instead === undefined) return [];
  const { name, timeline } = segmentOnPath(path, missing, size);
  return [
    `"${name}" is not archived yet, and recovery to timeline ${timeline} would take "${instead.name}" for it: where that goes on past the fork, restore refuses it.`,
  ];
}

async function readHistory(
  file: TimelineHistoryFile,
  archive: WalArchive,
  found: Found,
): Promise<TimelineHistory | undefined> {
  try {
    return parseTimelineHistory(file.timeline, await archive.readText(file));
  } catch (error) {
    if (error instanceof NotFoundError) return undefined;
    if (!(error instanceof IntegrityError)) throw error;
    found(file.name, error);
    return undefined;
  }
}

type ReadContext = VerifyWalContext & { readonly found: Found };

async function readStretch(stretch: Stretch, backup: Backup, context: ReadContext): Promise<WalRead> {
  const { segmentSize } = backup;
  const at = (number: bigint) => segmentAt(stretch.timeline, number, segmentSize);
  let segments = 0;
  let absent: bigint[] = [];
  const readEach = (numbers: Iterable<bigint>) =>
    forEachAtOnce(context.segmentsAtOnce, numbers, async (number, stopped) => {
      AbortSignal.any([context.signal, stopped]).throwIfAborted();
      const outcome = await readSegment(at(number), backup, context);
      if (outcome === "good") segments++;
      if (outcome === "absent") absent.push(number);
    });

  const open = stretch.gaps.filter((gap) => mayClose(gap, stretch));
  const settled = stretch.gaps.filter((gap) => !open.includes(gap));
  await readEach(numbersOf(stretch, settled));
  for (let looks = 1; looks < GAP_LOOKS; looks++) {
    const again = absent.filter((number) => open.some((gap) => number >= gap.first && number <= gap.last));
    if (again.length === 0) break;
    await context.pause();
    absent = absent.filter((number) => !again.includes(number));
    await readEach(again);
  }

  for (const gap of joined([...settled, ...absent.map((number) => ({ first: number, last: number }))])) {
    context.found(at(gap.first).name, gapFailure(gap, at, backup));
  }
  const [first, last] = [at(stretch.first).name, at(stretch.last).name];
  return { timeline: stretch.timeline, first, last, segments, contentBytes: segments * segmentSize };
}

const GAP_LOOKS = 5;
const MAX_OPEN_SEGMENTS = 64n;

/** A short one near the end of the archive: what lies behind it may just have been faster. */
function mayClose(gap: Range, { last }: Range): boolean {
  return last - gap.first < MAX_OPEN_SEGMENTS;
}

function* numbersOf({ first, last }: Range, without: readonly Range[]): Generator<bigint> {
  let number = first;
  for (const gap of without) {
    for (; number < gap.first; number++) yield number;
    number = gap.last + 1n;
  }
  for (; number <= last; number++) yield number;
}

function segmentsToRead(stretches: readonly Stretch[], { segmentSize }: Backup, { known }: VerifyWalContext): number {
  let count = 0;
  for (const stretch of stretches) {
    for (const number of numbersOf(stretch, stretch.gaps))
      if (known?.get(segmentAt(stretch.timeline, number, segmentSize).name) === undefined) count++;
  }
  return count;
}

/** In order, and neighbours as one. */
function joined(ranges: readonly Range[]): readonly Range[] {
  const result: Range[] = [];
  for (const range of ranges.toSorted((a, b) => (a.first < b.first ? -1 : 1))) {
    const before = result.at(-1);
    if (before && range.first <= before.last + 1n) result.splice(-1, 1, { first: before.first, last: range.last });
    else result.push(range);
  }
  return result;
}

async function readSegment(
  segment: WalSegment,
  backup: Backup,
  { archive, onRead, found, known }: ReadContext,
): Promise<"good" | "bad" | "absent"> {
  const before = known?.get(segment.name);
  if (before !== undefined) {
    if (before === "good") return "good";
    found(segment.name, before);
    return "bad";
  }
  try {
    let isFirst = true;
    for await (const piece of archive.read(segment)) {
      if (isFirst) checkOwner(segment, piece, backup);
      isFirst = false;
      onRead(piece.byteLength);
    }
    known?.set(segment.name, "good");
    return "good";
  } catch (error) {
    if (error instanceof NotFoundError) return "absent";
    if (!(error instanceof IntegrityError)) throw error;
    known?.set(segment.name, error);
    found(segment.name, error);
    return "bad";
  }
}

/** @throws IntegrityError  another cluster wrote it */
function checkOwner({ name, ...position }: WalSegment, beginning: Uint8Array, backup: Backup): void {
  const { systemIdentifier, segmentSize } = checkSegmentHeader(name, position, beginning);
  if (systemIdentifier !== backup.systemIdentifier) {
    throw new IntegrityError(`archived "${name}" is of another cluster`, {
      detail: `Its system identifier is ${systemIdentifier}, that of the backup is ${backup.systemIdentifier}.`,
    });
  }
  if (segmentSize !== backup.segmentSize) {
    throw new IntegrityError(`archived "${name}" has another size than the segments of the backup`, {
      detail: `It has ${segmentSize} bytes, those have ${backup.segmentSize}.`,
    });
  }
}

function gapFailure({ first, last }: Range, at: (number: bigint) => WalSegment, backup: Backup): IntegrityError {
  const own = ownStretch(backup);
  const names = [at(first).name, at(last).name].map((name) => `"${name}"`);
  const isOwn = at(first).timeline === own.timeline && first <= own.last;
  return new IntegrityError(
    first === last ? `${names[0]} is missing` : `${names[0]} … ${names[1]} are missing, ${last - first + 1n} segments`,
    {
      detail: isOwn
        ? "The backup cannot be restored."
        : "Recovery would end there, and what comes after it in the archive cannot be reached from this backup.",
    },
  );
}
