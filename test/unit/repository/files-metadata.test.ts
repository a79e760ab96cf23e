import { expect, test } from "bun:test";
import { IntegrityError, PostgresError } from "../../../src/errors.ts";
import { FilesMetadataWriter, filesOfFilesMetadata } from "../../../src/repository/files-metadata.ts";
import { expectGolden } from "../../support/golden.ts";

function metadata(): Uint8Array {
  const modifiedAt = new Date("2025-03-04T05:06:07.890Z");
  const writer = new FilesMetadataWriter();
  writer.add({
    part: "part_002.tar.zst",
    files: [
      { memberName: "/base/1/1259", modifiedAt },
      { memberName: '/base/1/"', modifiedAt },
    ],
  });
  writer.add({ part: "part_001.tar.zst", files: [] });
  writer.add({ part: "backup_label.tar.zst", files: [{ memberName: "backup_label", modifiedAt }] });
  return writer.finish();
}

test("FilesMetadataWriter writes what WAL-G restores by", () => {
  expectGolden("test/golden/files-metadata-format-1.json", new TextDecoder().decode(metadata()));
});

test("FilesMetadataWriter notes damaged pages as WAL-G does", () => {
  const writer = new FilesMetadataWriter();
  const damaged = { count: 12, blocks: [0, 7] };
  writer.add({ part: "part_001.tar.zst", files: [{ memberName: "/base/1/1259", modifiedAt: new Date(0), damaged }] });
  expect(JSON.parse(new TextDecoder().decode(writer.finish())).Files).toEqual({
    "/base/1/1259": {
      IsIncremented: false,
      IsSkipped: false,
      MTime: "1970-01-01T00:00:00.000Z",
      CorruptBlocks: { CorruptBlocksCount: 12, SomeCorruptBlocks: [0, 7] },
      UpdatesCount: 0,
    },
  });
});

test("FilesMetadataWriter refuses the file with which no restore would read it", () => {
  const maxBytes = 4000;
  const writer = new FilesMetadataWriter(maxBytes);
  const files = [{ memberName: "/base/1/ä", modifiedAt: new Date(0) }];
  const addAll = () => {
    for (let n = 0; n < 100; n++) writer.add({ part: `part_${n}.tar.zst`, files });
  };
  expect(addAll).toThrow(PostgresError);
  expect(writer.finish().byteLength).toBeGreaterThan(maxBytes - 1200);
  expect(writer.finish().byteLength).toBeLessThanOrEqual(maxBytes);
});

test("filesOfFilesMetadata() names every part in order, those without files too, and its members", () => {
  expect([...(filesOfFilesMetadata(metadata(), "it") ?? [])]).toEqual([
    ["backup_label.tar.zst", ["backup_label"]],
    ["part_001.tar.zst", []],
    ["part_002.tar.zst", ["/base/1/1259", '/base/1/"']],
  ]);
});

test.each(["{}", '{"TarFileSets":{}}', '{"TarFileSets":null}'])(
  "filesOfFilesMetadata() knows that %s does not say",
  (text) => {
    expect(filesOfFilesMetadata(Buffer.from(text), "it")).toBeUndefined();
  },
);

test.each([
  ["no JSON", "{"],
  ["a part in another folder", '{"TarFileSets":{"../../other/part_001.tar.zst":[]}}'],
  ["a part whose files are none", '{"TarFileSets":{"part_001.tar.zst":7}}'],
  ["a part whose files are nothing", '{"TarFileSets":{"part_001.tar.zst":null}}'],
])("filesOfFilesMetadata() refuses %s", (_, text) => {
  expect(() => filesOfFilesMetadata(Buffer.from(text), "it")).toThrow(IntegrityError);
});
