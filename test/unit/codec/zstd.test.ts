import { expect, test } from "bun:test";
import { openZstd } from "../../../src/codec/zstd.ts";
import { IntegrityError } from "../../../src/errors.ts";

const text = Buffer.from(Array.from({ length: 30_000 }, (_, i) => `row ${(i * i) % 977}`).join("\n"));

test("openZstd() compresses more at a higher level", async () => {
  const [fast, best] = await Promise.all([1, 19].map(async (level) => (await openZstd(level)).compressFrame(text)));
  expect(best?.byteLength).toBeLessThan(fast?.byteLength ?? 0);
});

test("decompressFrame() refuses a frame that holds another size than it should", async () => {
  const zstd = await openZstd(3);
  const frame = await zstd.compressFrame(text);
  expect(await zstd.decompressFrame(frame, text.byteLength)).toHaveLength(text.byteLength);
  await expect(zstd.decompressFrame(frame, text.byteLength - 1)).rejects.toThrow(IntegrityError);
  await expect(zstd.decompressFrame(frame.subarray(0, -1), text.byteLength)).rejects.toThrow(IntegrityError);
});
