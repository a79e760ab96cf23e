/** zstd frames of any size and form, decompressed as a stream by node:zlib. */
import { createZstdDecompress } from "node:zlib";
import { IntegrityError, reasonOf } from "../errors.ts";
import { drainedOrClosed } from "./drained.ts";

/**
 * Verifies their checksums, but not that the last one is complete.
 *
 * @throws IntegrityError  damaged
 */
export async function* inflateFrames(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array> {
  const decompressor = createZstdDecompress();
  const feeding = feed(source, decompressor);
  // A failure of the source is thrown below, after what the decompressor still had.
  feeding.catch((error: unknown) => decompressor.destroy(error instanceof Error ? error : new Error(String(error))));
  try {
    for await (const content of decompressor) yield content as Uint8Array;
  } catch (cause) {
    await feeding;
    throw new IntegrityError("a zstd frame is damaged", { detail: `${reasonOf(cause)}.`, cause });
  } finally {
    decompressor.destroy();
  }
  await feeding;
}

async function feed(
  source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  decompressor: ReturnType<typeof createZstdDecompress>,
): Promise<void> {
  for await (const piece of source) {
    // What is destroyed neither drains nor closes once more: waiting for it would never end.
    if (decompressor.destroyed) return;
    if (!decompressor.write(piece)) await drainedOrClosed(decompressor);
  }
  decompressor.end();
}
