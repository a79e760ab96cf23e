/**
 * The records in a WAL segment: where each begins, which transactions end in it and when, restore points, and new tablespaces.
 *
 * Only as much as is needed to say how far an archive goes. Records lie behind one another, go over the ends of pages and of
 * segments, and begin at multiples of eight. Source: XLogRecord in xlogrecord.h, the page headers in xlog_internal.h,
 * xl_xact_commit in xact.h, xl_restore_point in xlog_internal.h, xl_tblspc_create_rec in tablespace.h; the same in majors 12 to 18.
 */
import { asLsn, type Lsn } from "./lsn.ts";
import type { Microseconds } from "./recovery-target.ts";
import { BEGINNING_BYTES, LONG_HEADER_BYTES, majorOfMagic } from "./wal-page-header.ts";

export interface WalRecord {
  /** Of its first byte. */
  readonly lsn: Lsn;
  /** 0 when it belongs to no transaction. */
  readonly xid: number;
  readonly resourceManager: number;
  readonly info: number;
  /** The first FIRST_BYTES of it, header included, where transactions, restore points and tablespaces are told; else perhaps nothing. */
  readonly bytes: Uint8Array;
}

/** Enough for the header, a commit's time and a restore point's name. */
const FIRST_BYTES = BEGINNING_BYTES - LONG_HEADER_BYTES;
const RECORD_HEADER = 24;
const SHORT_PAGE_HEADER = 24;

const IS_CONTINUATION = 0x0001;
const IS_LONG = 0x0002;

const RM_XLOG = 0;
const RM_XACT = 1;
const RM_TBLSPC = 5;
const XLOG_TBLSPC_CREATE = 0x00;
const XLOG_SWITCH = 0x40;
const XLOG_RESTORE_POINT = 0x70;

/**
 * Whether the layout of this segment's records is one that is known.
 *
 * @param beginning  of a segment, BEGINNING_BYTES or more
 */
export function hasKnownRecords(beginning: Uint8Array): boolean {
  const view = viewOf(beginning);
  return majorOfMagic(view.getUint16(0, true)) !== undefined && PAGE_SIZES.includes(view.getUint32(36, true));
}

/** What a server can be built with (configure, --with-wal-blocksize). */
const PAGE_SIZES = [1, 2, 4, 8, 16, 32, 64].map((kibibytes) => kibibytes * 1024);

/**
 * The end of a record that began in the segment before; for `WalRecordReader.end()` of that one.
 *
 * @param beginning  of a segment, BEGINNING_BYTES or more
 * @returns undefined when the segment begins with a record of its own
 */
export function continuationIn(beginning: Uint8Array): Uint8Array | undefined {
  const view = viewOf(beginning);
  if ((view.getUint16(2, true) & IS_CONTINUATION) === 0) return undefined;
  const length = Math.min(view.getUint32(16, true), FIRST_BYTES);
  return copyOf(beginning.subarray(LONG_HEADER_BYTES, LONG_HEADER_BYTES + length));
}

/**
 * Every record that begins in a segment, in order, as the segment's bytes come. The records end where WAL does: at zeros, at a page
 * that does not follow, or at a record that does not name the one before it.
 */
export class WalRecordReader {
  readonly #take: (record: WalRecord) => void;
  readonly #magic: number;
  readonly #pageSize: number;
  /** A page whose end has not come yet. */
  readonly #held: Uint8Array;
  #heldBytes = 0;
  /** Of the page that comes next. */
  #address: bigint;
  /** The record that goes on there. */
  #unfinished: UnfinishedRecord | undefined;
  #previous: Lsn | undefined;
  #isOver = false;

  /** @param beginning  of a segment whose header has been checked and whose records are known, BEGINNING_BYTES or more */
  constructor(beginning: Uint8Array, take: (record: WalRecord) => void) {
    const view = viewOf(beginning);
    this.#take = take;
    this.#magic = view.getUint16(0, true);
    this.#address = view.getBigUint64(8, true);
    this.#pageSize = view.getUint32(36, true);
    this.#held = new Uint8Array(this.#pageSize);
    if ((view.getUint16(2, true) & IS_CONTINUATION) !== 0) this.#unfinished = { left: view.getUint32(16, true) };
  }

