/** What lies in the store, under every damage: nothing but the content that was stored ever comes out of it. */
import { expect } from "bun:test";
import { mkdir, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { createZstdCompress } from "node:zlib";
import { PG_CONTROL_UNTIL_COMPLETE, RestoredFiles, unpackPart } from "../../src/backup/unpack.ts";
import { ContentEncoder, decodeContent, decodeStream, encodeContent } from "../../src/codec/content.ts";
import { readTar, TarWriter } from "../../src/codec/tar.ts";
import { openZstd } from "../../src/codec/zstd.ts";
import { DestinationError, IntegrityError, NotFoundError } from "../../src/errors.ts";
import { PG_CONTROL_PATH } from "../../src/postgres/pg-control.ts";
import { parseWalFile } from "../../src/postgres/wal-segment.ts";
import { walKey } from "../../src/repository/keys.ts";
import { openWalArchive } from "../../src/repository/wal-archive.ts";
import { anyText, damagedBytes } from "../support/damage.ts";
import { recordingLog } from "../support/expect-log.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";
import { readWhole } from "../support/read-chunks.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";
import { historyContent, MiB, sourceOf, walContent } from "../support/wal-content.ts";

const zstd = await openZstd(3);
const sha256 = (content: Uint8Array) => new Bun.CryptoHasher("sha256").update(content).digest("hex");

function contentOf(random: Random): Uint8Array {
  const size = random.pick([0, 1, 100, 5_000, 300_000]);
  return random.once(2)
    ? random.bytes(random.below(size + 1))
    : Buffer.alloc(random.below(size + 1), random.below(256));
}

async function* pieces(bytes: Uint8Array, random: Random): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.byteLength; ) {
    const length = 1 + random.below(random.pick([3, 1_000, 100_000]));
    yield bytes.slice(at, at + length);
    at += length;
  }
}

