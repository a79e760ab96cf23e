/**
 * The records in a WAL segment: where each begins, which transactions end in it and when, and restore points.
 *
 * Only as much as is needed to say how far an archive goes. Records lie behind one another, go over the ends of pages and of
 * segments, and begin at multiples of eight. Source: XLogRecord in xlogrecord.h, the page headers in xlog_internal.h,
 * xl_xact_commit in xact.h, xl_restore_point in xlog_internal.h; the same in majors 12 to 18.
 */
import { asLsn, type Lsn } from "./lsn.ts";
import type { Microseconds } from "./recovery-target.ts";
import { majorOfMagic } from "./wal-page-header.ts";

export interface WalRecord {
  /** Of its first byte. */
  readonly lsn: Lsn;
  /** 0 when it belongs to no transaction. */
  readonly xid: number;
  readonly resourceManager: number;
  readonly info: number;
  /** The first FIRST_BYTES of it, header included, where transactions and restore points are told; else perhaps nothing. */
  readonly bytes: Uint8Array;
}

/** Enough for the header, a commit's time and a restore point's name. */
const FIRST_BYTES = 128;
const RECORD_HEADER = 24;
const SHORT_PAGE_HEADER = 24;
const LONG_PAGE_HEADER = 40;

const IS_CONTINUATION = 0x0001;
const IS_LONG = 0x0002;

const RM_XLOG = 0;
const RM_XACT = 1;
const XLOG_SWITCH = 0x40;
const XLOG_RESTORE_POINT = 0x70;

/** Whether the layout of this segment's records is one that is known. */
export function hasKnownRecords(segment: Uint8Array): boolean {
  const view = new DataView(segment.buffer, segment.byteOffset);
  return majorOfMagic(view.getUint16(0, true)) !== undefined && PAGE_SIZES.includes(view.getUint32(36, true));
}

/** What a server can be built with (configure, --with-wal-blocksize). */
const PAGE_SIZES = [1, 2, 4, 8, 16, 32, 64].map((kibibytes) => kibibytes * 1024);

/**
 * The end of a record that began in the segment before; for `walRecords()` of that one.
 *
 * @returns undefined when the segment begins with a record of its own
 */
export function continuationIn(segment: Uint8Array): Uint8Array | undefined {
  const view = new DataView(segment.buffer, segment.byteOffset);
  if ((view.getUint16(2, true) & IS_CONTINUATION) === 0) return undefined;
  const end = LONG_PAGE_HEADER + Math.min(view.getUint32(16, true), FIRST_BYTES);
  return segment.slice(LONG_PAGE_HEADER, end);
}

/**
 * Every record that begins in the segment, in order. It ends where WAL does: at zeros, at a page that does not follow, or at a
 * record that does not name the one before it.
 *
 * @param segment       a whole one, with a header that has been checked
 * @param continuation  what `continuationIn()` found in the segment behind it; a last record that is not complete without is
 *                      left out, as recovery leaves it
 */
export function* walRecords(segment: Uint8Array, continuation?: Uint8Array): Generator<WalRecord> {
  const pages = new Pages(segment);
  let at = pages.firstRecord();
  let previous: bigint | undefined;
  while (at !== undefined) {
    const start = pages.alignedRecordStart(at);
    if (start === undefined) return;
    const length = pages.u32(start);
    if (length < RECORD_HEADER) return;

    const end = pages.advance(start, length);
    if (end.stopped === "not continued") {
      // A crash left the record half written, and the server went on behind it (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
      at = end.at;
      previous = undefined;
      continue;
    }
    if (end.stopped === "segment" && continuation === undefined) return;

    const record = recordAt(pages, start, length, continuation);
    if (record === undefined) return;
    if (previous !== undefined && record.previous !== previous) return;
    previous = record.lsn;
    yield record;
    if (record.resourceManager === RM_XLOG && (record.info & 0xf0) === XLOG_SWITCH) return;
    at = end.stopped === undefined ? end.at : undefined;
  }
}

function recordAt(pages: Pages, start: number, length: number, continuation: Uint8Array = NOTHING) {
  const lsn = asLsn(pages.address + BigInt(start));
  // A segment has hundreds of thousands of records, and most are read where they lie.
  if (pages.isOnOnePage(start, RECORD_HEADER)) {
    const resourceManager = pages.view.getUint8(start + 17);
    const isWanted = resourceManager === RM_XLOG || resourceManager === RM_XACT;
    const bytes = isWanted ? pages.gather(start, Math.min(length, FIRST_BYTES), continuation) : NOTHING;
    return { lsn, ...headerAt(pages.view, start), resourceManager, bytes };
  }
  const bytes = pages.gather(start, Math.min(length, FIRST_BYTES), continuation);
  if (bytes.byteLength < RECORD_HEADER) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return { lsn, ...headerAt(view, 0), resourceManager: view.getUint8(17), bytes };
}

const NOTHING = new Uint8Array();

const headerAt = (view: DataView, at: number) => ({
  xid: view.getUint32(at + 4, true),
  previous: view.getBigUint64(at + 8, true),
  info: view.getUint8(at + 16),
});

/** Offsets in the segment, over the headers of its pages. */
class Pages {
  readonly address: bigint;
  readonly view: DataView;
  readonly #content: Uint8Array;
  readonly #pageSize: number;

  constructor(content: Uint8Array) {
    this.#content = content;
    this.view = new DataView(content.buffer, content.byteOffset, content.byteLength);
    this.address = this.view.getBigUint64(8, true);
    this.#pageSize = this.view.getUint32(36, true);
  }

