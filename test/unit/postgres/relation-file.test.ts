import { describe, expect, test } from "bun:test";
import { isRelationFile, isTemporaryRelation, parseRelationFilePath } from "../../../src/postgres/relation-file.ts";

describe("parseRelationFilePath()", () => {
  test.each([
    // path, file number, fork, segment
    ["base/1/1259", 1259, "main", 0],
    ["base/16384/16385.2", 16385, "main", 2],
    ["base/16384/16385_fsm", 16385, "fsm", 0],
    ["base/16384/16385_vm.1", 16385, "vm", 1],
    ["base/16384/16385_init", 16385, "init", 0],
    ["global/1260", 1260, "main", 0],
    ["pg_tblspc/16400/PG_15_202209061/5/16401", 16401, "main", 0],
  ] as const)("%s is file %i, fork %s, segment %i", (path, fileNumber, fork, segment) => {
    expect(parseRelationFilePath(path)).toEqual({ fileNumber, fork, segment });
  });

  test.each([
    "base/1/PG_VERSION",
    "base/1/pg_filenode.map",
    "global/pg_control",
    "global/pg_control.old", // pgBackRest 17 took it for a relation
    "base/1/t3_16385", // temporary
    "base/1/1259.0", // the first segment has no number
    "base/1/01259",
    "base/1/1259_old",
    "pg_xact/0000",
    "1259",
    "base/1259",
    "pg_tblspc/16400/1259",
  ])("%s is no relation", (path) => {
    expect(isRelationFile(path)).toBe(false);
  });
});

test.each([
  ["t3_16385", true],
  ["t3_16385_fsm.1", true],
  ["t3", false],
  ["t3_16385_x", false],
  ["16385", false],
])("isTemporaryRelation(%j) is %p", (name, expected) => {
  expect(isTemporaryRelation(name)).toBe(expected);
});
