import { describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import {
  ContentEncoder,
  decodeContent,
  decodeStream,
  encodeContent,
  FRAME_CONTENT_BYTES,
  releaseContent,
} from "../../../src/codec/content.ts";
import { openZstd, type Zstd } from "../../../src/codec/zstd.ts";
import { sealFrame } from "../../../src/codec/zstd-frames.ts";
import { IntegrityError } from "../../../src/errors.ts";
import { random } from "../../support/random.ts";

const zstd = await openZstd(3);
const MiB = 2 ** 20;
const noise = random(11).bytes(5 * MiB);
/** More than is held of one frame, and does not pack. */
const LARGE = Buffer.concat([noise, noise, noise, noise.subarray(0, 2 * MiB)]);

describe("encodeContent() and decodeContent()", () => {
  test.each([
    ["nothing", 0, 1],
    ["one byte", 1, 1],
    ["just below a frame", FRAME_CONTENT_BYTES - 1, 1],
    ["exactly a frame", FRAME_CONTENT_BYTES, 1],
    ["a byte more than a frame", FRAME_CONTENT_BYTES + 1, 2],
    ["two and a half frames", 5 * MiB, 3],
  ])("give back %s", async (_, bytes, frames) => {
    const content = noise.subarray(0, bytes);
    const body = await encodeContent(content, zstd);
    expect(count(body, Buffer.from([0x28, 0xb5, 0x2f, 0xfd]))).toBe(frames);
    expect(Buffer.compare(await decodeContent(body, zstd, bytes), content)).toBe(0);
    if (Bun.which("zstd"))
      expect(execFileSync("zstd", ["-dcq"], { input: body, maxBuffer: 8 * MiB }).equals(content)).toBe(true);
  });

  test("decodeContent() refuses more than is possible, however much would come", async () => {
    const bomb = await encodeContent(new Uint8Array(64 * MiB), zstd);
    expect(bomb.byteLength).toBeLessThan(MiB);
    await expect(decodeContent(bomb, zstd, 16 * MiB)).rejects.toThrow("the content is too large");
    // One frame of another tool that claims to be small, and one that does not say.
    const [sized, unsized] = [
      await Bun.zstdCompress(new Uint8Array(64 * MiB)),
      await unsizedFrame(new Uint8Array(64 * MiB)),
    ];
    await expect(decodeContent(sized, zstd, 16 * MiB)).rejects.toThrow("the content is too large");
    await expect(decodeContent(unsized, zstd, 16 * MiB)).rejects.toThrow("the content is too large");
  });

  test("decodeContent() takes what the zstd libraries write: one frame, several, skippable ones between them", async () => {
    const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 5, 0, 0, 0, 1, 2, 3, 4, 5]);
    const [one, two] = [noise.subarray(0, 3 * MiB), noise.subarray(3 * MiB)];
    const body = Buffer.concat([skippable, await Bun.zstdCompress(one), skippable, await unsizedFrame(two), skippable]);
    expect(Buffer.compare(await decodeContent(body, zstd, 5 * MiB), noise)).toBe(0);
  });
});

describe("ContentEncoder", () => {
  test("emits the same bytes as encodeContent(), in order, whatever the cut of what it is given", async () => {
    for (const [pieceBytes, framesInFlight] of [
      [64 * 1024, 1],
      [3 * MiB, 2],
      [777_777, 3],
    ] as const) {
      const emitted: Uint8Array[] = [];
      const encoder = new ContentEncoder(zstd, async (frame) => void emitted.push(frame), framesInFlight);
      const reused = Buffer.alloc(pieceBytes);
      for (let at = 0; at < noise.byteLength; at += pieceBytes) {
        const piece = noise.subarray(at, at + pieceBytes);
        reused.set(piece);
        await encoder.write(reused.subarray(0, piece.byteLength));
        reused.fill(0);
      }
      const size = await encoder.end();
      const body = Buffer.concat(emitted);
      expect(body.equals(await encodeContent(noise, zstd))).toBe(true);
      expect(size).toEqual({ contentBytes: noise.byteLength, storedBytes: body.byteLength });
    }
  });

  test("writes a frame for no content, so that an empty object is never a complete one", async () => {
    const emitted: Uint8Array[] = [];
    const size = await new ContentEncoder(zstd, async (frame) => void emitted.push(frame), 2).end();
    expect(size).toEqual({ contentBytes: 0, storedBytes: emitted[0]?.byteLength ?? 0 });
    expect(emitted).toHaveLength(1);
  });

  test("holds no more frames than it may", async () => {
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
    const encoder = new ContentEncoder(counted, async () => {}, 3);
    for (let n = 0; n < 20; n++) await encoder.write(new Uint8Array(MiB));
    await encoder.end();
    expect(most).toBeLessThanOrEqual(3);
  });

  test("passes on why a frame could not be written", async () => {
    const encoder = new ContentEncoder(zstd, () => Promise.reject(new Error("the store is gone")), 1);
    await expect(encoder.write(noise)).rejects.toThrow("the store is gone");
  });
});