  /** The next bytes, from the first of the segment on. They may be used again afterwards. */
  read(piece: Uint8Array): void {
    let at = 0;
    if (this.#heldBytes > 0) {
      at = Math.min(piece.byteLength, this.#pageSize - this.#heldBytes);
      this.#hold(piece.subarray(0, at));
      if (this.#heldBytes < this.#pageSize) return;
      this.#readPage(this.#held);
      this.#heldBytes = 0;
    }
    for (; at + this.#pageSize <= piece.byteLength; at += this.#pageSize)
      this.#readPage(piece.subarray(at, at + this.#pageSize));
    this.#hold(piece.subarray(at));
  }

  /**
   * The segment has come to its end.
   *
   * @param continuation  what `continuationIn()` found in the segment behind it; a last record that is not complete without is left
   *                      out, as recovery leaves it
   */
  end(continuation: Uint8Array | undefined): void {
    const { lsn, length = 0, bytes = NOTHING } = this.#unfinished ?? {};
    if (this.#isOver || lsn === undefined || continuation === undefined) return;
    const whole = Buffer.concat([bytes, continuation]).subarray(0, Math.min(length, FIRST_BYTES));
    if (whole.byteLength >= RECORD_HEADER) this.#found(lsn, viewOf(whole), 0);
  }

  #hold(bytes: Uint8Array): void {
    this.#held.set(bytes, this.#heldBytes);
    this.#heldBytes += bytes.byteLength;
  }

  #readPage(page: Uint8Array): void {
    if (this.#isOver) return;
    const view = viewOf(page);
    const address = this.#address;
    this.#address += BigInt(this.#pageSize);
    if (view.getUint16(0, true) !== this.#magic || view.getBigUint64(8, true) !== address) {
      this.#isOver = true;
      return;
    }

    const flags = view.getUint16(2, true);
    let at = (flags & IS_LONG) === 0 ? SHORT_PAGE_HEADER : LONG_HEADER_BYTES;
    if ((flags & IS_CONTINUATION) !== 0) at = this.#goOn(page, at);
    else if (this.#unfinished !== undefined) {
      // A crash left the record half written, and the server went on behind it (XLP_FIRST_IS_OVERWRITE_CONTRECORD).
      this.#unfinished = undefined;
      this.#previous = undefined;
    }

    for (at = aligned(at); at < page.byteLength && !this.#isOver; at = aligned(at)) {
      const length = view.getUint32(at, true);
      if (length < RECORD_HEADER) {
        this.#isOver = true;
        return;
      }
      const lsn = asLsn(address + BigInt(at));
      if (length <= page.byteLength - at) this.#found(lsn, view, at);
      else {
        const left = length - (page.byteLength - at);
        this.#unfinished = { lsn, length, left, bytes: copyOf(page.subarray(at, at + FIRST_BYTES)) };
      }
      at += length;
    }
  }

  /** @returns where the record ends, or the page */
  #goOn(page: Uint8Array, at: number): number {
    const unfinished = this.#unfinished;
    if (unfinished === undefined) return at;
    const here = Math.min(unfinished.left, page.byteLength - at);
    const { lsn, length = 0, bytes = NOTHING } = unfinished;
    const missing = Math.max(0, Math.min(length, FIRST_BYTES) - bytes.byteLength);
    const known = missing === 0 ? bytes : Buffer.concat([bytes, page.subarray(at, at + Math.min(missing, here))]);
    this.#unfinished = { ...unfinished, left: unfinished.left - here, bytes: known };
    if (here === unfinished.left) {
      this.#unfinished = undefined;
      if (lsn !== undefined) this.#found(lsn, viewOf(known), 0);
    }
    return at + here;
  }

  /** @param view  has the record's first bytes at `at`, FIRST_BYTES or all that it has */
  #found(lsn: Lsn, view: DataView, at: number): void {
    if (this.#previous !== undefined && view.getBigUint64(at + 8, true) !== this.#previous) {
      this.#isOver = true;
      return;
    }
    this.#previous = lsn;
    const [info, resourceManager] = [view.getUint8(at + 16), view.getUint8(at + 17)];
    // A segment has hundreds of thousands of records, and of most nothing more is asked.
    const isWanted = resourceManager === RM_XLOG || resourceManager === RM_XACT || resourceManager === RM_TBLSPC;
    const bytes = isWanted ? firstBytes(view, at) : NOTHING;
    this.#take({ lsn, xid: view.getUint32(at + 4, true), resourceManager, info, bytes });
    if (resourceManager === RM_XLOG && (info & 0xf0) === XLOG_SWITCH) this.#isOver = true;
  }
}

function firstBytes(view: DataView, at: number): Uint8Array {
  const length = Math.min(view.getUint32(at, true), FIRST_BYTES, view.byteLength - at);
  return copyOf(new Uint8Array(view.buffer, view.byteOffset + at, length));
}

interface UnfinishedRecord {
  /** undefined: it began in a segment before. */
  readonly lsn?: Lsn;
  readonly length?: number;
  /** In the pages that follow. */
  readonly left: number;
  /** Its first, FIRST_BYTES or as many as have come. */
  readonly bytes?: Uint8Array;
}

const NOTHING = new Uint8Array();

/** slice() of a Buffer is none. */
const copyOf = (bytes: Uint8Array) => new Uint8Array(bytes);

const viewOf = ({ buffer, byteOffset, byteLength }: Uint8Array) => new DataView(buffer, byteOffset, byteLength);

const aligned = (at: number) => Math.ceil(at / 8) * 8;

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
  return data && textIn(data);
}

/** Up to the zero byte that ends it, if that is there. */
const textIn = (bytes: Uint8Array) =>
  new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0) === -1 ? undefined : bytes.indexOf(0)));

/**
 * The tablespace that CREATE TABLESPACE made; undefined for any other record.
 *
 * @returns its location, the first hundred bytes of it at most; empty when it is in place (allow_in_place_tablespaces)
 */
export function createdTablespaceOf(
  record: WalRecord,
): { readonly oid: number; readonly location: string } | undefined {
  const { resourceManager, info, bytes } = record;
  if (resourceManager !== RM_TBLSPC || (info & 0xf0) !== XLOG_TBLSPC_CREATE) return undefined;
  const data = mainDataOf(bytes);
  if (data === undefined || data.byteLength < 4) return undefined;
  return { oid: viewOf(data).getUint32(0, true), location: textIn(data.subarray(4)) };
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
