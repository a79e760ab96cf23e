/**
 * The checksum of a data page, as the server writes it into pd_checksum when the cluster has data checksums.
 *
 * An FNV-1a of our own kind: 32 sums over every 32nd word, each begun differently, then folded, with the block's number in it
 * so that a page in the wrong place is noticed. Source: checksum_impl.h; PageIsVerified() in bufpage.c.
 */

const SUMS = 32;
const PRIME = 16_777_619;

/** checksumBaseOffsets in checksum_impl.h. */
const OFFSETS = Int32Array.of(
  ...[0x5b1f36e9, 0xb8525960, 0x02ab50aa, 0x1de66d2a, 0x79ff467a, 0x9bb9f8a3, 0x217e7cd2, 0x83e13d2c],
  ...[0xf8d4474f, 0xe39eb970, 0x42c6ae16, 0x993216fa, 0x7b093b5d, 0x98daff3c, 0xf718902a, 0x0b1c9cdb],
  ...[0xe58f764b, 0x187636bc, 0x5d7b3bb1, 0xe73de7de, 0x92bec979, 0xcca6c0b2, 0x304a0979, 0x85aa43d4],
  ...[0x783125bb, 0x6ca8eaa2, 0xe407eac6, 0x4b5cfc3e, 0x9fbf8c76, 0x15ca20be, 0xf2ca9fd3, 0x959bd756],
);

/** pd_checksum is the lower half of this word, behind the eight bytes of pd_lsn. */
const CHECKSUM_WORD = 2;

/**
 * Whether a page is what the server wrote: new (all zeros), or with a checksum that is right for it.
 *
 * @param words  little-endian; the page is the `pageWords` of them from `at` on
 * @param block  number of the page in its relation, counted over all of its files
 */
export function isIntactPage(words: Int32Array, at: number, pageWords: number, block: number): boolean {
  const stored = (words[at + CHECKSUM_WORD] ?? 0) & 0xffff;
  // Zero is no checksum.
  return stored === 0 ? isNew(words, at, pageWords) : stored === pageChecksum(words, at, pageWords, block);
}

/** From 1 to 65535. Parameters as for isIntactPage(). */
export function pageChecksum(words: Int32Array, at: number, pageWords: number, block: number): number {
  const held = words[at + CHECKSUM_WORD] ?? 0;
  // The stored checksum is no part of what it is made of.
  words[at + CHECKSUM_WORD] = held & 0xffff_0000;
  const sum = foldedSums(words, at, pageWords);
  words[at + CHECKSUM_WORD] = held;
  return (((sum ^ block) >>> 0) % 65_535) + 1;
}

/**
 * Four of the sums at a time, in variables of their own: independent of each other, they keep the processor busy, and all 32
 * at once would not fit into its registers. 4.4 GB/s where one at a time gives 2.6 (decision 7).
 */
function foldedSums(words: Int32Array, at: number, pageWords: number): number {
  const end = at + pageWords;
  let folded = 0;
  for (let column = 0; column < SUMS; column += 4) {
    let a = OFFSETS[column] as number;
    let b = OFFSETS[column + 1] as number;
    let c = OFFSETS[column + 2] as number;
    let d = OFFSETS[column + 3] as number;
    for (let word = at + column; word < end; word += SUMS) {
      a = mixed(a ^ (words[word] as number));
      b = mixed(b ^ (words[word + 1] as number));
      c = mixed(c ^ (words[word + 2] as number));
      d = mixed(d ^ (words[word + 3] as number));
    }
    folded ^= mixed(mixed(a)) ^ mixed(mixed(b)) ^ mixed(mixed(c)) ^ mixed(mixed(d));
  }
  return folded;
}

const mixed = (sum: number) => Math.imul(sum, PRIME) ^ (sum >>> 17);

function isNew(words: Int32Array, at: number, pageWords: number): boolean {
  for (let word = at; word < at + pageWords; word++) if (words[word] !== 0) return false;
  return true;
}

/** Position of the page's last change in the WAL (pd_lsn): the upper half comes first. */
export function pageLsn(words: Int32Array, at: number): bigint {
  const half = (n: number) => BigInt((words[at + n] ?? 0) >>> 0);
  return (half(0) << 32n) | half(1);
}
