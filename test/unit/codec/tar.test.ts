import { describe, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { readTar, type TarHeader, TarWriter } from "../../../src/codec/tar.ts";
import { IntegrityError } from "../../../src/errors.ts";
import { random } from "../../support/random.ts";

const LONG_NAME = `/base/${"d".repeat(90)}/${"ünïcode ".repeat(12)}file`;

function header(name: string, sizeBytes: number, type: "file" | "directory" = "file"): TarHeader {
  return { name, type, sizeBytes, mode: 0o600, uid: 26, gid: 27, modifiedAt: new Date("2025-03-04T05:06:07Z") };
}

/** Three entries: with a leading slash, a directory, and a name that needs an extended header. */
async function archive(): Promise<Buffer> {
  const written: Uint8Array[] = [];
  const tar = new TarWriter(async (bytes) => void written.push(Buffer.from(bytes)));
  await tar.add(header("/base/1/1259", 5000), [random(1).bytes(2000), random(2).bytes(3000)]);
  await tar.add(header("/pg_notify", 0, "directory"));
  await tar.add(header(LONG_NAME, 3), [Buffer.from("abc")]);
  await tar.end();
  return Buffer.concat(written);
}

async function entriesOf(source: AsyncIterable<Uint8Array>) {
  const entries: { name: string; type: string; sizeBytes: number; mode: number; uid: number; content: string }[] = [];
  for await (const { name, type, sizeBytes, mode, uid, content } of readTar(source)) {
    const pieces: Uint8Array[] = [];
    for await (const piece of content) pieces.push(Buffer.from(piece));
    entries.push({ name, type, sizeBytes, mode, uid, content: Buffer.concat(pieces).toString("latin1") });
  }
  return entries;
}

async function* pieces(bytes: Uint8Array, size = 1000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; at += size) yield bytes.subarray(at, at + size);
}

describe("TarWriter and readTar()", () => {
  test("give back names with their leading slash, sizes, modes and content", async () => {
    const entries = await entriesOf(pieces(await archive()));
    expect(entries.map(({ name, type, sizeBytes, mode, uid }) => ({ name, type, sizeBytes, mode, uid }))).toEqual([
      { name: "/base/1/1259", type: "file", sizeBytes: 5000, mode: 0o600, uid: 26 },
      { name: expect.stringMatching(/^\/pg_notify\/?$/), type: "directory", sizeBytes: 0, mode: 0o600, uid: 26 },
      { name: LONG_NAME, type: "file", sizeBytes: 3, mode: 0o600, uid: 26 },
    ]);
    const [first, , last] = entries;
    expect(first?.content).toBe(Buffer.concat([random(1).bytes(2000), random(2).bytes(3000)]).toString("latin1"));
    expect(last?.content).toBe("abc");
  });

  test("release each piece of a content once it is written, and not before", async () => {
    const given = [1, 2, 3, 4, 5].map((seed) => random(seed).bytes(100_000));
    const written: Uint8Array[] = [];
    const released: Uint8Array[] = [];
    const tar = new TarWriter(async (bytes) => {
      await Bun.sleep(1);
      expect(released).not.toContain(bytes);
      written.push(bytes);
    });
    const release = (piece: Uint8Array) => {
      expect(written.some(({ buffer }) => buffer === piece.buffer)).toBe(true);
      released.push(piece);
    };
    await tar.add(header("/kept", 100_000), given.slice(0, 1));
    await tar.add(header("/released", 400_000), given.slice(1), { release });
    await tar.end();
    expect(released.map((piece) => given.findIndex(({ buffer }) => buffer === piece.buffer))).toEqual([1, 2, 3, 4]);
  });

  test("keep the leading slash of a name that is too long for one field of a plain header", async () => {
    const written: Uint8Array[] = [];
    const tar = new TarWriter(async (bytes) => void written.push(Buffer.from(bytes)));
    const name = `/pg_replslot/${"s".repeat(63)}/${"f".repeat(30)}`;
    await tar.add(header(name, 3), [Buffer.from("abc")]);
    await tar.end();
    expect((await entriesOf(pieces(Buffer.concat(written)))).map((entry) => entry.name)).toEqual([name]);
    const input = Buffer.concat(written);
    expect(execFileSync("tar", ["-tPf", "-"], { input, encoding: "utf8" })).toBe(`${name}\n`);
  });

  test("the tar tool lists the same", async () => {
    const listed = execFileSync("tar", ["-tPf", "-"], { input: await archive(), encoding: "utf8" });
    expect(
      listed
        .split("\n")
        .filter(Boolean)
        .map((line) => line.replace(/\/$/, "").slice(0, 12)),
    ).toEqual(["/base/1/1259", "/pg_notify", LONG_NAME.slice(0, 12)]);
  });
});