describe("decodeStream()", () => {
  test("gives the content in order, whatever the cut of what comes", async () => {
    const content = noise.subarray(0, 3 * MiB);
    const body = await encodeContent(content, zstd);
    for (const pieceBytes of [1009, 65_536, 2 ** 30]) {
      expect(Buffer.compare(await collect(piecesOf(body, pieceBytes)), content)).toBe(0);
    }
    const small = await encodeContent(noise.subarray(0, 2000), zstd);
    expect(Buffer.compare(await collect(piecesOf(small, 1)), noise.subarray(0, 2000))).toBe(0);
  });

  test("an object that is cut off is an IntegrityError, wherever the cut is inside a frame", async () => {
    const frames = await Promise.all(
      [noise.subarray(0, 3000), noise.subarray(3000, 3100)].map((c) => zstd.compressFrame(c)),
    );
    const body = Buffer.concat(frames);
    const boundary = frames[0]?.byteLength ?? 0;
    const { below } = random(3);
    const places = [
      1,
      3,
      4,
      5,
      7,
      boundary - 5,
      boundary - 4,
      boundary - 1,
      boundary + 1,
      boundary + 5,
      body.byteLength - 1,
    ];
    for (const place of [...places, ...Array.from({ length: 20 }, () => 1 + below(body.byteLength - 1))]) {
      if (place === boundary) continue;
      await expect(collect([body.subarray(0, place)])).rejects.toThrow(IntegrityError);
    }
  });

  test("a cut between two frames shows in the size of the content only: tar and WAL know theirs", async () => {
    const frames = await Promise.all(
      [noise.subarray(0, 100), noise.subarray(100, 200)].map((c) => zstd.compressFrame(c)),
    );
    expect(await collect([frames[0] ?? new Uint8Array()])).toHaveLength(100);
  });

  test("an object of another tool that is one frame longer than may be held is read as a stream", async () => {
    const [sized, unsized] = [await Bun.zstdCompress(LARGE), await unsizedFrame(LARGE)];
    const tail = await zstd.compressFrame(Buffer.from("and more"));
    for (const frame of [sized, unsized]) {
      const content = await collect(piecesOf(Buffer.concat([frame, tail]), MiB));
      expect(content.byteLength).toBe(LARGE.byteLength + 8);
      expect(Buffer.compare(content.subarray(0, LARGE.byteLength), LARGE)).toBe(0);
      await expect(collect(piecesOf(frame.subarray(0, -1), MiB))).rejects.toThrow("cut off");
      await expect(collect(piecesOf(Buffer.concat([frame, Buffer.from("no frame")]), MiB))).rejects.toThrow(
        IntegrityError,
      );
    }
  });

  test("damage in a frame too long to hold ends the reading, though more would come", async () => {
    const frame = sealFrame(await unsizedFrame(LARGE), LARGE);
    frame[1000] = (frame[1000] ?? 0) ^ 1;
    const source = { pulled: 0, isClosed: false };
    const pieces = async function* () {
      try {
        for await (const piece of piecesOf(Buffer.concat([frame, frame, frame]), MiB)) {
          source.pulled++;
          await Bun.sleep(1);
          yield piece;
        }
      } finally {
        source.isClosed = true;
      }
    };
    await expect(collect(pieces())).rejects.toThrow("a zstd frame is damaged");
    expect(source.isClosed).toBe(true);
    expect(source.pulled).toBeLessThan(30);
  });

  test("a failure of the source is passed on as it is, in held and in streamed frames", async () => {
    const failing = async function* (body: Uint8Array, afterBytes: number) {
      yield* piecesOf(body.subarray(0, afterBytes), MiB);
      throw new RangeError("the connection broke");
    };
    const large = await unsizedFrame(LARGE);
    for (const afterBytes of [0, 10, 3 * MiB, 17 * MiB]) {
      await expect(collect(failing(large, afterBytes))).rejects.toThrow("the connection broke");
    }
  });

  test("whoever stops reading closes the source", async () => {
    const source = { isClosed: false };
    const pieces = async function* () {
      try {
        const frame = await zstd.compressFrame(noise.subarray(0, 100));
        for (;;) yield frame;
      } finally {
        source.isClosed = true;
      }
    };
    for await (const _ of decodeStream(pieces(), zstd, { framesInFlight: 2 })) break;
    expect(source.isClosed).toBe(true);
  });
});

