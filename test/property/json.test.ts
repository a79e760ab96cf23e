/** The repository's JSON, ours and WAL-G's: what is written is read again, and damage is refused by name. */
import { expect } from "bun:test";
import { IntegrityError, UsageError } from "../../src/errors.ts";
import {
  BackupManifestWriter,
  type BackupManifestWriter as Manifest,
  parseBackupManifest,
} from "../../src/postgres/backup-manifest.ts";
import { asLsn } from "../../src/postgres/lsn.ts";
import { type SegmentSize, segmentHolding } from "../../src/postgres/wal-segment.ts";
import { FilesMetadataWriter, filesOfFilesMetadata } from "../../src/repository/files-metadata.ts";
import { type BackupName, backupNameOf, parseBackupName } from "../../src/repository/keys.ts";
import {
  decodePermanence,
  decodeSentinel,
  encodeMetadata,
  encodeSentinel,
  type Sentinel,
  withPermanence,
} from "../../src/repository/sentinel.ts";
import { anyText, damagedBytes, damagedJson } from "../support/damage.ts";
import { readGolden } from "../support/golden.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";

const URL = "s3://bucket/object";
const utf8 = (text: string) => new TextEncoder().encode(text);
const WAL_G = parseBackupName("base_000000010000000000000004") as BackupName;

/** Whole letters only: a lone surrogate has no UTF-8. */
const text = (random: Random) => anyText(random).toWellFormed();
const path = (random: Random) => `/${text(random)}`;
const date = (random: Random) => new Date(random.below(2 ** 32) * 1000 + random.below(1000));
const size = (random: Random) => Number(random.bigint(random.pick([0, 10, 52])));

function sentinel(random: Random): { readonly backup: BackupName; readonly sentinel: Sentinel } {
  const segmentSize = (2 ** (20 + random.below(11))) as SegmentSize;
  const timeline = 1 + random.below(2 ** 32 - 1);
  const startLsn = asLsn(random.bigint(random.pick([40, 63])));
  const backup = parseBackupName(backupNameOf(segmentHolding(timeline, startLsn, segmentSize).name)) as BackupName;
  const tablespaces = [...new Set(random.list(5, () => String(1 + random.below(2 ** 32 - 1))))];
  return {
    backup,
    sentinel: {
      ...{ startLsn, timeline, segmentSize },
      stopLsn: asLsn(startLsn + random.bigint(20)),
      systemIdentifier: random.bigint(64),
      pgVersion: 120000 + random.below(70000),
      startedAt: date(random),
      finishedAt: date(random),
      hostname: text(random),
      dataDirectory: path(random),
      uncompressedBytes: size(random),
      compressedBytes: size(random),
      isPermanent: random.once(2),
      tablespaces: tablespaces.map((oid) => ({ oid, location: path(random) })),
      walB: { version: text(random), parts: random.below(100_000), manifestSha256: text(random) },
    },
  };
}

/** Damage of one of three kinds: to its bytes, to its values, or to both. */
function damaged(document: Uint8Array, random: Random): Uint8Array {
  if (random.once(4)) return damagedBytes(document, random);
  const changed = utf8(damagedJson(new TextDecoder().decode(document), random));
  return random.once(4) ? damagedBytes(changed, random) : changed;
}

property("a sentinel reads as it was written", (random) => {
  const { backup, sentinel: written } = sentinel(random);
  expect(decodeSentinel(backup, encodeSentinel(written), URL)).toEqual(written);
});

property("a damaged sentinel, ours or WAL-G's, tells of possible values or is refused", async (random) => {
  const ours = sentinel(random);
  const [backup, body] = random.once(2)
    ? [ours.backup, encodeSentinel(ours.sentinel)]
    : [WAL_G, readGolden("test/golden/wal-g-3.0-sentinel.json")];
  const read = await answerOf([IntegrityError, UsageError], () => decodeSentinel(backup, damaged(body, random), URL));
  if (read === undefined) return;
  expect(read.startLsn <= read.stopLsn).toBe(true);
  expect(segmentHolding(read.timeline, read.startLsn, read.segmentSize).name).toBe(backup.startSegment);
  // What lists and plans do with it.
  encodeSentinel(read);
  encodeMetadata(read);
});