/** What another tool writes: one frame that may state neither its content's size nor a checksum of it. */
async function foreignFrame(content: Uint8Array): Promise<Uint8Array> {
  const chunks: Buffer[] = [];
  const compress = new PassThrough().end(content).pipe(createZstdCompress());
  for await (const chunk of compress) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

property("content comes back as it went in, in whatever pieces", async (random) => {
  const content = contentOf(random);
  const body = random.once(3) ? await foreignFrame(content) : await encodeContent(content, zstd);
  expect(Buffer.compare(await decodeContent(body, zstd, content.byteLength), content)).toBe(0);
  const decoded: Uint8Array[] = [];
  for await (const piece of decodeStream(pieces(body, random), zstd, { framesInFlight: 3 })) decoded.push(piece);
  expect(Buffer.compare(Buffer.concat(decoded), content)).toBe(0);
  if (content.byteLength > 0)
    expect(await answerOf([IntegrityError], () => decodeContent(body, zstd, content.byteLength - 1))).toBeUndefined();
});

property("damaged frames are refused, and never become more than is allowed", async (random) => {
  const bodies = await Promise.all([encodeContent(contentOf(random), zstd), foreignFrame(contentOf(random))]);
  const damaged = damagedBytes(random.pick(bodies), random, bodies);
  const content = await answerOf([IntegrityError], () => decodeContent(damaged, zstd, MiB));
  expect(content?.byteLength ?? 0).toBeLessThanOrEqual(MiB);
  await answerOf([IntegrityError], async () => {
    for await (const _ of decodeStream(pieces(damaged, random), zstd, { framesInFlight: 2, maxBytes: MiB }));
  });
});

property(
  "an archived file comes back as it was archived, or not at all",
  async (random) => {
    const name = random.pick([
      "000000010000000000000004",
      "000000010000000000000004.partial",
      "00000002.history",
      "000000010000000000000004.00000028.backup",
    ]);
    const file = parseWalFile(name) as NonNullable<ReturnType<typeof parseWalFile>>;
    const content =
      file.kind === "history"
        ? historyContent()
        : file.kind === "backup"
          ? Buffer.from("START WAL LOCATION: 0/4000028")
          : walContent(name, { fill: random.below(256) });
    const store = new MemoryObjectStore();
    const archive = openWalArchive(store, async () => zstd);
    await archive.putIfAbsent(await archive.prepare(file, sourceOf(content)));
    expect(Buffer.compare(await readWhole(archive.read(file)), content)).toBe(0);

    const { body, metadata } = await store.get(walKey(name), 2 * MiB);
    const other = await encodeContent(walContent("000000010000000000000005"), zstd);
    await store.replace(walKey(name), damagedBytes(body, random, [other]), metadata);
    const read = await answerOf([IntegrityError, NotFoundError], () => readWhole(archive.read(file)));
    if (read) expect(Buffer.compare(read, content)).toBe(0);
  },
  { oneOf: 2 },
);

interface Member {
  readonly name: string;
  readonly type: "file" | "directory";
  readonly content: Uint8Array;
}

/** Names that a backup has, and names that lead elsewhere. */
function memberName(random: Random): string {
  const hostile = [
    "/../escaped",
    "..",
    "/",
    "//",
    "/a/../../b",
    "/./a",
    "/a//b",
    "/a\0b",
    `/${"x".repeat(300)}`,
    `/${"d/".repeat(200)}`,
    "/a",
  ];
  const usual = [
    "/base/1/1259",
    "/base/1",
    "/global/pg_control",
    "/pg_notify",
    "backup_label",
    "tablespace_map",
    "/PG_VERSION",
  ];
  return random.pick([...usual, ...usual, ...hostile, `/${anyText(random).toWellFormed()}`]);
}

async function tarOf(members: readonly Member[]): Promise<Uint8Array> {
  const written: Uint8Array[] = [];
  const tar = new TarWriter(async (bytes) => void written.push(Buffer.from(bytes)));
  for (const { name, type, content } of members) {
    const header = { name, type, sizeBytes: content.byteLength, mode: 0o600, uid: 0, gid: 0, modifiedAt: new Date(0) };
    await tar.add(header, [content]);
  }
  await tar.end();
  return Buffer.concat(written);
}

/** The checksums of headers are right again: what a hostile archive would take care of. */
function withRightChecksums(tar: Uint8Array): Uint8Array {
  const bytes = Buffer.from(tar);
  for (let at = 0; at + 512 <= bytes.byteLength; at += 512) {
    if (bytes.toString("latin1", at + 257, at + 262) !== "ustar") continue;
    bytes.fill(" ", at + 148, at + 156);
    const sum = bytes.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
    bytes.write(`${sum.toString(8).padStart(6, "0")}\0 `, at + 148);
  }
  return bytes;
}

async function* zstdOf(tar: Uint8Array): AsyncGenerator<Uint8Array> {
  const frames: Uint8Array[] = [];
  const encoder = new ContentEncoder(zstd, async (frame) => void frames.push(frame), 2);
  await encoder.write(tar);
  await encoder.end();
  yield* frames;
}

property(
  "members come back as they went in; a damaged archive has members, or is refused",
  async (random) => {
    const file = (): Member => ({
      name: `/${anyText(random, 60).toWellFormed().replaceAll("\0", "") || "x"}`,
      type: "file",
      content: contentOf(random),
    });
    const members = random.list(6, file);
    const tar = await tarOf(members);
    const read: Member[] = [];
    for await (const { name, type, content } of readTar(pieces(tar, random))) {
      const chunks: Uint8Array[] = [];
      for await (const chunk of content) chunks.push(Buffer.from(chunk));
      read.push({ name, type: type as Member["type"], content: Buffer.concat(chunks) });
    }
    expect(read.map(({ name, content }) => `${name} ${sha256(content)}`)).toEqual(
      members.map(({ name, content }) => `${name} ${sha256(content)}`),
    );

    const damaged = damagedBytes(tar, random);
    await answerOf([IntegrityError], async () => {
      for await (const { sizeBytes, mode, modifiedAt, content } of readTar(
        pieces(random.once(2) ? damaged : withRightChecksums(damaged), random),
      )) {
        expect(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0 && mode >= 0).toBe(true);
        expect(Number.isNaN(modifiedAt.getTime())).toBe(false);
        if (random.once(2)) for await (const _ of content);
      }
    });
  },
  { oneOf: 2 },
);

property(
  "nothing is unpacked outside of the target, and no file that the manifest does not have",
  async (random) => {
    await using directory = await temporaryDirectory();
    const target = join(directory.path, "target");
    await mkdir(target);
    const members = random.list(6, (): Member => {
      const name = memberName(random);
      return random.once(4)
        ? { name, type: "directory", content: Buffer.alloc(0) }
        : { name, type: "file", content: contentOf(random) };
    });
    const plain = await tarOf(members);
    const tar = random.once(2) ? plain : withRightChecksums(damagedBytes(plain, random));
    const files = members.filter(({ type }) => type === "file");
    const expected = new Map(
      files.map(
        ({ name, content }) =>
          [
            name.replace(/^\/+/, ""),
            { sizeBytes: content.byteLength, modifiedAt: new Date(0), sha256: sha256(content) },
          ] as const,
      ),
    );
    const withManifest = random.once(2);
    const restored = new RestoredFiles(withManifest ? expected : undefined);
    const isDone = await answerOf([IntegrityError, DestinationError], async () => {
      await unpackPart(zstdOf(tar), {
        ...{ target, zstd, restored, complete: new Set(), owner: undefined, log: recordingLog().log },
        progress: { expect() {}, advance() {} },
        expected: withManifest ? expected : undefined,
        signal: new AbortController().signal,
      });
      return true;
    });
    expect(await readdir(directory.path)).toEqual(["target"]);
    if (!isDone || !withManifest) return;
    const entries = await readdir(target, { recursive: true, withFileTypes: true });
    for (const entry of entries.filter((each) => each.isFile())) {
      const path = join(entry.parentPath, entry.name);
      const below = path.slice(target.length + 1);
      // It gets its name when everything is complete.
      const name = below === PG_CONTROL_UNTIL_COMPLETE ? PG_CONTROL_PATH : below;
      expect({ name, sha256: sha256(await readFile(path)) }).toEqual({
        name,
        sha256: expected.get(name)?.sha256 as string,
      });
    }
  },
  { oneOf: 2 },
);
