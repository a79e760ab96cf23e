/**
 * The long header on the first page of a WAL segment: which cluster wrote it, and which segment it is.
 * Source: XLogLongPageHeaderData in xlog_internal.h; the magic numbers are XLOG_PAGE_MAGIC of each release.
 */
import { IntegrityError } from "../errors.ts";
import { asLsn, formatLsn, type Lsn } from "./lsn.ts";
import { isSegmentSize, type SegmentPosition, type SegmentSize, segmentStart } from "./wal-segment.ts";

export interface WalPageHeader {
  readonly magic: number;
  readonly timeline: number;
  /** Position of the page's first byte. */
  readonly pageAddress: Lsn;
  readonly systemIdentifier: bigint;
  readonly segmentSize: SegmentSize;
}

export const LONG_HEADER_BYTES = 40;
/** Of a segment that is read in pieces, the first has so many: the header, and behind it a record's first 128 bytes (wal-records.ts). */
export const BEGINNING_BYTES = LONG_HEADER_BYTES + 128;
const XLP_LONG_HEADER = 0x0002;

/** XLOG_PAGE_MAGIC → major version. Only for messages: a newer server's segments must be archived as well. */
const MAGIC_OF_MAJOR: ReadonlyMap<number, number> = new Map([
  [0xd101, 12],
  [0xd106, 13],
  [0xd10d, 14],
  [0xd110, 15],
  [0xd113, 16],
  [0xd116, 17],
  [0xd118, 18],
]);

export const majorOfMagic = (magic: number): number | undefined => MAGIC_OF_MAJOR.get(magic);

/** XLOG_PAGE_MAGIC has been 0xD0nn or 0xD1nn in every release; anything else is no WAL page (of this byte order). */
const isMagic = (magic: number) => magic >= 0xd061 && magic <= 0xd1ff;

/** A segment against its name and size. @throws IntegrityError  as the two below */
export function checkSegment(
  name: string,
  position: SegmentPosition,
  beginning: Uint8Array,
  sizeBytes: number = beginning.byteLength,
): WalPageHeader {
  const header = checkSegmentHeader(name, position, beginning);
  checkSegmentSize(name, sizeBytes, header);
  return header;
}

/**
 * Reads the header and checks it against the segment's name.
 *
 * The header's timeline may be lower than the name's: the first segment of a new timeline begins with a copy of the
 * old one's pages (xlog.c, XLogInitNewTimeline).
 *
 * @param position   from the name; a partial segment has the same header as a whole one
 * @param beginning  of the segment, LONG_HEADER_BYTES or more unless there are no more
 * @throws IntegrityError  what is wrong, in the detail
 */
export function checkSegmentHeader(name: string, position: SegmentPosition, beginning: Uint8Array): WalPageHeader {
  const refuse = (detail: string): never => {
    throw notASegment(name, detail);
  };
  if (beginning.byteLength < LONG_HEADER_BYTES) {
    return refuse(`It has ${beginning.byteLength} bytes, fewer than the header of its first page.`);
  }

  const view = new DataView(beginning.buffer, beginning.byteOffset, beginning.byteLength);
  const magic = view.getUint16(0, true);
  if (!isMagic(magic))
    return refuse(`Its first page has the magic number ${hex(magic)}, which no release of PostgreSQL wrote.`);
  if ((view.getUint16(2, true) & XLP_LONG_HEADER) === 0) return refuse("Its first page has no long header.");

  const timeline = view.getUint32(4, true);
  const pageAddress = asLsn(view.getBigUint64(8, true));
  const systemIdentifier = view.getBigUint64(24, true);
  const segmentSize = view.getUint32(32, true);

  if (!isSegmentSize(segmentSize)) return refuse(`Its header states a segment size of ${segmentSize} bytes.`);
  if (pageAddress !== segmentStart(position, segmentSize)) {
    const expected = formatLsn(segmentStart(position, segmentSize));
    return refuse(`Its first page is at ${formatLsn(pageAddress)}, the name stands for ${expected}.`);
  }
  if (timeline > position.timeline) {
    return refuse(`Its first page is of timeline ${timeline}, the name of timeline ${position.timeline}.`);
  }
  return { magic, timeline, pageAddress, systemIdentifier, segmentSize };
}

/** @throws IntegrityError  the segment has not the size that its header states */
export function checkSegmentSize(name: string, sizeBytes: number, { segmentSize }: WalPageHeader): void {
  if (sizeBytes !== segmentSize)
    throw notASegment(name, `It has ${sizeBytes} bytes, its header states ${segmentSize}.`);
}

const notASegment = (name: string, detail: string) =>
  new IntegrityError(`"${name}" is not a valid WAL segment`, { detail });

const hex = (n: number) => `0x${n.toString(16).toUpperCase().padStart(4, "0")}`;
