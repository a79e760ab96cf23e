import { describe, expect, test } from "bun:test";
import { StorageError } from "../../../src/errors.ts";
import { createLog, type LogFormat, type LogLevel } from "../../../src/system/log.ts";

function logged(format: LogFormat, level: LogLevel): string[] {
  const records: string[] = [];
  const log = createLog((record) => records.push(record), {
    format,
    level,
    now: () => new Date("2025-03-04T05:06:07Z"),
  });
  log.error(new StorageError("could not write", { detail: "It is full.", hint: "Free some space." }));
  log.error(new StorageError("could not read"));
  log.warning("careful", { hint: "Look." });
  log.info('archived "x"');
  log.debug("asked");
  return records;
}

describe("createLog()", () => {
  test("writes PostgreSQL's three parts as text", () => {
    expect(logged("text", "debug")).toEqual([
      "wal-b: ERROR: could not write\n  DETAIL: It is full.\n  HINT: Free some space.",
      "wal-b: ERROR: could not read",
      "wal-b: WARNING: careful\n  HINT: Look.",
      'wal-b: INFO: archived "x"',
      "wal-b: DEBUG: asked",
    ]);
  });

  test("writes nothing that a terminal obeys as text, and lines as they are", () => {
    const records: string[] = [];
    createLog((record) => records.push(record), { format: "text", level: "info", now: () => new Date() }).info(
      'read "\u001b[2K\r\u009bx"\nand\tmore',
    );
    expect(records).toEqual(['wal-b: INFO: read "\ufffd[2K\ufffd\ufffdx"\nand\tmore']);
  });

  test("writes nothing that a terminal obeys as JSON either, and all that was said", () => {
    const records: string[] = [];
    const message = "read \u001b[2K\u009b\u007f";
    createLog((record) => records.push(record), { format: "json", level: "info", now: () => new Date(0) }).info(
      message,
    );
    expect(records[0]).not.toMatch(/\p{Cc}/u);
    expect(JSON.parse(records[0] ?? "")).toMatchObject({ message });
  });

  test("writes one object a record as JSON", () => {
    const time = "2025-03-04T05:06:07.000Z";
    expect(logged("json", "debug").map((record) => JSON.parse(record))).toEqual([
      { time, level: "error", message: "could not write", detail: "It is full.", hint: "Free some space." },
      { time, level: "error", message: "could not read" },
      { time, level: "warning", message: "careful", hint: "Look." },
      { time, level: "info", message: 'archived "x"' },
      { time, level: "debug", message: "asked" },
    ]);
  });

  test.each([
    ["error", 2],
    ["warning", 3],
    ["info", 4],
    ["debug", 5],
  ] as const)("leaves out what is less important than %s", (level, records) => {
    expect(logged("text", level)).toHaveLength(records);
  });

  test("shows the stack of a bug and asks to report it", () => {
    const records: string[] = [];
    createLog((record) => records.push(record), { format: "json", level: "error", now: () => new Date(0) }).error(
      new TypeError("undefined is not a function"),
    );
    const { message } = JSON.parse(records[0] ?? "") as { readonly message: string };
    expect(message).toStartWith("unexpected failure, please report it: ");
    expect(message).toContain("log.test.ts");
  });
});
