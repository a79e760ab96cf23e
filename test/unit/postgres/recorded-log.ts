/** A log whose lines a test can compare, without their time. */
import { createLog, type Log } from "../../../src/system/log.ts";

export function recordedLog(): { readonly log: Log; readonly lines: string[] } {
  const lines: string[] = [];
  const log = createLog((record) => lines.push(record.replace("wal-b: ", "")), {
    format: "text",
    level: "info",
    now: () => new Date(0),
  });
  return { log, lines };
}