describe("TarWriter.add()", () => {
  test.each([
    ["fewer", 10, [Buffer.alloc(9)]],
    ["more", 10, [Buffer.alloc(6), Buffer.alloc(6)]],
    ["no", 1, []],
  ])("refuses %s bytes than were promised", async (_, sizeBytes, content) => {
    const tar = new TarWriter(async () => {});
    await expect(tar.add(header("a", sizeBytes), content)).rejects.toThrow(
      `tar entry "a" was promised ${sizeBytes} bytes`,
    );
    await tar.abandon();
  });

  test("passes on why content could not be read", async () => {
    const tar = new TarWriter(async () => {});
    const failing = async function* () {
      yield Buffer.alloc(100);
      throw new Error("input/output error");
    };
    await expect(tar.add(header("a", 200), failing())).rejects.toThrow("input/output error");
    await tar.abandon();
  });

  test.each([
    ["at once, in a large entry", 1, 4_000_000],
    ["between small entries", 3, 10],
    ["in the middle of a large entry", 20, 4_000_000],
  ])("passes on why the archive could not be written %s", async (_, failsAt, sizeBytes) => {
    let calls = 0;
    const tar = new TarWriter(async () => {
      await Bun.sleep(0);
      if (++calls >= failsAt) throw new Error("the store is gone");
    });
    const content = function* () {
      for (let left = sizeBytes; left > 0; left -= 65_536) yield new Uint8Array(Math.min(left, 65_536));
    };
    const write = async () => {
      for (let n = 0; n < 40; n++) {
        await tar.add(header(`file ${n}`, sizeBytes), content());
        await Bun.sleep(1);
      }
      await tar.end();
    };
    await expect(write()).rejects.toThrow("the store is gone");
    await tar.abandon();
  });

  test("waits for the sink instead of holding what it cannot take yet", async () => {
    let [taken, produced, furthest] = [0, 0, 0];
    const tar = new TarWriter(async (bytes) => {
      await Bun.sleep(1);
      taken += bytes.byteLength;
    });
    const content = function* () {
      for (let n = 0; n < 64; n++) {
        produced += 65_536;
        furthest = Math.max(furthest, produced - taken);
        yield new Uint8Array(65_536);
      }
    };
    await tar.add(header("large", 64 * 65_536), content());
    await tar.end();
    expect(furthest).toBeLessThan(8 * 65_536);
  });
});

