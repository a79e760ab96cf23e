import { describe, expect, test } from "bun:test";
import { type Failure, IntegrityError, PostgresError } from "../../../src/errors.ts";
import { BackupManifestWriter, parseBackupManifest } from "../../../src/postgres/backup-manifest.ts";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { expectGolden } from "../../support/golden.ts";

const sha256 = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest("hex");

/** To the second, as in the text. */
const MODIFIED_AT = new Date("2025-03-04T05:06:07Z");

function manifest(major: number): string {
  const writer = new BackupManifestWriter();
  const modifiedAt = new Date("2025-03-04T05:06:07.890Z");
  writer.add({ path: "base/1/1259", sizeBytes: 114_688, modifiedAt, sha256: sha256("a") });
  writer.add({ path: 'pg_tblspc/16388/PG_18_202506291/5/"quoted"', sizeBytes: 0, modifiedAt, sha256: sha256("") });
  const wal = { timeline: 3, startLsn: asLsn(0x16_b374_d848n), endLsn: asLsn(0x16_b400_0000n) };
  return writer.finish({ major, systemIdentifier: 7420325342344323423n, wal });
}

describe("BackupManifestWriter", () => {
  test.each([
    [16, "version-1"],
    [18, "version-2"],
  ])("writes for major %i what pg_verifybackup of that release reads", (major, version) => {
    expectGolden(`test/golden/backup-manifest-${version}.json`, manifest(major));
  });

  test("writes a manifest for a backup without files", () => {
    const wal = { timeline: 1, startLsn: asLsn(0n), endLsn: asLsn(1n) };
    const text = new BackupManifestWriter().finish({ major: 18, systemIdentifier: 1n, wal });
    expect(parseBackupManifest(text).size).toBe(0);
  });

  test("refuses the file with which no restore would read it", () => {
    const maxBytes = 4000;
    const writer = new BackupManifestWriter(maxBytes);
    const add = () => writer.add({ path: "base/1/ä", sizeBytes: 0, modifiedAt: MODIFIED_AT, sha256: sha256("") });
    const failure = refusalOf(() => {
      for (let n = 0; n < 100; n++) add();
    });
    expect(failure).toBeInstanceOf(PostgresError);
    expect(failure.detail).toStartWith("backup_manifest, the list of them, would have more than");
    const wal = { timeline: 1, startLsn: asLsn(0n), endLsn: asLsn(2n ** 64n - 1n) };
    const { byteLength } = Buffer.from(writer.finish({ major: 18, systemIdentifier: 2n ** 64n - 1n, wal }));
    expect(byteLength).toBeGreaterThan(maxBytes - 1200);
    expect(byteLength).toBeLessThanOrEqual(maxBytes);
  });
});

function refusalOf(work: () => void): Failure {
  try {
    work();
  } catch (error) {
    return error as Failure;
  }
  throw new Error("it was not refused");
}

describe("parseBackupManifest()", () => {
  test("gives back sizes and checksums, by path", () => {
    expect([...parseBackupManifest(manifest(18))]).toEqual([
      ["base/1/1259", { sizeBytes: 114_688, modifiedAt: MODIFIED_AT, sha256: sha256("a") }],
      ['pg_tblspc/16388/PG_18_202506291/5/"quoted"', { sizeBytes: 0, modifiedAt: MODIFIED_AT, sha256: sha256("") }],
    ]);
  });

  test.each([
    ["a changed size", (text: string) => text.replace("114688", "114689"), "Its own checksum is wrong."],
    ["a missing end", (text: string) => text.slice(0, -10), "Its own checksum is wrong."],
    ["something behind the end", (text: string) => `${text} `, "Its own checksum is wrong."],
    ["nothing", () => "", "Its own checksum is wrong."],
    ["another checksum algorithm", (text: string) => signed(text.replaceAll("SHA256", "CRC32C")), "with a SHA-256"],
    ["no files", (text: string) => signed(text.replace('"Files"', '"Flies"')), 'It has no "Files".'],
    ["a size that is none", (text: string) => signed(text.replace("114688", '"114688"')), "Entry 1 of"],
    ["an entry that is nothing", (text: string) => signed(text.replace('"Files": [', '"Files": [null,')), "Entry 1 of"],
  ])("refuses %s", (_, change, detail) => {
    let thrown: unknown;
    try {
      parseBackupManifest(change(manifest(18)));
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(IntegrityError);
    expect((thrown as Failure).detail).toContain(detail);
  });
});

/** The same text with the checksum that it has to have. */
function signed(text: string): string {
  const body = text.slice(0, text.lastIndexOf('"Manifest-Checksum"'));
  return `${body}"Manifest-Checksum": "${sha256(body)}"}\n`;
}
