import { describe, expect, test } from "bun:test";
import { isIntactPage, pageChecksum, pageLsn } from "../../../src/postgres/page-checksum.ts";
import { random } from "../../support/random.ts";

const PAGE_BYTES = 8192;
const OFFSETS = `
  5b1f36e9 b8525960 02ab50aa 1de66d2a 79ff467a 9bb9f8a3 217e7cd2 83e13d2c f8d4474f e39eb970 42c6ae16 993216fa 7b093b5d 98daff3c
  f718902a 0b1c9cdb e58f764b 187636bc 5d7b3bb1 e73de7de 92bec979 cca6c0b2 304a0979 85aa43d4 783125bb 6ca8eaa2 e407eac6 4b5cfc3e
  9fbf8c76 15ca20be f2ca9fd3 959bd756`;

/** checksum_impl.h word by word, in numbers that cannot overflow. */
function reference(page: Uint8Array, block: number): number {
  const copy = page.slice();
  copy.fill(0, 8, 10);
  const view = new DataView(copy.buffer);
  const sums = OFFSETS.trim()
    .split(/\s+/)
    .map((hex) => BigInt(`0x${hex}`));
  const add = (value: (n: number) => bigint) => {
    for (let n = 0; n < 32; n++) {
      const mixed = (sums[n] as bigint) ^ value(n);
      sums[n] = BigInt.asUintN(32, mixed * 16_777_619n) ^ (mixed >> 17n);
    }
  };
  for (let row = 0; row < page.byteLength / 128; row++) add((n) => BigInt(view.getUint32(row * 128 + n * 4, true)));
  add(() => 0n);
  add(() => 0n);
  const folded = sums.reduce((all, sum) => all ^ sum) ^ BigInt(block);
  return Number((folded % 65_535n) + 1n);
}

const wordsOf = (bytes: Uint8Array) => new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const checksumOf = (page: Uint8Array, block: number) => pageChecksum(wordsOf(page), 0, page.byteLength / 4, block);
const isIntact = (page: Uint8Array, block: number) => isIntactPage(wordsOf(page), 0, page.byteLength / 4, block);

function pageWithChecksum(block: number, bytes = PAGE_BYTES): Uint8Array {
  const page = Uint8Array.from({ length: bytes }, (_, at) => (at * 31 + 5) & 255);
  new DataView(page.buffer).setUint16(8, checksumOf(page, block), true);
  return page;
}

describe("pageChecksum()", () => {
  // Computed with PostgreSQL's own checksum_impl.h.
  test.each([
    [7, 0, 0xb082],
    [7, 1, 0xb081],
    [7, 131_072, 0xb080],
    [7, 999_999, 0xeeb0],
    [1, 0, 0xe706],
    [1, 999_999, 0x252b],
  ])("of a page whose bytes go up by %i, as block %i, is what PostgreSQL computes", (step, block, expected) => {
    expect(
      checksumOf(
        Uint8Array.from({ length: PAGE_BYTES }, (_, at) => (at * step) & 255),
        block,
      ),
    ).toBe(expected);
  });

  test.each([1024, 8192, 32_768])("of random pages of %i bytes is what the plain algorithm gives", (bytes) => {
    const seeded = random(bytes);
    for (let turn = 0; turn < 5; turn++) {
      const page = seeded.bytes(bytes);
      const block = seeded.below(2 ** 32 - 1);
      const before = page.slice();
      expect(checksumOf(page, block)).toBe(reference(page, block));
      expect(page).toEqual(before);
    }
  });
});

describe("isIntactPage()", () => {
  test("notices every single byte that changes", () => {
    const page = pageWithChecksum(7);
    expect(isIntact(page, 7)).toBe(true);
    for (let at = 0; at < PAGE_BYTES; at++) {
      page[at] = (page[at] as number) ^ 0x10;
      if (isIntact(page, 7)) throw new Error(`byte ${at} may change`);
      page[at] = (page[at] as number) ^ 0x10;
    }
    expect(isIntact(page, 7)).toBe(true);
  });

  test("notices a page in the place of another", () => {
    expect(isIntact(pageWithChecksum(7), 8)).toBe(false);
    expect(isIntact(pageWithChecksum(7), 131_072 + 7)).toBe(false);
  });

  test("takes a page of nothing but zeros for new, whichever block it is, and no other without a checksum", () => {
    const page = new Uint8Array(PAGE_BYTES);
    expect(isIntact(page, 7)).toBe(true);
    for (const at of [0, 12, 4095, PAGE_BYTES - 1]) {
      page[at] = 1;
      expect({ at, isIntact: isIntact(page, 7) }).toEqual({ at, isIntact: false });
      page[at] = 0;
    }
  });
});

test("pageLsn() puts the two halves together", () => {
  const page = new Uint8Array(PAGE_BYTES);
  new DataView(page.buffer).setUint32(0, 0xf000_0016, true);
  new DataView(page.buffer).setUint32(4, 0xb374_d848, true);
  expect(pageLsn(wordsOf(page), 0)).toBe(0xf000_0016_b374_d848n);
});
