/**
 * Content ⇄ the bytes of an object: independent zstd frames of 2 MiB of content, one after the other.
 *
 * Any zstd reader takes the object as it is. Memory: an encoder or a decoding stream holds at most `framesInFlight` frames
 * and their content.
 */
import { IntegrityError } from "../errors.ts";
import type { Zstd } from "./zstd.ts";
import { type FrameHeader, FrameWalker } from "./zstd-frames.ts";

const MiB = 2 ** 20;

export const FRAME_CONTENT_BYTES = 2 * MiB;

/** Frames of up to this much content are decompressed side by side; larger ones, from other tools, as a stream. */
const MAX_PARALLEL_CONTENT_BYTES = 8 * MiB;

/** Frames longer than this are not held: a stream reads them as they come. */
const MAX_HELD_FRAME_BYTES = 16 * MiB;

/** Of a content; no content has one too, so that an empty object is never a complete one. */
export const frameCount = (contentBytes: number) => Math.max(1, Math.ceil(contentBytes / FRAME_CONTENT_BYTES));

/** A whole content in memory → the object's bytes. */
export async function encodeContent(content: Uint8Array, zstd: Zstd): Promise<Uint8Array> {
  const count = frameCount(content.byteLength);
  const slices = Array.from({ length: count }, (_, n) =>
    content.subarray(n * FRAME_CONTENT_BYTES, (n + 1) * FRAME_CONTENT_BYTES),
  );
  return Buffer.concat(await Promise.all(slices.map((slice) => zstd.compressFrame(slice))));
}

/**
 * An object's bytes → the whole content.
 *
 * @param maxBytes  more content than this is refused: the archive may be hostile
 * @throws IntegrityError  damaged, cut off, or too large
 */
export async function decodeContent(body: Uint8Array, zstd: Zstd, maxBytes: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  let total = 0;
  for await (const piece of decodeStream([body], zstd, { framesInFlight: 8, maxBytes })) {
    pieces.push(piece);
    total += piece.byteLength;
  }
  return pieces.length === 1 && pieces[0] ? pieces[0] : Buffer.concat(pieces, total);
}

export interface EncodedSize {
  readonly contentBytes: number;
  readonly storedBytes: number;
}

/** Cuts what it is given into frames and emits them in order, compressing several at once. */
export class ContentEncoder {
  readonly #zstd: Zstd;
  readonly #emit: (frame: Uint8Array) => Promise<void>;
  readonly #framesInFlight: number;
  readonly #compressing: { readonly frame: Promise<Uint8Array>; readonly buffer: Uint8Array }[] = [];
  /** Buffers whose content is compressed: new ones cost more than filling them. */
  readonly #spare: Uint8Array[] = [];
  #buffer: Uint8Array = new Uint8Array(FRAME_CONTENT_BYTES);
  #filled = 0;
  #contentBytes = 0;
  #storedBytes = 0;

  /** @param emit  takes the frames in order; the next one waits until it resolves */
  constructor(zstd: Zstd, emit: (frame: Uint8Array) => Promise<void>, framesInFlight: number) {
    this.#zstd = zstd;
    this.#emit = emit;
    this.#framesInFlight = framesInFlight;
  }

  /** Copies the bytes; the caller may use them again. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.byteLength; ) {
      const taken = Math.min(bytes.byteLength - at, FRAME_CONTENT_BYTES - this.#filled);
      this.#buffer.set(bytes.subarray(at, at + taken), this.#filled);
      this.#filled += taken;
      at += taken;
      if (this.#filled === FRAME_CONTENT_BYTES) await this.#startFrame();
    }
  }

  async end(): Promise<EncodedSize> {
    if (this.#filled > 0 || this.#contentBytes === 0) await this.#startFrame();
    while (this.#compressing.length > 0) await this.#emitOldest();
    return { contentBytes: this.#contentBytes, storedBytes: this.#storedBytes };
  }

  async #startFrame(): Promise<void> {
    const buffer = this.#buffer;
    const frame = this.#zstd.compressFrame(buffer.subarray(0, this.#filled));
    // Awaited in #emitOldest(); until then a failure must not count as unhandled.
    frame.catch(() => {});
    this.#compressing.push({ frame, buffer });
    this.#contentBytes += this.#filled;
    this.#filled = 0;
    if (this.#compressing.length >= this.#framesInFlight) await this.#emitOldest();
    this.#buffer = this.#spare.pop() ?? new Uint8Array(FRAME_CONTENT_BYTES);
  }

  async #emitOldest(): Promise<void> {
    const oldest = this.#compressing.shift();
    if (oldest === undefined) return;
    const frame = await oldest.frame;
    this.#spare.push(oldest.buffer);
    this.#storedBytes += frame.byteLength;
    await this.#emit(frame);
  }
}

export interface DecodeOptions {
  readonly framesInFlight: number;
  readonly maxBytes?: number;
}

/**
 * Gives the memory of a piece back at once. The garbage collector does not hurry, and hundreds of megabytes would wait for it. Nothing of the piece may be in use any more. Pieces that share their memory are passed over.
 */
export function releaseContent({ buffer, byteLength }: Uint8Array): void {
  if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength) buffer.transfer(0);
}

