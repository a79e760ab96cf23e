/**
 * The outside of zstd frames: where one ends, what it says of its content, and the checksum that zstd libraries verify.
 * Nothing here decompresses. Source: RFC 8878, sections 3.1.1 (frames) and 3.1.2 (skippable frames).
 */
import { IntegrityError } from "../errors.ts";

const MAGIC = 0xfd2fb528;
const CHECKSUM_FLAG = 0x04;
const FOUR_BYTE_SIZE_FLAG = 0x80;
const CHECKSUM_BYTES = 4;

/**
 * Adds the content's size and checksum to a frame that has neither, so that every reader notices a flipped bit and
 * knows how much to expect.
 *
 * @param frame    one frame of `content`, at most 4 GiB − 1 of it
 * @throws RangeError  the frame has a form that the compressors we use never write
 */
export function sealFrame(frame: Uint8Array, content: Uint8Array): Uint8Array {
  const header = readFrameHeader(frame);
  if (header === undefined || header.kind !== "frame" || header.hasChecksum)
    throw new RangeError("not an unsealed zstd frame");

  const addsSize = header.contentBytes === undefined;
  const sealed = new Uint8Array(frame.byteLength + CHECKSUM_BYTES + (addsSize ? 4 : 0));
  const view = new DataView(sealed.buffer);
  sealed.set(frame.subarray(0, header.headerBytes));
  sealed[4] = (frame[4] ?? 0) | CHECKSUM_FLAG | (addsSize ? FOUR_BYTE_SIZE_FLAG : 0);
  // The size is the header's last field, so it goes where the header of a frame without one ends.
  if (addsSize) view.setUint32(header.headerBytes, content.byteLength, true);
  sealed.set(frame.subarray(header.headerBytes), header.headerBytes + (addsSize ? 4 : 0));
  view.setUint32(sealed.byteLength - CHECKSUM_BYTES, checksumOf(content), true);
  return sealed;
}

/** The low half of XXH64, little endian in the frame. */
export const checksumOf = (content: Uint8Array) => Number(Bun.hash.xxHash64(content) & 0xffff_ffffn);

export interface FrameHeader {
  readonly kind: "frame" | "skippable";
  readonly headerBytes: number;
  /** As the header states it; undefined when it does not. Of a skippable frame: the bytes to skip. */
  readonly contentBytes: number | undefined;
  readonly hasChecksum: boolean;
}

/** Longest header: magic, descriptor, window, dictionary, size. */
const MAX_HEADER_BYTES = 18;

/**
 * @param bytes  from the frame's first byte on; at most MAX_HEADER_BYTES are looked at
 * @returns undefined when more bytes are needed to tell
 * @throws IntegrityError  this is no zstd frame
 */
function readFrameHeader(bytes: Uint8Array): FrameHeader | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.byteLength < 5) return undefined;
  const magic = view.getUint32(0, true);
  if ((magic & 0xfffffff0) >>> 0 === SKIPPABLE_MAGIC) {
    if (bytes.byteLength < 8) return undefined;
    return { kind: "skippable", headerBytes: 8, contentBytes: view.getUint32(4, true), hasChecksum: false };
  }
  if (magic !== MAGIC) throw new IntegrityError("the content is not compressed with zstd, or is damaged");

  const descriptor = view.getUint8(4);
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const sizeFlag = descriptor >> 6;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  const sizeBytes = sizeFlag === 0 ? (isSingleSegment ? 1 : 0) : 1 << sizeFlag;
  const sizeAt = 5 + (isSingleSegment ? 0 : 1) + dictionaryBytes;
  if (bytes.byteLength < sizeAt + sizeBytes) return undefined;
  return {
    kind: "frame",
    headerBytes: sizeAt + sizeBytes,
    contentBytes: readSize(view, sizeAt, sizeBytes),
    hasChecksum: (descriptor & CHECKSUM_FLAG) !== 0,
  };
}

function readSize(view: DataView, at: number, bytes: number): number | undefined {
  if (bytes === 0) return undefined;
  if (bytes === 1) return view.getUint8(at);
  if (bytes === 2) return view.getUint16(at, true) + 256;
  if (bytes === 4) return view.getUint32(at, true);
  return Number(view.getBigUint64(at, true));
}

export interface FrameEnd {
  readonly header: FrameHeader;
  /** The offset after the frame's last byte. */
  readonly endAt: number;
}

/**
 * Follows frames through a stream of bytes that come in any cut, by their headers alone; keeps a few bytes at most.
 *
 * Decompressors return half of a truncated object without an error, so completeness is told by this class.
 */
export class FrameWalker {
  /** Bytes of a frame's or block's header that came so far. */
  readonly #header = new Uint8Array(MAX_HEADER_BYTES);
  #headerLength = 0;
  /** The frame that is being walked; undefined before its header is whole. */
  #frame: FrameHeader | undefined;
  /** Bytes to pass over before the next header, or before the end of the frame. */
  #skip = 0;
  #isLastBlock = false;

  /** No frame is under way: where a complete stream ends. */
  get isBetweenFrames(): boolean {
    return this.#frame === undefined && this.#headerLength === 0;
  }

  /**
   * @returns the frames that end in this piece, in order
   * @throws IntegrityError  the bytes are not zstd frames
   */
  walk(piece: Uint8Array): readonly FrameEnd[] {
    const ends: FrameEnd[] = [];
    let at = 0;
    for (;;) {
      const skipped = Math.min(this.#skip, piece.byteLength - at);
      this.#skip -= skipped;
      at += skipped;
      if (this.#skip > 0) return ends;

      if (this.#frame !== undefined && this.#isLastBlock) {
        ends.push({ header: this.#frame, endAt: at });
        this.#frame = undefined;
        this.#isLastBlock = false;
        continue;
      }
      if (at === piece.byteLength) return ends;
      this.#header[this.#headerLength++] = piece[at++] ?? 0;
      if (this.#frame === undefined) this.#beginFrame();
      else if (this.#headerLength === BLOCK_HEADER_BYTES) this.#beginBlock(this.#frame);
    }
  }

  #beginFrame(): void {
    this.#frame = readFrameHeader(this.#header.subarray(0, this.#headerLength));
    if (this.#frame === undefined) return;
    this.#headerLength = 0;
    if (this.#frame.kind === "skippable") {
      this.#skip = this.#frame.contentBytes ?? 0;
      this.#isLastBlock = true;
    }
  }

  #beginBlock(frame: FrameHeader): void {
    const [low = 0, middle = 0, high = 0] = this.#header;
    const block = low | (middle << 8) | (high << 16);
    const type = (block >> 1) & 3;
    if (type === RESERVED_BLOCK) {
      throw new IntegrityError("a zstd frame is damaged", { detail: "It has a block of the reserved type." });
    }
    this.#headerLength = 0;
    this.#isLastBlock = (block & 1) === 1;
    this.#skip = type === RUN_LENGTH_BLOCK ? 1 : block >> 3;
    if (this.#isLastBlock && frame.hasChecksum) this.#skip += CHECKSUM_BYTES;
  }
}

const SKIPPABLE_MAGIC = 0x184d2a50;
const BLOCK_HEADER_BYTES = 3;
const RUN_LENGTH_BLOCK = 1;
const RESERVED_BLOCK = 3;
