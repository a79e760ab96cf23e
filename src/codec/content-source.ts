/** A content that is read as it is compressed: the bytes of an object without the whole content in memory. */
import { FRAME_CONTENT_BYTES, frameCount } from "./content.ts";
import type { Zstd } from "./zstd.ts";

export interface ContentSource {
  readonly sizeBytes: number;
  /** Fills the buffer with what is at `position`. It is asked for as much as there is, and not more. */
  read(buffer: Uint8Array, position: number): void;
}

/** The same bytes as encodeContent()'s. @throws what the source throws */
export async function encodeSource(source: ContentSource, zstd: Zstd, buffers: FrameBuffers): Promise<Uint8Array> {
  return Buffer.concat(await Array.fromAsync(encodedFrames(source, zstd, buffers)));
}

/**
 * The same frame by frame, in order. While one is waited for, at most as many others are under way as there are buffers, read from
 * the source in order.
 *
 * @throws what the source throws
 */
export async function* encodedFrames(
  source: ContentSource,
  zstd: Zstd,
  buffers: FrameBuffers,
): AsyncGenerator<Uint8Array> {
  const frames: Promise<Uint8Array>[] = [];
  try {
    for (let n = 0; n < frameCount(source.sizeBytes); n++) {
      const buffer = await buffers.take();
      const frame = compressNext(source, n * FRAME_CONTENT_BYTES, buffer, zstd);
      // Awaited below; until then a failure must not count as unhandled.
      frame.catch(() => {});
      frames.push(frame);
      while (frames.length > buffers.count) yield await (frames.shift() as Promise<Uint8Array>);
    }
    for (let frame = frames.shift(); frame !== undefined; frame = frames.shift()) yield await frame;
  } finally {
    await Promise.allSettled(frames);
  }
}

async function compressNext(
  source: ContentSource,
  position: number,
  buffer: FrameBuffer,
  zstd: Zstd,
): Promise<Uint8Array> {
  using lent = buffer;
  const content = lent.bytes.subarray(0, Math.min(FRAME_CONTENT_BYTES, source.sizeBytes - position));
  source.read(content, position);
  return await zstd.compressFrame(content);
}

/** Disposing it gives it back. */
export interface FrameBuffer extends Disposable {
  readonly bytes: Uint8Array;
}

/**
 * Buffers for the content of one frame each, shared by all contents that are compressed at the same time: they bound how much is
 * read ahead, and fresh memory costs more than filling it.
 */
export class FrameBuffers {
  readonly count: number;
  readonly #spare: Uint8Array[] = [];
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];
  #unmade: number;

  constructor(count: number) {
    this.count = count;
    this.#unmade = count;
  }

  /** First come, first served. */
  async take(): Promise<FrameBuffer> {
    const bytes =
      this.#spare.pop() ?? this.#made() ?? (await new Promise<Uint8Array>((lend) => this.#waiting.push(lend)));
    return { bytes, [Symbol.dispose]: () => this.#takeBack(bytes) };
  }

  #made(): Uint8Array | undefined {
    if (this.#unmade === 0) return undefined;
    this.#unmade--;
    return new Uint8Array(FRAME_CONTENT_BYTES);
  }

  #takeBack(bytes: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next) next(bytes);
    else this.#spare.push(bytes);
  }
}