/**
 * An object's bytes, as they come → its content, in order.
 *
 * @throws IntegrityError  damaged, cut off, or more than `maxBytes`
 */
export async function* decodeStream(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  zstd: Zstd,
  { framesInFlight, maxBytes = Number.POSITIVE_INFINITY }: DecodeOptions,
): AsyncGenerator<Uint8Array> {
  let total = 0;
  for await (const content of decodeFrames(source, zstd, framesInFlight)) {
    total += content.byteLength;
    if (total > maxBytes)
      throw new IntegrityError("the content is too large", {
        detail: `It has more than the ${maxBytes} bytes that are possible here.`,
      });
    yield content;
  }
}

async function* decodeFrames(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  zstd: Zstd,
  framesInFlight: number,
): AsyncGenerator<Uint8Array> {
  const walker = new FrameWalker();
  const decoding: Promise<Uint8Array>[] = [];
  const decode = (frame: Uint8Array, contentBytes: number) => {
    const content = zstd.decompressFrame(frame, contentBytes);
    content.catch(() => {});
    decoding.push(content);
  };
  let isEmpty = true;
  let held: Uint8Array[] = [];
  let heldBytes = 0;

  const pieces = iteratorOf(source);
  try {
    for (let next = await pieces.next(); !next.done; next = await pieces.next()) {
      const piece = next.value;
      let begin = 0;
      isEmpty &&= piece.byteLength === 0;
      for (const { header, endAt } of walker.walk(piece)) {
        const frame = joined(held, piece.subarray(begin, endAt));
        begin = endAt;
        [held, heldBytes] = [[], 0];
        if (header.kind === "skippable") continue;
        if (isParallel(header)) {
          decode(frame, header.contentBytes);
        } else {
          for (const content of decoding.splice(0)) yield await content;
          yield* inflate([frame]);
        }
        while (decoding.length >= framesInFlight) yield await (decoding.shift() as Promise<Uint8Array>);
      }

      if (begin < piece.byteLength) {
        held.push(piece.subarray(begin));
        heldBytes += piece.byteLength - begin;
      }
      if (heldBytes > MAX_HELD_FRAME_BYTES) {
        for (const content of decoding.splice(0)) yield await content;
        yield* inflate(observed(held, pieces, walker));
        [held, heldBytes] = [[], 0];
      }
    }
  } finally {
    await pieces.return?.();
  }
  if (isEmpty) throw new IntegrityError("the object is empty", { detail: "Even no content is a zstd frame." });
  if (!walker.isBetweenFrames)
    throw new IntegrityError("the object is cut off", { detail: "Its last zstd frame is not complete." });
  for (const content of decoding) yield await content;
}

const isParallel = (header: FrameHeader): header is FrameHeader & { readonly contentBytes: number } =>
  header.contentBytes !== undefined && header.contentBytes <= MAX_PARALLEL_CONTENT_BYTES;

/** The rest of an object, from a frame too long to hold: what is held, then what still comes, watched by the walker. */
async function* observed(
  held: readonly Uint8Array[],
  rest: AsyncIterator<Uint8Array>,
  walker: FrameWalker,
): AsyncGenerator<Uint8Array> {
  yield* held;
  for (let next = await rest.next(); !next.done; next = await rest.next()) {
    walker.walk(next.value);
    yield next.value;
  }
}

/** node:zlib takes 3 ms and more to load, and frames of this form only other tools write. */
async function* inflate(source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  const { inflateFrames } = await import("./inflate.ts");
  yield* inflateFrames(source);
}

function iteratorOf(source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): AsyncIterator<Uint8Array> {
  if (Symbol.asyncIterator in source) return source[Symbol.asyncIterator]();
  const pieces = source[Symbol.iterator]();
  return {
    next: async () => pieces.next(),
    return: async () => pieces.return?.() ?? { done: true, value: undefined },
  };
}

function joined(held: readonly Uint8Array[], last: Uint8Array): Uint8Array {
  return held.length === 0 ? last : Buffer.concat([...held, last]);
}
