/** A log whose every line a test names, in order: lines nobody expected fail the test. */
import { expect } from "bun:test";
import { createLog, type Log } from "../../src/system/log.ts";

export interface RecordingLog {
  readonly log: Log;
  /** Every record since the last call, without the program's name; then starts afresh. */
  expectLog(...expected: readonly string[]): void;
}

export function recordingLog(): RecordingLog {
  let records: string[] = [];
  const log = createLog((record) => records.push(record.replace(/^wal-b: /, "")), {
    format: "text",
    level: "debug",
    now: () => new Date(0),
  });
  return {
    log,
    expectLog(...expected) {
      expect(records).toEqual([...expected]);
      records = [];
    },
  };
}