  isOnOnePage(from: number, length: number): boolean {
    return (from % this.#pageSize) + length <= this.#pageSize;
  }

  u32(at: number): number {
    return this.view.getUint32(at, true);
  }

  /** Behind the end of a record that began in the segment before; undefined when that fills this one. */
  firstRecord(): number | undefined {
    const flags = this.view.getUint16(2, true);
    if ((flags & IS_CONTINUATION) === 0) return LONG_PAGE_HEADER;
    const end = this.advance(LONG_PAGE_HEADER, this.u32(16));
    return end.stopped === "segment" ? undefined : end.at;
  }

  /** The next multiple of eight, behind the page's header where it begins one; undefined where WAL ends. */
  alignedRecordStart(at: number): number | undefined {
    const aligned = Math.ceil(at / 8) * 8;
    if (aligned >= this.#content.byteLength) return undefined;
    if (aligned % this.#pageSize !== 0) return aligned;
    return this.#follows(aligned) ? aligned + this.#headerSize(aligned) : undefined;
  }

  /** The offset `length` bytes of records further on. */
  advance(from: number, length: number): { readonly at: number; readonly stopped?: "segment" | "not continued" } {
    let [at, left] = [from, length];
    for (;;) {
      const pageEnd = (Math.floor(at / this.#pageSize) + 1) * this.#pageSize;
      if (left <= pageEnd - at) return { at: at + left };
      left -= pageEnd - at;
      if (pageEnd >= this.#content.byteLength) return { at: pageEnd, stopped: "segment" };
      if (!this.#follows(pageEnd) || (this.#flags(pageEnd) & IS_CONTINUATION) === 0)
        return { at: pageEnd, stopped: "not continued" };
      at = pageEnd + this.#headerSize(pageEnd);
    }
  }

  /** Bytes of a record, without the headers of pages between them. */
  gather(from: number, length: number, continuation: Uint8Array): Uint8Array {
    const pageEnd = (Math.floor(from / this.#pageSize) + 1) * this.#pageSize;
    if (length <= pageEnd - from) return this.#content.subarray(from, from + length);
    const head = this.#content.subarray(from, pageEnd);
    const next =
      pageEnd >= this.#content.byteLength ? continuation : this.#content.subarray(pageEnd + this.#headerSize(pageEnd));
    return Buffer.concat([head, next.subarray(0, length - head.byteLength)]);
  }

  #flags(page: number): number {
    return this.view.getUint16(page + 2, true);
  }

  #headerSize(page: number): number {
    return (this.#flags(page) & IS_LONG) === 0 ? SHORT_PAGE_HEADER : LONG_PAGE_HEADER;
  }

  #follows(page: number): boolean {
    return (
      this.view.getUint16(page, true) === this.view.getUint16(0, true) &&
      this.view.getBigUint64(page + 8, true) === this.address + BigInt(page)
    );
  }
}

export interface TransactionEnd {
  /** undefined: of a prepared transaction, whose number is elsewhere in the record */
  readonly xid: number | undefined;
  readonly at: Microseconds;
}

/** COMMIT, ABORT, COMMIT PREPARED, ABORT PREPARED: the records at which recovery looks for a time or a transaction. */
const ENDS: ReadonlyMap<number, "own" | "prepared"> = new Map([
  [0x00, "own"],
  [0x20, "own"],
  [0x30, "prepared"],
  [0x40, "prepared"],
]);

/** The transaction that the record ends, and when it was ended; undefined for any other record. */
export function transactionEndOf({ resourceManager, info, xid, bytes }: WalRecord): TransactionEnd | undefined {
  if (resourceManager !== RM_XACT) return undefined;
  const kind = ENDS.get(info & 0x70);
  const data = kind && mainDataOf(bytes);
  if (data === undefined || data.byteLength < 8) return undefined;
  return { xid: kind === "own" ? xid : undefined, at: timeAt(data) };
}

/** The name that pg_create_restore_point() was given; undefined for any other record. */
export function restorePointOf({ resourceManager, info, bytes }: WalRecord): string | undefined {
  if (resourceManager !== RM_XLOG || (info & 0xf0) !== XLOG_RESTORE_POINT) return undefined;
  const data = mainDataOf(bytes)?.subarray(8);
  return data && new TextDecoder().decode(data.subarray(0, data.indexOf(0) === -1 ? undefined : data.indexOf(0)));
}

/** 2000-01-01, where PostgreSQL's timestamps begin. */
const POSTGRES_EPOCH = 946_684_800_000_000n;

const timeAt = (data: Uint8Array) =>
  (new DataView(data.buffer, data.byteOffset).getBigInt64(0, true) + POSTGRES_EPOCH) as Microseconds;

const BLOCK_IDS = { dataShort: 0xff, dataLong: 0xfe, origin: 0xfd, topLevelXid: 0xfc };

/** As far as it is in the first bytes; undefined for records that have blocks, which none of ours have. */
function mainDataOf(bytes: Uint8Array): Uint8Array | undefined {
  for (let at = RECORD_HEADER; at < bytes.byteLength; ) {
    switch (bytes[at]) {
      case BLOCK_IDS.dataShort:
        return bytes.subarray(at + 2);
      case BLOCK_IDS.dataLong:
        return bytes.subarray(at + 5);
      case BLOCK_IDS.origin:
        at += 3;
        break;
      case BLOCK_IDS.topLevelXid:
        at += 5;
        break;
      default:
        return undefined;
    }
  }
  return undefined;
}