property("metadata keeps its permanence, and what it does not know, through a change", async (random) => {
  const { sentinel: written } = sentinel(random);
  const metadata = encodeMetadata(written);
  expect(decodePermanence(metadata, URL)).toBe(written.isPermanent);
  expect(withPermanence(metadata, URL, written.isPermanent)).toEqual(metadata);
  const changed = withPermanence(metadata, URL, !written.isPermanent);
  expect(decodePermanence(changed, URL)).toBe(!written.isPermanent);
  expect(withPermanence(changed, URL, written.isPermanent)).toEqual(metadata);

  const body = damaged(random.once(2) ? metadata : readGolden("test/golden/wal-g-3.0-metadata.json"), random);
  await answerOf([IntegrityError], () => decodePermanence(body, URL));
  const again = await answerOf([IntegrityError], () => withPermanence(body, URL, true));
  if (again) expect(decodePermanence(again, URL)).toBe(true);
});

property("the lists of files read as they were written; damaged ones are lists, or are refused", async (random) => {
  const parts = new Map(
    random.list(
      6,
      () => [text(random).replaceAll("/", "_"), [...new Set(random.list(8, () => path(random)))]] as const,
      1,
    ),
  );
  const writer = new FilesMetadataWriter();
  for (const [part, members] of parts)
    writer.add({ part, files: members.map((memberName) => ({ memberName, modifiedAt: date(random) })) });
  const body = writer.finish();
  expect(new Map(filesOfFilesMetadata(body, URL))).toEqual(new Map([...parts].toSorted()));

  const source = random.once(3) ? readGolden("test/golden/files-metadata-format-1.json") : body;
  const read = await answerOf([IntegrityError], () => filesOfFilesMetadata(damaged(source, random), URL));
  for (const [part, members] of read ?? []) {
    expect(part).not.toContain("/");
    expect(members.every((member) => typeof member === "string")).toBe(true);
  }
});

const sha256 = (content: string) => new Bun.CryptoHasher("sha256").update(content).digest("hex");

/** The manifest's own checksum is right again: what a hostile archive would take care of. */
function resealed(manifest: string): string {
  const end = manifest.lastIndexOf('"Manifest-Checksum"');
  const body = end < 0 ? `${manifest}, ` : manifest.slice(0, end);
  return `${body}"Manifest-Checksum": "${sha256(body)}"}\n`;
}

property(
  "a backup manifest reads as it was written; a damaged one is refused, whatever its checksum",
  async (random) => {
    const files = new Map(
      random.list(20, () => {
        const modifiedAt = new Date(Math.floor(date(random).getTime() / 1000) * 1000);
        return [text(random), { sizeBytes: size(random), modifiedAt, sha256: sha256(text(random)) }] as const;
      }),
    );
    const writer: Manifest = new BackupManifestWriter();
    for (const [name, file] of files) writer.add({ path: name, ...file });
    const wal = { timeline: 1 + random.below(9), startLsn: asLsn(random.bigint(64)), endLsn: asLsn(random.bigint(64)) };
    const manifest = writer.finish({ major: 12 + random.below(7), systemIdentifier: random.bigint(64), wal });
    expect(new Map(parseBackupManifest(manifest))).toEqual(files);

    const bytes = new TextDecoder().decode(damagedBytes(utf8(manifest), random));
    const other = await answerOf([IntegrityError], () => parseBackupManifest(bytes));
    if (other) expect(bytes).toBe(manifest);

    const read = await answerOf([IntegrityError], () => parseBackupManifest(resealed(damagedJson(manifest, random))));
    for (const file of read?.values() ?? []) {
      expect(Number.isSafeInteger(file.sizeBytes)).toBe(true);
      expect(typeof file.sha256).toBe("string");
    }
  },
);