describe("readTar()", () => {
  test("an archive that is cut off inside an entry or a header is an IntegrityError", async () => {
    const whole = await archive();
    for (const end of [100, 511, 513, 700, 512 + 4999, 512 + 5001, 512 + 5120 + 100]) {
      await expect(entriesOf(pieces(whole.subarray(0, end)))).rejects.toThrow(IntegrityError);
    }
  });

  test.each([
    ["what is no tar archive", (whole: Buffer) => random(9).bytes(whole.byteLength)],
    ["a header with a flipped bit", (whole: Buffer) => flipped(whole, 110)],
  ])("refuses %s", async (_, damage) => {
    await expect(entriesOf(pieces(damage(await archive())))).rejects.toThrow(IntegrityError);
  });

  test.each([0, 300, 2000, 6000])("passes on a failure of its source after %i bytes as it is", async (bytes) => {
    const failing = async function* () {
      yield* pieces((await archive()).subarray(0, bytes));
      throw new RangeError("the connection broke");
    };
    await expect(entriesOf(failing())).rejects.toThrow(RangeError);
  });

  test("passes over content that nobody reads", async () => {
    const names: string[] = [];
    for await (const { name } of readTar(pieces(await archive()))) names.push(name.replace(/\/$/, ""));
    expect(names).toEqual(["/base/1/1259", "/pg_notify", LONG_NAME]);
  });

  test("gives pieces back in order, each once nothing of it is needed any more", async () => {
    const content = random(3).bytes(400_000);
    const written: Uint8Array[] = [];
    const tar = new TarWriter(async (bytes) => void written.push(Buffer.from(bytes)));
    for (const [name, size] of [
      ["one", 100_000],
      ["two", 7],
      ["three", 299_993],
    ] as const)
      await tar.add(header(name, size), [content.subarray(0, size)]);
    await tar.end();
    const given: Uint8Array[] = [];
    const source = async function* () {
      for await (const piece of pieces(Buffer.concat(written), 30_000)) {
        given.push(new Uint8Array(piece));
        yield given.at(-1) as Uint8Array;
      }
    };
    let released = 0;
    const sizes: number[] = [];
    const release = (piece: Uint8Array) => {
      expect(given.indexOf(piece)).toBe(released++);
      // As its memory would be when it is used for something else.
      piece.fill(0);
    };
    for await (const entry of readTar(source(), { release })) {
      let size = 0;
      for await (const bytes of entry.content) {
        await Bun.sleep(0);
        expect(Buffer.compare(bytes, content.subarray(size, size + bytes.byteLength))).toBe(0);
        size += bytes.byteLength;
      }
      sizes.push(size);
    }
    expect(sizes).toEqual([100_000, 7, 299_993]);
    expect(released).toBeGreaterThan(given.length - 4);
  });

  test("keeps few pieces of an archive without content, and gives none back that it forgot", async () => {
    const written: Uint8Array[] = [];
    const tar = new TarWriter(async (bytes) => void written.push(Buffer.from(bytes)));
    for (let n = 0; n < 100; n++) await tar.add(header(`empty ${n}`, 0));
    await tar.add(header("last", 3), [Buffer.from("abc")]);
    await tar.end();
    const released: Uint8Array[] = [];
    const source = async function* () {
      for await (const piece of pieces(Buffer.concat(written), 1_024)) yield new Uint8Array(piece);
    };
    for await (const entry of readTar(source(), { release: (piece) => void released.push(piece) }))
      for await (const bytes of entry.content) expect(Buffer.from(bytes).toString()).toBe("abc");
    expect(released.length).toBeLessThanOrEqual(4);
  });

  test.each([
    ["8 MiB, which no name has", "00040000000"],
    ["8 GiB, which memory would not hold", "77777777777"],
  ])("refuses an extended header of %s, before it is read", async (_, octal) => {
    const head = Buffer.from((await archive()).subarray(0, 512));
    head.write("x", 156, "latin1");
    head.write(octal, 124, "latin1");
    head.fill(" ", 148, 156);
    const sum = head.reduce((total, byte) => total + byte, 0);
    head.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1");
    let read = 0;
    const endless = async function* () {
      yield head;
      for (; read < 64; read++) yield Buffer.alloc(2 ** 20);
    };
    await expect(entriesOf(endless())).rejects.toThrow(IntegrityError);
    expect(read).toBeLessThan(8);
  });

  test("closes its source when nobody reads on", async () => {
    const source = { isClosed: false };
    const watched = async function* () {
      try {
        for (;;) yield* pieces((await archive()).subarray(0, 512 + 5120));
      } finally {
        source.isClosed = true;
      }
    };
    for await (const _ of readTar(watched())) break;
    await Bun.sleep(1);
    expect(source.isClosed).toBe(true);
  });
});

function flipped(bytes: Buffer, place: number): Buffer {
  const copy = Buffer.from(bytes);
  copy[place] = (copy[place] ?? 0) ^ 1;
  return copy;
}
