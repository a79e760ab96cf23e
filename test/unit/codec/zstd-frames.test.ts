import { describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { openZstd } from "../../../src/codec/zstd.ts";
import { loadZstdAddon } from "../../../src/codec/zstd-addon.ts";
import { checksumOf, FrameWalker, sealFrame } from "../../../src/codec/zstd-frames.ts";
import { IntegrityError } from "../../../src/errors.ts";
import { random } from "../../support/random.ts";

const { compress, decompress } = await loadZstdAddon();
const zstd = await openZstd(3);
const hasZstdTool = Bun.which("zstd") !== null;

/** Half of it packs well, half of it not at all, so that a frame has blocks of several types. */
const content = Buffer.concat([Buffer.from("wal ".repeat(60_000)), random(1).bytes(200_000), Buffer.alloc(300_000)]);
const CHECKSUM_FLAG = 4;

describe("sealFrame()", () => {
  test.each([
    ["by the addon", (bytes: Uint8Array) => compress(bytes, 3)],
    ["by the addon, best", (bytes: Uint8Array) => compress(bytes, 12)],
    ["by Bun", (bytes: Uint8Array) => Bun.zstdCompress(bytes)],
  ])("makes a frame %s that every reader takes", async (_, pack) => {
    for (const plain of [content, Buffer.from("x"), Buffer.alloc(0), Buffer.alloc(300, 7), Buffer.alloc(70_000, 7)]) {
      const sealed = sealFrame(await pack(plain), plain);
      expect((sealed[4] ?? 0) & CHECKSUM_FLAG).toBe(CHECKSUM_FLAG);
      expect((await decompress(sealed)).equals(plain)).toBe(true);
      expect((await Bun.zstdDecompress(sealed)).equals(plain)).toBe(true);
      expect((await zstd.decompressFrame(sealed, plain.byteLength)).byteLength).toBe(plain.byteLength);
      if (hasZstdTool) expect(execFileSync("zstd", ["-dcq"], { input: sealed }).equals(plain)).toBe(true);
      expect(new FrameWalker().walk(sealed)).toEqual([
        expect.objectContaining({
          endAt: sealed.byteLength,
          header: expect.objectContaining({ contentBytes: plain.byteLength, hasChecksum: true }),
        }),
      ]);
    }
  });

  test("adds the size where a compressor did not state it", async () => {
    // What a stream compressor writes when it does not know how much will come: a window, no size.
    const unsized = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58, 0x21, 0x00, 0x00, 0x61, 0x62, 0x63, 0x64]);
    const plain = Buffer.from("abcd");
    expect((await decompress(unsized)).equals(plain)).toBe(true);
    const sealed = sealFrame(unsized, plain);
    const [frame] = new FrameWalker().walk(sealed);
    expect(frame?.header.contentBytes).toBe(4);
    expect((await decompress(sealed)).equals(plain)).toBe(true);
  });

  test.each([
    ["is sealed already", async () => sealFrame(await compress(content, 3), content)],
    ["is cut off in its header", async () => (await compress(content, 3)).subarray(0, 5)],
    ["is a skippable one", async () => Buffer.from([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0])],
  ])("refuses a frame that %s, which would be a mistake of ours", async (_, frame) => {
    const bytes = await frame();
    expect(() => sealFrame(bytes, content)).toThrow(RangeError);
  });

  test("a flipped bit anywhere is noticed, which it is not without the seal", async () => {
    const plain = Buffer.concat([random(5).bytes(100_000), Buffer.from("a".repeat(100_000))]);
    const unsealed = await compress(plain, 3);
    const unnoticed = { sealed: 0, unsealed: 0 };
    const { below } = random(2);
    for (let n = 0; n < 60; n++) {
      const [place, bit] = [below(unsealed.byteLength), 1 << below(8)];
      for (const [kind, frame] of [
        ["sealed", sealFrame(unsealed, plain)],
        ["unsealed", Buffer.from(unsealed)],
      ] as const) {
        frame[place] = (frame[place] ?? 0) ^ bit;
        const isNoticed = await decodes(frame, plain.byteLength).then((answer) => answer === undefined);
        if (!isNoticed) unnoticed[kind]++;
      }
    }
    expect(unnoticed.sealed).toBe(0);
    // The test of the test: were the decompressor to notice by itself, this would say nothing.
    expect(unnoticed.unsealed).toBeGreaterThan(0);
  });
});

async function decodes(frame: Uint8Array, contentBytes: number): Promise<Uint8Array | undefined> {
  try {
    return await zstd.decompressFrame(frame, contentBytes);
  } catch (error) {
    expect(error).toBeInstanceOf(IntegrityError);
    return undefined;
  }
}

test("checksumOf() is the low half of XXH64", () => {
  // XXH64 of nothing with seed 0, as the specification of xxHash gives it.
  expect(checksumOf(new Uint8Array())).toBe(Number(0xef46db3751d8e999n & 0xffff_ffffn));
});

describe("FrameWalker", () => {
  const skippable = Buffer.from([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);

  async function frames(): Promise<readonly Uint8Array[]> {
    return [
      await zstd.compressFrame(content),
      skippable,
      await zstd.compressFrame(new Uint8Array()),
      await compress(Buffer.from("foreign"), 3),
      await Bun.zstdCompress(content),
      Buffer.from([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]),
    ];
  }

  test.each([1, 2, 3, 7, 64, 1000, 65_537, 2 ** 30])(
    "finds the same frames in pieces of %i bytes",
    async (pieceBytes) => {
      const all = await frames();
      const stream = Buffer.concat(all);
      const walker = new FrameWalker();
      const ends: number[] = [];
      for (let at = 0; at < stream.byteLength; at += pieceBytes) {
        for (const { endAt } of walker.walk(stream.subarray(at, at + pieceBytes))) ends.push(at + endAt);
      }
      let sum = 0;
      expect(ends).toEqual(all.map(({ byteLength }) => (sum += byteLength)));
      expect(walker.isBetweenFrames).toBe(true);
    },
  );

  test("is between frames at their ends and nowhere else", async () => {
    const stream = Buffer.concat([await zstd.compressFrame(Buffer.from("abc")), skippable]);
    const first = stream.byteLength - skippable.byteLength;
    for (let end = 0; end <= stream.byteLength; end++) {
      const walker = new FrameWalker();
      walker.walk(stream.subarray(0, end));
      expect([end, walker.isBetweenFrames]).toEqual([end, end === 0 || end === first || end === stream.byteLength]);
    }
  });

  test.each([
    ["what is no zstd at all", Buffer.from("\x1f\x8b\x08gzip"), "not compressed with zstd"],
    ["zeros", Buffer.alloc(64), "not compressed with zstd"],
    ["a block of the reserved type", Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x01, 0x07, 0x00, 0x00]), "damaged"],
  ])("refuses %s", (_, bytes, message) => {
    const walk = () => new FrameWalker().walk(bytes);
    expect(walk).toThrow(IntegrityError);
    expect(walk).toThrow(message);
  });
});
