import { expect, test } from "bun:test";
import { loadZstdAddon } from "../../../src/codec/zstd-addon.ts";

/** Text that a better level packs better: words in a fixed but patternless order. */
const content = Buffer.from(
  Array.from({ length: 40_000 }, (_, i) => `word${(Math.imul(i, 2_654_435_761) >>> 7) % 5_000}`).join(" "),
);

test("loadZstdAddon() compresses at the level that it is given, which the package's own index.js does not", async () => {
  const { compress } = await loadZstdAddon();
  const [fast, usual, best] = await Promise.all([1, 3, 19].map((level) => compress(content, level)));
  expect(best?.length).toBeLessThan(usual?.length ?? 0);
  expect(fast?.length).not.toBe(usual?.length);
});

test("loadZstdAddon() gives back what it compressed, for views into larger buffers too", async () => {
  const { compress, decompress } = await loadZstdAddon();
  const view = new Uint8Array(content.buffer, content.byteOffset + 1_000, 100_000);
  expect((await decompress(await compress(view, 3))).equals(view)).toBe(true);
});

test("loadZstdAddon() decompresses frames that stand one behind the other", async () => {
  const { compress, decompress } = await loadZstdAddon();
  const frames = await Promise.all(
    [content.subarray(0, 1_000), content.subarray(1_000)].map((part) => compress(part, 3)),
  );
  expect((await decompress(Buffer.concat(frames))).equals(content)).toBe(true);
});

test("loadZstdAddon() rejects what is not zstd", async () => {
  const { decompress } = await loadZstdAddon();
  await expect(decompress(Buffer.from("not zstd at all"))).rejects.toThrow();
});
