import { describe, expect, test } from "bun:test";
import { encodeContent } from "../../../src/codec/content.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { AccessError, Failure, IntegrityError, NotFoundError, StorageError } from "../../../src/errors.ts";
import { parseWalFile, type WalFile } from "../../../src/postgres/wal-segment.ts";
import { walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import { openDirectoryStore } from "../../../src/storage/directory.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { readWhole } from "../../support/read-chunks.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { historyContent, MiB, sourceOf, walContent } from "../../support/wal-content.ts";

const zstd = await openZstd(3);
const SEGMENT = "000000010000000000000004";
const LABEL = "START WAL LOCATION: 0/4000028 (file 000000010000000000000004)\n";

const body = await encodeContent(walContent(SEGMENT), zstd);
const another = await encodeContent(walContent("000000010000000000000005"), zstd);
const half = await encodeContent(walContent(SEGMENT).subarray(0, 2 ** 19), zstd);

const file = (name: string) => parseWalFile(name) as WalFile;

function setUp(faults?: FaultStore) {
  const store = new MemoryObjectStore();
  const archive = openWalArchive(faults ?? store, async () => zstd);
  const put = async (name: string, content: Uint8Array) =>
    archive.putIfAbsent(await archive.prepare(file(name), sourceOf(content)));
  return { store, archive, put };
}

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const failure = await promise.then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(failure).toBeInstanceOf(Failure);
  return failure as Failure;
}