async function collect(source: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for await (const piece of decodeStream(source, zstd, { framesInFlight: 3 })) pieces.push(piece);
  return Buffer.concat(pieces);
}

async function* piecesOf(body: Uint8Array, pieceBytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < body.byteLength; at += pieceBytes) yield body.subarray(at, at + pieceBytes);
}

/** As a stream compressor writes it that does not know how much will come: a window, no size. Raw and run-length blocks. */
async function unsizedFrame(content: Uint8Array): Promise<Uint8Array> {
  const blocks: Uint8Array[] = [Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58])];
  const BLOCK = 128 * 1024;
  for (let at = 0; at < content.byteLength; at += BLOCK) {
    const block = content.subarray(at, at + BLOCK);
    const isRun = block[0] === block.at(-1) && block.every((byte) => byte === block[0]);
    const isLast = at + BLOCK >= content.byteLength;
    const header = (block.byteLength << 3) | (isRun ? 2 : 0) | (isLast ? 1 : 0);
    blocks.push(Buffer.from([header & 255, (header >> 8) & 255, header >> 16]), isRun ? block.subarray(0, 1) : block);
  }
  return Buffer.concat(blocks);
}

function count(body: Uint8Array, wanted: Buffer): number {
  const bytes = Buffer.from(body.buffer, body.byteOffset, body.byteLength);
  let found = 0;
  for (let at = bytes.indexOf(wanted); at !== -1; at = bytes.indexOf(wanted, at + 1)) found++;
  return found;
}

/** A frame of run-length blocks, 4 bytes for 128 KiB each, that states another size. */
function bomb(contentBytes: number, statedBytes: number): Uint8Array {
  const header = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x80, 0x50, 0, 0, 0, 0]);
  header.writeUInt32LE(statedBytes, 6);
  const blocks = Buffer.alloc((contentBytes / (128 * 1024)) * 4, "A");
  for (let at = 0; at < blocks.byteLength; at += 4) {
    const isLast = at + 4 === blocks.byteLength;
    blocks.writeUIntLE(((128 * 1024) << 3) | (1 << 1) | (isLast ? 1 : 0), at, 3);
  }
  return Buffer.concat([header, blocks]);
}

test("a small object that would become 512 MiB is refused in little memory, whatever it states", async () => {
  const before = process.resourceUsage().maxRSS;
  for (const stated of [100, 4_000_000, 8_000_000]) {
    const body = bomb(2 ** 29, stated);
    expect(body.byteLength).toBeLessThan(20_000);
    await expect(decodeContent(body, zstd, 16 * 2 ** 20)).rejects.toThrow(IntegrityError);
  }
  // In KiB.
  expect(process.resourceUsage().maxRSS - before).toBeLessThan(200 * 1024);
});

test("releaseContent() gives back what a frame became, and leaves alone what shares its memory", async () => {
  const noise = random(5).bytes(3 * MiB);
  const body = await encodeContent(noise, zstd);
  const read: Buffer[] = [];
  for await (const piece of decodeStream([body], zstd, { framesInFlight: 2 })) {
    read.push(Buffer.from(piece));
    releaseContent(piece);
    expect(piece.byteLength).toBe(0);
  }
  expect(Buffer.compare(Buffer.concat(read), noise)).toBe(0);
  const shared = new Uint8Array(8).subarray(0, 4);
  releaseContent(shared);
  expect(shared.byteLength).toBe(4);
});
