/**
 * How far the archive leads: which segments are there, and whether a recovery target is in them.
 *
 * Segments are read from the newest back, one at a time. A server that does not find its target ends with an error after all WAL
 * has been replayed (13 and later), or promotes (12): hours after this could have told.
 */
import { IntegrityError, NotFoundError } from "../errors.ts";
import type { Lsn } from "../postgres/lsn.ts";
import type { Microseconds, RecoveryTarget } from "../postgres/recovery-target.ts";
import { BEGINNING_BYTES, checkSegmentHeader } from "../postgres/wal-page-header.ts";
import {
  continuationIn,
  hasKnownRecords,
  restorePointOf,
  transactionEndOf,
  type WalRecord,
  WalRecordReader,
} from "../postgres/wal-records.ts";
import { type SegmentSize, segmentNumber, type WalSegment } from "../postgres/wal-segment.ts";
import { isSupported } from "../repository/keys.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { Log } from "../system/log.ts";
import { type RecoveryPath, type Run, runsOf, segmentOnPath } from "./recovery-path.ts";

export interface Reading {
  readonly archive: WalArchive;
  readonly path: RecoveryPath;
  readonly segmentSize: SegmentSize;
  readonly systemIdentifier: bigint;
  readonly log: Log;
  readonly signal: AbortSignal;
}

/** What is archived along the path and can be read, from this segment on. */
export async function readRuns(first: bigint, reading: Reading): Promise<readonly Run[]> {
  return await runsOf(archivedNumbers(first, reading));
}

async function* archivedNumbers(first: bigint, { archive, path, segmentSize: size }: Reading): AsyncGenerator<bigint> {
  for (const { timeline, until } of path) {
    if (until !== undefined && until / BigInt(size) < first) continue;
    for await (const object of archive.list(timeline.toString(16).toUpperCase().padStart(8, "0"))) {
      const { file } = object;
      if (file?.kind !== "segment" || !isSupported(object)) continue;
      const number = segmentNumber(file, size);
      if (number >= first && segmentOnPath(path, number, size).name === file.name) yield number;
    }
  }
}

/** @returns the refusal, where what looks missing is there in another tool's form, at which recovery stops */
export async function unsupportedAt(
  number: bigint,
  { archive, path, segmentSize }: Reading,
): Promise<IntegrityError | undefined> {
  const segment = segmentOnPath(path, number, segmentSize);
  const detail = await archive.unsupportedForm(segment);
  if (detail === undefined) return undefined;
  return new IntegrityError(`archived "${segment.name}" is in a format that is not supported`, {
    detail: `${detail} Recovery would stop there.`,
    hint: "Nothing was written. Unpack the object and archive the file with wal-push, or restore with the tool that wrote it.",
  });
}

export interface ReadSegment {
  readonly segment: WalSegment;
  /** Of a release whose records are known; of others none are handed out. */
  readonly isKnown: boolean;
}

/**
 * Reads segments from the newest back, each as a whole: what its records told is verified when it is yielded.
 *
 * @param take  gets every record, in order within its segment
 * @throws IntegrityError  a segment is damaged, or another cluster's
 */
export async function* segmentsBackward(
  { first, last }: Run,
  reading: Reading,
  take: (record: WalRecord) => void,
): AsyncGenerator<ReadSegment> {
  let continuation: Uint8Array | undefined;
  for (let number = last; number >= first; number--) {
    reading.signal.throwIfAborted();
    const segment = segmentOnPath(reading.path, number, reading.segmentSize);
    let beginning: Uint8Array | undefined;
    let records: WalRecordReader | undefined;
    for await (const piece of reading.archive.read(segment)) {
      if (beginning === undefined) {
        checkIsOfCluster(segment, piece, reading.systemIdentifier);
        beginning = new Uint8Array(piece.subarray(0, BEGINNING_BYTES));
        if (hasKnownRecords(piece)) records = new WalRecordReader(piece, take);
      }
      records?.read(piece);
    }
    records?.end(continuation);
    yield { segment, isKnown: records !== undefined };
    continuation = beginning && continuationIn(beginning);
  }
}

function checkIsOfCluster(segment: WalSegment, beginning: Uint8Array, systemIdentifier: bigint): void {
  const written = checkSegmentHeader(segment.name, segment, beginning).systemIdentifier;
  if (written === systemIdentifier) return;
  throw new IntegrityError(`archived "${segment.name}" is of another cluster`, {
    detail: `It is of the cluster with system identifier ${written}; the backup is of ${systemIdentifier}.`,
    hint: "Two clusters archive to this prefix. Look for the right segment in pg_wal of the backup's server.",
  });
}

const ofUnknownRelease = ({ name }: WalSegment) =>
  ({
    kind: "unknown",
    why: `The records of "${name}" are of a release that this program does not know.`,
  }) as const;

/** What reading told. */
export type Reach =
  | { readonly kind: "reached" }
  /** @param newest  when the last transaction ended, or where the last record begins */
  | { readonly kind: "not reached"; readonly newestEnd?: Microseconds; readonly lastRecord?: Lsn }
  | { readonly kind: "unknown"; readonly why: string };

