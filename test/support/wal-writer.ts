/**
 * Writes records into segments as a server does: behind one another, over the ends of pages and segments.
 * Source: CopyXLogRecordToWAL() and AdvanceXLInsertBuffer() in xlog.c. The checksum of records is left out.
 */
import { type SegmentSize, segmentAt } from "../../src/postgres/wal-segment.ts";
import { MiB, SYSTEM_IDENTIFIER } from "./wal-content.ts";

export interface WrittenRecord {
  readonly xid: number;
  readonly resourceManager: number;
  readonly info: number;
  /** What follows the header. */
  readonly data: Uint8Array;
}

const PAGE = 8192;
const HEADER = 24;

/** @param first  number of the segment in which they begin; segments have 1 MiB */
export function writeRecords(
  records: readonly WrittenRecord[],
  first: bigint,
): { readonly segments: ReadonlyMap<string, Uint8Array>; readonly lsns: readonly bigint[] } {
  const segments: Buffer[] = [];
  const lsns: bigint[] = [];
  const base = first * BigInt(MiB);
  let at = 0;
  /** Writes the header of a page where one begins. @param left  of the record that goes over its beginning */
  const beginPage = (left: number) => {
    if (at % PAGE !== 0) return;
    const isLong = at % MiB === 0;
    if (isLong) segments.push(Buffer.alloc(MiB));
    const page = (segments.at(-1) as Buffer).subarray(at % MiB);
    page.writeUInt16LE(0xd118, 0);
    page.writeUInt16LE((isLong ? 2 : 0) | (left > 0 ? 1 : 0), 2);
    page.writeUInt32LE(1, 4);
    page.writeBigUInt64LE(base + BigInt(at), 8);
    page.writeUInt32LE(left, 16);
    if (isLong) {
      page.writeBigUInt64LE(SYSTEM_IDENTIFIER, 24);
      page.writeUInt32LE(MiB, 32);
      page.writeUInt32LE(PAGE, 36);
    }
    at += isLong ? 40 : 24;
  };

  let previous = 0n;
  for (const { xid, resourceManager, info, data } of records) {
    at = Math.ceil(at / 8) * 8;
    beginPage(0);
    const record = Buffer.concat([Buffer.alloc(HEADER), data]);
    record.writeUInt32LE(record.byteLength, 0);
    record.writeUInt32LE(xid, 4);
    record.writeBigUInt64LE(previous, 8);
    record.writeUInt8(info, 16);
    record.writeUInt8(resourceManager, 17);
    previous = base + BigInt(at);
    lsns.push(previous);
    for (let written = 0; written < record.byteLength; ) {
      beginPage(record.byteLength - written);
      const room = Math.min(PAGE - (at % PAGE), record.byteLength - written);
      record.copy(segments.at(-1) as Buffer, at % MiB, written, written + room);
      written += room;
      at += room;
    }
  }
  const name = (n: number) => segmentAt(1, first + BigInt(n), MiB as SegmentSize).name;
  return { segments: new Map(segments.map((content, n) => [name(n), content])), lsns };
}
