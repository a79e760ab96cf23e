import { describe, expect, test } from "bun:test";
import { PageVerifier } from "../../../src/backup/verify-pages.ts";
import { pageChecksum } from "../../../src/postgres/page-checksum.ts";

const PAGE_BYTES = 8192;
const SEGMENT_PAGES = 131_072;
const START = 1000n;
const WRITTEN = 2000n;

function page(block: number, { lsn = 500n, fill = 1 } = {}): Uint8Array {
  const bytes = new Uint8Array(PAGE_BYTES).fill(fill);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Number(lsn >> 32n), true);
  view.setUint32(4, Number(lsn & 0xffff_ffffn), true);
  view.setUint16(8, pageChecksum(new Int32Array(bytes.buffer), 0, PAGE_BYTES / 4, block), true);
  return bytes;
}

/** The second half is of another version: what a reader sees while the page is written. */
function torn(block: number, lsn = 500n): Uint8Array {
  const bytes = page(block, { lsn });
  bytes.fill(2, PAGE_BYTES / 2);
  return bytes;
}

/**
 * Verifies the pages that are read first.
 *
 * @param again  what each later read of the file finds; the last for ever
 */
async function verify(
  first: readonly Uint8Array[],
  again: readonly (readonly Uint8Array[])[],
  { segment = 0, at = 0 } = {},
) {
  const bytes = new Uint8Array(Buffer.concat(first));
  let [pauses, turn] = [0, -1];
  const source = {
    segment,
    async readAgain(into: Uint8Array, from: number) {
      const now = Buffer.concat(again[Math.min(Math.max(turn, 0), again.length - 1)] ?? first);
      return now.copy(into, 0, from - at, from - at + into.byteLength);
    },
  };
  const rules = {
    pageBytes: PAGE_BYTES,
    segmentPages: SEGMENT_PAGES,
    isReplayed: async (lsn: bigint) => lsn >= START && lsn <= WRITTEN,
  };
  const verifier = new PageVerifier(rules, source, async () => {
    pauses++;
    turn++;
  });
  await verifier.verify(bytes, at);
  return { damaged: verifier.damaged, pauses, bytes: Buffer.from(bytes) };
}

describe("PageVerifier", () => {
  test("reads nothing again when every page is right or new", async () => {
    const { damaged, pauses } = await verify([page(0), new Uint8Array(PAGE_BYTES), page(2)], []);
    expect({ damaged, pauses }).toEqual({ damaged: undefined, pauses: 0 });
  });

  test("counts blocks over all files of a relation, and names those of this file", async () => {
    const at = 64 * PAGE_BYTES;
    const right = page(2 * SEGMENT_PAGES + 64);
    expect((await verify([right], [], { segment: 2, at })).damaged).toBeUndefined();
    // Right for another file of the relation, or for another place in this one.
    for (const other of [page(64), page(2 * SEGMENT_PAGES), page(SEGMENT_PAGES + 64)]) {
      expect((await verify([right, other], [], { segment: 2, at })).damaged).toEqual({ count: 1, blocks: [65] });
    }
  });

  test("takes a page that stays wrong for damaged, after it has given a write time to end", async () => {
    expect(await verify([page(0), torn(1), page(2)], [])).toMatchObject({
      damaged: { count: 1, blocks: [1] },
      pauses: 4,
    });
  });

  test("a page that was caught being written is read again, and the backup gets it whole", async () => {
    const [before, halfDone, after] = [page(0), torn(1), page(1, { lsn: 700n, fill: 2 })];
    for (const turns of [1, 3]) {
      const again = [...Array(turns - 1).fill([before, halfDone]), [before, after]];
      const { damaged, pauses, bytes } = await verify([before, halfDone], again);
      expect({ damaged, pauses }).toEqual({ damaged: undefined, pauses: turns });
      expect(bytes.equals(Buffer.concat([before, after]))).toBe(true);
    }
  });

  test("a page that was written since the backup began is left to WAL replay", async () => {
    expect(await verify([torn(0, START)], [])).toMatchObject({ damaged: undefined, pauses: 0 });
    expect(await verify([torn(0, WRITTEN)], [])).toMatchObject({ damaged: undefined, pauses: 0 });
    // The same when only the next read shows it.
    expect(await verify([torn(0)], [[torn(0, START)]])).toMatchObject({ damaged: undefined, pauses: 1 });
  });

  test("a page that claims to be newer than all WAL is damaged: nothing would put it right", async () => {
    expect((await verify([torn(0, WRITTEN + 1n)], [])).damaged).toEqual({ count: 1, blocks: [0] });
    expect((await verify([torn(0, START - 1n)], [])).damaged).toEqual({ count: 1, blocks: [0] });
  });

  test("a page that is cut off meanwhile is no page any more", async () => {
    const { damaged, bytes } = await verify([page(0), torn(1)], [[page(0)]]);
    expect(damaged).toBeUndefined();
    expect(bytes.equals(Buffer.concat([page(0), new Uint8Array(PAGE_BYTES)]))).toBe(true);
  });

  test("half a page at the end of a growing file is passed over", async () => {
    expect((await verify([page(0), torn(1).subarray(0, PAGE_BYTES / 2)], [])).damaged).toBeUndefined();
  });

  test("names the first ten, counts all, and waits for none when there are many", async () => {
    const { damaged, pauses } = await verify(
      Array.from({ length: 33 }, (_, block) => torn(block)),
      [],
    );
    expect(damaged).toEqual({ count: 33, blocks: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] });
    expect(pauses).toBe(0);
  });
});