describe("a WAL archive", () => {
  test.each([
    ["a segment", SEGMENT, walContent(SEGMENT)],
    ["a partial segment", `${SEGMENT}.partial`, walContent(SEGMENT)],
    ["a timeline history", "00000002.history", historyContent()],
    ["a backup history", `${SEGMENT}.00000028.backup`, Buffer.from(LABEL)],
  ])("gives back %s as it was put", async (_, name, content) => {
    const { store, archive, put } = setUp();
    expect(await put(name, content)).toBe("created");
    expect(store.keys).toEqual([walKey(name)]);
    expect(Buffer.compare(await readWhole(archive.read(file(name))), content)).toBe(0);
  });

  test("reads a timeline history as text", async () => {
    const { archive, put } = setUp();
    const history = (timeline: number) => ({ kind: "history", name: `0000000${timeline}.history`, timeline }) as const;
    await put("00000002.history", historyContent("1\t0/3000000\tвыпуск\n"));
    expect(await archive.readText(history(2))).toBe("1\t0/3000000\tвыпуск\n");
    expect(await failureOf(archive.readText(history(3)))).toBeInstanceOf(NotFoundError);
  });

  test("keeps the first content, whatever comes under its name later", async () => {
    const { archive, put } = setUp();
    await put(SEGMENT, walContent(SEGMENT, { fill: 1 }));
    expect(await put(SEGMENT, walContent(SEGMENT, { fill: 1 }))).toBe("exists");
    expect(await put(SEGMENT, walContent(SEGMENT, { fill: 2 }))).toBe("exists");
    expect((await readWhole(archive.read(file(SEGMENT)))).at(-1)).toBe(1);
  });

  test("needs one request to put and one to get", async () => {
    const counting = new FaultStore(new MemoryObjectStore());
    const { archive, put } = setUp(counting);
    await put(SEGMENT, walContent(SEGMENT));
    await readWhole(archive.read(file(SEGMENT)));
    expect(counting.calls).toEqual([`putIfAbsent ${walKey(SEGMENT)}`, `open ${walKey(SEGMENT)}`]);
  });

  test("does not take a large file for archived because a directory has its name: that may not be on the disk", async () => {
    await using directory = await temporaryDirectory();
    const signal = new AbortController().signal;
    const counting = new FaultStore(await openDirectoryStore({ directory: directory.path, signal }));
    const { put } = setUp(counting);
    const content = walContent(SEGMENT, { sizeBytes: 64 * MiB });
    expect(await put(SEGMENT, content)).toBe("created");
    const before = counting.calls.length;
    expect(await put(SEGMENT, content)).toBe("exists");
    expect(counting.calls.slice(before).filter((call) => /^head|complete/.test(call))).toEqual([
      expect.stringContaining("complete"),
    ]);
  });

  test("says that a file is not there only after it looked for other forms of it", async () => {
    const { store } = setUp();
    const counting = new FaultStore(store);
    const failure = await failureOf(readWhole(openWalArchive(counting, async () => zstd).read(file(SEGMENT))));
    expect(failure).toBeInstanceOf(NotFoundError);
    expect(failure.message).toBe(`"${SEGMENT}" is not in the archive`);
    expect(counting.calls).toEqual([`open ${walKey(SEGMENT)}`, `list wal_005/${SEGMENT}`]);
  });

  test.each([
    [1, "before", new StorageError("time-out")],
    [1, "before", new AccessError("403")],
    [2, "before", new StorageError("time-out")],
    [2, "before", new AccessError("403")],
  ] as const)("never takes a failure for absence: call %i", async (atCall, when, error) => {
    const { store } = setUp();
    const archive = openWalArchive(new FaultStore(store, { atCall, when, error }), async () => zstd);
    expect(await failureOf(readWhole(archive.read(file(SEGMENT))))).toBe(error);
  });

  test("reads what another tool stored without compression", async () => {
    const { store, archive } = setUp();
    await store.putIfAbsent(`wal_005/${SEGMENT}`, walContent(SEGMENT));
    expect(Buffer.compare(await readWhole(archive.read(file(SEGMENT))), walContent(SEGMENT))).toBe(0);
  });

  test.each(["lz4", "lzo", "lzma", "br", "gz"])("refuses what is compressed with %s by that name", async (suffix) => {
    const { store, archive } = setUp();
    await store.putIfAbsent(`wal_005/${SEGMENT}.${suffix}`, Buffer.from("?"));
    const failure = await failureOf(readWhole(archive.read(file(SEGMENT))));
    expect(failure).toBeInstanceOf(IntegrityError);
    expect(failure.message).toBe(`archived "${SEGMENT}" is in a format that is not supported`);
    expect(failure.detail).toBe(`memory://test/wal_005/${SEGMENT}.${suffix} is compressed with ${suffix}.`);
  });

  test("unsupportedForm() tells of what is there in no form that can be read, and of nothing else", async () => {
    const { store, archive, put } = setUp();
    expect(await archive.unsupportedForm(file(SEGMENT))).toBeUndefined();
    await store.putIfAbsent(`wal_005/${SEGMENT}.partial.lz4`, Buffer.from("?"));
    expect(await archive.unsupportedForm(file(SEGMENT))).toBeUndefined();
    await store.putIfAbsent(`wal_005/${SEGMENT}.lz4`, Buffer.from("?"));
    expect(await archive.unsupportedForm(file(SEGMENT))).toBe(
      `memory://test/wal_005/${SEGMENT}.lz4 is compressed with lz4.`,
    );
    await put(SEGMENT, walContent(SEGMENT));
    expect(await archive.unsupportedForm(file(SEGMENT))).toBeUndefined();
  });

  test("does not take another file for the one that was asked for", async () => {
    const { store, archive, put } = setUp();
    await put(`${SEGMENT}.partial`, walContent(SEGMENT));
    await put(`${SEGMENT}.00000028.backup`, Buffer.from(LABEL));
    await store.putIfAbsent(`wal_005/${SEGMENT}.json`, Buffer.from("{}"));
    await store.putIfAbsent(`wal_005/${SEGMENT}_delta.zst`, Buffer.from("?"));
    expect(await failureOf(readWhole(archive.read(file(SEGMENT))))).toBeInstanceOf(NotFoundError);
  });

  test.each([
    ["nothing at all", new Uint8Array(), "the object is empty"],
    ["no zstd", Buffer.from("<html>proxy error</html>"), "not compressed with zstd"],
    ["half of it", body.subarray(0, body.byteLength >> 1), "the object is cut off"],
    ["another segment", another, "Its first page is at"],
    ["half a segment, well packed", half, "It has 524288 bytes"],
  ])("refuses an object that holds %s, and says where it is", async (_, damaged, reason) => {
    const { store, archive } = setUp();
    await store.putIfAbsent(walKey(SEGMENT), damaged);
    const failure = await failureOf(readWhole(archive.read(file(SEGMENT))));
    expect(failure).toBeInstanceOf(IntegrityError);
    expect(failure.message).toBe(`archived "${SEGMENT}" is damaged`);
    expect(failure.detail).toContain(`memory://test/${walKey(SEGMENT)}: `);
    expect(failure.detail).toContain(reason);
  });

  test.each([1, 7, 39, 40, 41, 100_000])(
    "read() gives the header whole in the first piece, of chunks of %i bytes",
    async (n) => {
      const store = new MemoryObjectStore({ chunkBytes: n });
      const archive = openWalArchive(store, async () => zstd);
      const content = walContent(SEGMENT).subarray(0, n < 100 ? 2 ** 14 : MiB);
      await store.putIfAbsent(`wal_005/${SEGMENT}`, content);
      const pieces: Uint8Array[] = [];
      const reading = async () => {
        for await (const piece of archive.read(file(SEGMENT))) pieces.push(piece.slice());
      };
      // Cut off, so that small chunks are not too many: all that there is comes before the end is refused.
      if (content.byteLength < MiB) await expect(reading()).rejects.toThrow(IntegrityError);
      else await reading();
      expect(pieces[0]?.byteLength).toBeGreaterThanOrEqual(40);
      expect(Buffer.compare(Buffer.concat(pieces), content)).toBe(0);
    },
  );

  test("read() stops behind the size that the header states, and reads no text without end", async () => {
    const { store, archive } = setUp();
    await store.putIfAbsent(`wal_005/${SEGMENT}`, Buffer.concat([walContent(SEGMENT), Buffer.alloc(8 * MiB)]));
    let bytes = 0;
    const reading = async () => {
      for await (const piece of archive.read(file(SEGMENT))) bytes += piece.byteLength;
    };
    await expect(reading()).rejects.toThrow(`archived "${SEGMENT}" is damaged`);
    expect(bytes).toBe(MiB);

    await store.putIfAbsent("wal_005/00000002.history", Buffer.alloc(8 * MiB, "1\t0/3000000\tx\n"));
    expect((await failureOf(readWhole(archive.read(file("00000002.history"))))).detail).toContain(
      "the content is too large",
    );
  });

  test("refuses content that is valid but not what was archived", async () => {
    const { store, archive } = setUp();
    const sha256 = new Bun.CryptoHasher("sha256").update(walContent(SEGMENT, { fill: 1 })).digest("hex");
    await store.putIfAbsent(walKey(SEGMENT), await encodeContent(walContent(SEGMENT, { fill: 2 }), zstd), { sha256 });
    const failure = await failureOf(readWhole(archive.read(file(SEGMENT))));
    expect(failure).toBeInstanceOf(IntegrityError);
    expect(failure.detail).toContain(`archived was ${sha256}`);
  });

  test.each([
    ["00000002.history", "# only a comment\n", "is not a timeline history"],
    ["00000002.history", "2\t0/1\tits own parent\n", "history of timeline 2 is damaged"],
    ["00000002.history", "", "is not a timeline history"],
    [`${SEGMENT}.00000028.backup`, "STOP WAL LOCATION: ", "is not a backup history"],
  ])("refuses %s with the content %p", async (name, text, reason) => {
    const { store, archive } = setUp();
    await store.putIfAbsent(walKey(name), await encodeContent(Buffer.from(text), zstd));
    expect((await failureOf(readWhole(archive.read(file(name))))).detail).toContain(reason);
  });

  test("list() tells files from what is none of ours", async () => {
    const { store, archive, put } = setUp();
    await put(SEGMENT, walContent(SEGMENT));
    await store.putIfAbsent("wal_005/readme.txt", Buffer.from("?"));
    const listed = await Array.fromAsync(archive.list());
    expect(listed.map(({ key, file: found, compression }) => [key, found?.name, compression])).toEqual([
      [walKey(SEGMENT), SEGMENT, "zst"],
      ["wal_005/readme.txt", undefined, undefined],
    ]);
  });
});