/** An idle server archives segments without a transaction; more than these are not looked at. */
const SEGMENTS_WITHOUT_TRANSACTION = 256;

/** Recovery stops at the first transaction that ended after the time, so there must be one. */
export async function reachTime(time: Microseconds, from: Lsn, run: Run, reading: Reading): Promise<Reach> {
  let newestEnd: Microseconds | undefined;
  const take = (record: WalRecord) => {
    const end = record.lsn < from ? undefined : transactionEndOf(record);
    if (end && (newestEnd === undefined || end.at > newestEnd)) newestEnd = end.at;
  };
  let looked = 0;
  for await (const { segment, isKnown } of segmentsBackward(run, reading, take)) {
    if (!isKnown) return ofUnknownRelease(segment);
    if (newestEnd !== undefined) return newestEnd > time ? { kind: "reached" } : { kind: "not reached", newestEnd };
    if (++looked === SEGMENTS_WITHOUT_TRANSACTION)
      return { kind: "unknown", why: `No transaction ended in the last ${looked} segments.` };
  }
  return { kind: "not reached" };
}

/** Recovery stops behind the first record that begins at the position or later. */
export async function reachLsn(lsn: Lsn, run: Run, reading: Reading): Promise<Reach> {
  if (lsn / BigInt(reading.segmentSize) < run.last) return { kind: "reached" };
  let lastRecord: Lsn | undefined;
  const take = (record: WalRecord) => {
    lastRecord = record.lsn;
  };
  for await (const { segment, isKnown } of segmentsBackward(run, reading, take)) {
    if (!isKnown) return ofUnknownRelease(segment);
    // A segment may hold nothing but the end of a record.
    if (lastRecord !== undefined) return lastRecord >= lsn ? { kind: "reached" } : { kind: "not reached", lastRecord };
  }
  return { kind: "not reached" };
}

export type Found =
  /** Positions of the records, the newest first. */
  | { readonly kind: "found"; readonly lsns: readonly Lsn[] }
  | { readonly kind: "not found"; readonly newestEnd: Microseconds | undefined; readonly hasPrepared: boolean }
  | { readonly kind: "unknown"; readonly why: string };

const TELL_EVERY_SEGMENTS = 256;

/**
 * Looks for the end of a transaction, or for a restore point, in all that is archived.
 *
 * @param until  how far back to go on when one was found: a restore point's name may have been given twice
 */
export async function findTarget(
  target: Extract<RecoveryTarget, { kind: "xid" | "name" }>,
  runs: readonly Run[],
  reading: Reading & { readonly goesOnTo: (found: Lsn) => Lsn | undefined },
): Promise<Found> {
  const lsns: Lsn[] = [];
  let here: Lsn[] = [];
  let newestEnd: Microseconds | undefined;
  let [hasPrepared, read] = [false, 0];
  const take = (record: WalRecord) => {
    const end = transactionEndOf(record);
    if (end && (newestEnd === undefined || end.at > newestEnd)) newestEnd = end.at;
    if (end && end.xid === undefined) hasPrepared = true;
    const isIt = target.kind === "xid" ? end?.xid === target.xid : restorePointOf(record) === target.name;
    if (isIt) here.push(record.lsn);
  };
  /** @param next  number of the segment that would be read */
  const isEnough = (next: bigint) => {
    if (lsns[0] === undefined) return false;
    const stopAt = reading.goesOnTo(lsns[0]);
    return stopAt === undefined || stopAt / BigInt(reading.segmentSize) > next;
  };
  for (const run of runs.toReversed()) {
    if (isEnough(run.last)) return { kind: "found", lsns };
    for await (const { segment, isKnown } of segmentsBackward(run, reading, take)) {
      if (!isKnown) return ofUnknownRelease(segment);
      lsns.push(...here.toReversed());
      here = [];
      if (isEnough(segmentNumber(segment, reading.segmentSize) - 1n)) return { kind: "found", lsns };
      if (++read % TELL_EVERY_SEGMENTS === 0)
        reading.log.info(`looking for the target in the archive: ${read} segments read, back to "${segment.name}"`);
    }
  }
  return lsns.length > 0 ? { kind: "found", lsns } : { kind: "not found", newestEnd, hasPrepared };
}

/** The timelines in the archive: the newest from `atLeast` on, as PostgreSQL looks for it (findNewestTimeLine in timeline.c). */
export async function newestTimeline(atLeast: number, archive: WalArchive): Promise<number> {
  for (let timeline = atLeast; ; timeline++) if (!(await hasHistory(timeline + 1, archive))) return timeline;
}

const historyName = (timeline: number) => `${timeline.toString(16).toUpperCase().padStart(8, "0")}.history`;

async function hasHistory(timeline: number, archive: WalArchive): Promise<boolean> {
  return (await readHistoryText(timeline, archive)) !== undefined;
}

/** @returns undefined when the archive proved that there is none */
export async function readHistoryText(timeline: number, archive: WalArchive): Promise<string | undefined> {
  try {
    return await archive.readText({ kind: "history", name: historyName(timeline), timeline });
  } catch (error) {
    if (error instanceof NotFoundError) return undefined;
    throw error;
  }
}
