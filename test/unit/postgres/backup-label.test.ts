import { describe, expect, test } from "bun:test";
import { IntegrityError } from "../../../src/errors.ts";
import { parseBackupLabel } from "../../../src/postgres/backup-label.ts";
import { formatTablespaceMap, parseTablespaceMap } from "../../../src/postgres/tablespace-map.ts";

const LABEL = `START WAL LOCATION: 1/2000028 (file 000000030000000100000002)
CHECKPOINT LOCATION: 1/2000060
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2025-11-23 14:22:01 UTC
LABEL: nightly: second
START TIMELINE: 3
`;

describe("parseBackupLabel()", () => {
  test("reads every line", () => {
    expect(parseBackupLabel(LABEL)).toEqual({
      startLsn: 0x1_0200_0028n as never,
      startSegment: "000000030000000100000002",
      checkpointLsn: 0x1_0200_0060n as never,
      backupMethod: "streamed",
      backupFrom: "primary",
      startTime: "2025-11-23 14:22:01 UTC",
      label: "nightly: second",
      startTimeline: 3,
    });
  });

  test.each([
    ["primary", "primary"],
    ["master", "primary"], // until 14
    ["standby", "standby"],
  ])("BACKUP FROM: %s is a %s", (text, expected) => {
    expect(parseBackupLabel(LABEL.replace("FROM: primary", `FROM: ${text}`)).backupFrom as string).toBe(expected);
  });

  test("takes bytes, and the incremental line of 17", () => {
    expect(parseBackupLabel(Buffer.from(`${LABEL}INCREMENTAL FROM LSN: 0/1\n`)).startTimeline).toBe(3);
  });

  test("refuses a label without any one of its lines", () => {
    const lines = LABEL.trimEnd().split("\n");
    for (const missing of lines) {
      const text = lines.filter((line) => line !== missing).join("\n");
      expect(() => parseBackupLabel(text)).toThrow(IntegrityError);
    }
  });
});

describe("tablespace_map", () => {
  test.each([
    ["", []],
    ["16384 /mnt/one\n", [{ oid: 16384, location: "/mnt/one" }]],
    [
      "1 /a b\n2 /c\n",
      [
        { oid: 1, location: "/a b" },
        { oid: 2, location: "/c" },
      ],
    ],
    [
      "1 /line\\\nend\n2 /c\n",
      [
        { oid: 1, location: "/line\nend" },
        { oid: 2, location: "/c" },
      ],
    ],
    ["1 /back\\\\slash\n", [{ oid: 1, location: "/back\\slash" }]],
    [
      "1 /ends\\\\\n2 /c\n",
      [
        { oid: 1, location: "/ends\\" },
        { oid: 2, location: "/c" },
      ],
    ],
  ])("%j is read and written back", (text, links) => {
    expect(parseTablespaceMap(text)).toEqual(links);
    expect(formatTablespaceMap(links)).toBe(text);
  });

  test("of majors before 14 may have backslashes that escape nothing", () => {
    expect(parseTablespaceMap("1 /a\\b\n")).toEqual([{ oid: 1, location: "/a\\b" }]);
  });

  test("gives every location back, whatever it is made of", () => {
    const alphabet = ["\\", "\n", "\r", "a", " ", "/"];
    let seed = 7;
    const next = () => {
      seed = (seed * 48271) % 2147483647;
      return seed % alphabet.length;
    };
    for (let round = 0; round < 500; round++) {
      const location = `/${Array.from({ length: 6 }, () => alphabet[next()]).join("")}`;
      const links = [
        { oid: 1, location },
        { oid: 2, location: "/x" },
      ];
      expect(parseTablespaceMap(formatTablespaceMap(links))).toEqual(links);
    }
  });

  test.each(["16384\n", "x /mnt\n", "16384 \n"])("refuses the line %j", (text) => {
    expect(() => parseTablespaceMap(text)).toThrow(IntegrityError);
  });
});
