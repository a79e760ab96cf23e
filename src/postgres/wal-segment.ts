/**
 * The files of pg_wal that PostgreSQL archives, told apart by their names: segments, partial segments, timeline
 * histories and backup histories. Source: xlog_internal.h (IsXLogFileName and its neighbours).
 */
import { asLsn, type Lsn } from "./lsn.ts";

/** Size of one WAL segment in bytes: a power of two from 1 MiB to 1 GiB, fixed by initdb --wal-segsize. */
export type SegmentSize = number & { readonly brand: "SegmentSize" };

export const MIN_SEGMENT_SIZE = (2 ** 20) as SegmentSize;
export const MAX_SEGMENT_SIZE = (2 ** 30) as SegmentSize;

/** The three numbers in a segment's name. `log` and `segment` together count segments. */
export interface SegmentPosition {
  readonly timeline: number;
  readonly log: number;
  readonly segment: number;
}

export interface WalSegment extends SegmentPosition {
  readonly kind: "segment";
  /** As PostgreSQL writes it: 24 hex digits, upper case. */
  readonly name: string;
}

/** The last segment of a timeline that ended inside it: the segment's name with ".partial". */
export interface PartialSegment extends SegmentPosition {
  readonly kind: "partial";
  readonly name: string;
}

/** "0000000A.history": where this timeline left its parents. */
export interface TimelineHistoryFile {
  readonly kind: "history";
  readonly name: string;
  readonly timeline: number;
}

/** "000000010000000000000004.00000028.backup": written when a base backup ends. */
export interface BackupHistoryFile extends SegmentPosition {
  readonly kind: "backup";
  readonly name: string;
}

export type WalFile = WalSegment | PartialSegment | TimelineHistoryFile | BackupHistoryFile;

const SEGMENT = /^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial|\.[0-9A-F]{8}\.backup)?$/;
const HISTORY = /^([0-9A-F]{8})\.history$/;

/** The name of a file in pg_wal → what it is; undefined for any other name, also one in lower case. */
export function parseWalFile(name: string): WalFile | undefined {
  const match = SEGMENT.exec(name);
  if (!match) {
    const timeline = hex(HISTORY.exec(name)?.[1]);
    return timeline > 0 ? { kind: "history", name, timeline } : undefined;
  }

  const position = { timeline: hex(match[1]), log: hex(match[2]), segment: hex(match[3]) };
  if (position.timeline === 0 || position.segment >= MAX_SEGMENTS_PER_LOG) return undefined;
  if (match[4] === undefined) return { kind: "segment", name, ...position };
  return { kind: match[4] === ".partial" ? "partial" : "backup", name, ...position };
}

/** A segment's name → its numbers. @throws RangeError  not the name of a segment */
export function segmentNamed(name: string): WalSegment {
  const file = parseWalFile(name);
  if (file?.kind !== "segment") throw new RangeError(`"${name}" is not the name of a WAL segment`);
  return file;
}

/** How many segments lie before this one, on any timeline. */
export function segmentNumber({ log, segment }: SegmentPosition, size: SegmentSize): bigint {
  return BigInt(log) * BigInt(segmentsPerLog(size)) + BigInt(segment);
}

/** The segment that begins `number` segments after the log's beginning. */
export function segmentAt(timeline: number, number: bigint, size: SegmentSize): WalSegment {
  const perLog = BigInt(segmentsPerLog(size));
  const [log, segment] = [Number(number / perLog), Number(number % perLog)];
  return { kind: "segment", name: [timeline, log, segment].map(eightDigits).join(""), timeline, log, segment };
}

/** The segment that holds the byte at `lsn`. */
export function segmentHolding(timeline: number, lsn: Lsn, size: SegmentSize): WalSegment {
  return segmentAt(timeline, lsn / BigInt(size), size);
}

/** The segment that holds the byte before `lsn`: the last one needed to replay up to it (XLByteToPrevSeg). */
export function segmentBefore(timeline: number, lsn: Lsn, size: SegmentSize): WalSegment {
  return segmentHolding(timeline, asLsn(lsn > 0n ? lsn - 1n : 0n), size);
}

/** The segment that follows on the same timeline. */
export function nextSegment(segment: WalSegment, size: SegmentSize): WalSegment {
  return segmentAt(segment.timeline, segmentNumber(segment, size) + 1n, size);
}

/** The position of a segment's first byte. */
export function segmentStart(segment: SegmentPosition, size: SegmentSize): Lsn {
  return asLsn(segmentNumber(segment, size) * BigInt(size));
}

/** Every segment from `first` to `last`, both included, on the timeline of `first`. */
export function* segmentsBetween(first: WalSegment, last: SegmentPosition, size: SegmentSize): Generator<WalSegment> {
  const end = segmentNumber(last, size);
  for (let number = segmentNumber(first, size); number <= end; number++) yield segmentAt(first.timeline, number, size);
}

export function isSegmentSize(bytes: number): bytes is SegmentSize {
  return bytes >= MIN_SEGMENT_SIZE && bytes <= MAX_SEGMENT_SIZE && Number.isInteger(Math.log2(bytes));
}

/** With the smallest segments, 1 MiB, a log of 4 GiB has 4,096 of them. */
const MAX_SEGMENTS_PER_LOG = 2 ** 32 / MIN_SEGMENT_SIZE;

const segmentsPerLog = (size: SegmentSize) => 2 ** 32 / size;
const eightDigits = (n: number) => n.toString(16).toUpperCase().padStart(8, "0");
const hex = (digits: string | undefined) => Number.parseInt(digits ?? "", 16);
