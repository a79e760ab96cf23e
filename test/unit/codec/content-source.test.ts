import { describe, expect, test } from "bun:test";
import { encodeContent, FRAME_CONTENT_BYTES } from "../../../src/codec/content.ts";
import { encodeSource, FrameBuffers } from "../../../src/codec/content-source.ts";
import { builtInZstd, type Zstd } from "../../../src/codec/zstd.ts";
import { random } from "../../support/random.ts";
import { sourceOf } from "../../support/wal-content.ts";

const zstd = builtInZstd(3);
const noise = random(11).bytes(5 * 2 ** 20);

describe("encodeSource()", () => {
  test("gives the same bytes as encodeContent(), of several at once with few buffers", async () => {
    const buffers = new FrameBuffers(2);
    const sizes = [0, 1, FRAME_CONTENT_BYTES, FRAME_CONTENT_BYTES + 1, noise.byteLength];
    const bodies = await Promise.all(
      sizes.map((size) => encodeSource(sourceOf(noise.subarray(0, size)), zstd, buffers)),
    );
    for (const [n, size] of sizes.entries())
      expect(Buffer.compare(bodies[n] ?? noise, await encodeContent(noise.subarray(0, size), zstd))).toBe(0);
  });

  test("reads no more at once than there are buffers", async () => {
    let [compressing, most] = [0, 0];
    const counted: Zstd = {
      ...zstd,
      async compressFrame(content) {
        most = Math.max(most, ++compressing);
        const frame = await zstd.compressFrame(content);
        compressing--;
        return frame;
      },
    };
    const buffers = new FrameBuffers(3);
    await Promise.all([1, 2, 3].map(() => encodeSource(sourceOf(noise), counted, buffers)));
    expect(most).toBe(3);
  });

  test("passes on why a source cannot be read, and gives its buffers back", async () => {
    const buffers = new FrameBuffers(1);
    const source = sourceOf(noise);
    const broken = {
      sizeBytes: noise.byteLength,
      read: (buffer: Uint8Array, position: number) => {
        if (buffer.byteLength < FRAME_CONTENT_BYTES) throw new Error("it ended early");
        source.read(buffer, position);
      },
    };
    await expect(encodeSource(broken, zstd, buffers)).rejects.toThrow("it ended early");
    expect((await encodeSource(sourceOf(noise), zstd, buffers)).byteLength).toBeGreaterThan(noise.byteLength);
  });
});
