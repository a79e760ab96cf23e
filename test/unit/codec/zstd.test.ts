import { expect, test } from "bun:test";
import { builtInZstd, openZstd } from "../../../src/codec/zstd.ts";
import { IntegrityError } from "../../../src/errors.ts";

const text = Buffer.from(Array.from({ length: 30_000 }, (_, i) => `row ${(i * i) % 977}`).join("\n"));

test("openZstd() compresses more at a higher level", async () => {
  const [fast, best] = await Promise.all([1, 19].map(async (level) => (await openZstd(level)).compressFrame(text)));
  expect(best?.byteLength).toBeLessThan(fast?.byteLength ?? 0);
});

test("builtInZstd() and openZstd() read what the other writes, with its checksum", async () => {
  const engines = [builtInZstd(3), await openZstd(3)];
  for (const [n, { compressFrame }] of engines.entries()) {
    const frame = await compressFrame(text);
    for (const { decompressFrame } of engines) {
      expect(text.equals(await decompressFrame(frame, text.byteLength))).toBe(true);
      const flipped = frame.with(-1, (frame.at(-1) ?? 0) ^ 1);
      await expect(decompressFrame(flipped, text.byteLength), `engine ${n}`).rejects.toThrow(IntegrityError);
    }
  }
});

test("decompressFrame() refuses a frame that holds another size than it should", async () => {
  const zstd = await openZstd(3);
  const frame = await zstd.compressFrame(text);
  expect(await zstd.decompressFrame(frame, text.byteLength)).toHaveLength(text.byteLength);
  await expect(zstd.decompressFrame(frame, text.byteLength - 1)).rejects.toThrow(IntegrityError);
  await expect(zstd.decompressFrame(frame.subarray(0, -1), text.byteLength)).rejects.toThrow(IntegrityError);
});
