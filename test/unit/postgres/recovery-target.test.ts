import { describe, expect, test } from "bun:test";
import { type Failure, UsageError } from "../../../src/errors.ts";
import {
  describeTarget,
  formatTime,
  type Microseconds,
  microsecondsOf,
  parseRecoveryTarget,
  targetSetting,
} from "../../../src/postgres/recovery-target.ts";

describe("parseRecoveryTarget()", () => {
  test.each([
    ["latest", undefined, "the end of the archive"],
    ["LATEST", undefined, "the end of the archive"],
    ["immediate", "recovery_target = immediate", "the end of the backup"],
    ["0/3000060", "recovery_target_lsn = 0/3000060", "LSN 0/3000060"],
    ["1a/ff", "recovery_target_lsn = 1A/FF", "LSN 1A/FF"],
    ["731", "recovery_target_xid = 731", "transaction 731"],
    ["xid:731", "recovery_target_xid = 731", "transaction 731"],
    // strtoul() with base 0 would read an octal number.
    ["xid:0731", "recovery_target_xid = 731", "transaction 731"],
    // pg_current_xact_id() has the epoch in front, which PostgreSQL passes over.
    ["4294968027", "recovery_target_xid = 731", "transaction 731"],
    ["before_release", "recovery_target_name = before_release", 'restore point "before_release"'],
    ["name:latest", "recovery_target_name = latest", 'restore point "latest"'],
    ["name:it's 5 o'clock", "recovery_target_name = it's 5 o'clock", `restore point "it's 5 o'clock"`],
    ["name:xid:7", "recovery_target_name = xid:7", 'restore point "xid:7"'],
    ["2026-11-23 14:42:40+00", "recovery_target_time = 2026-11-23 14:42:40+00", "time 2026-11-23 14:42:40+00"],
    ["2026-11-23T14:42:40Z", "recovery_target_time = 2026-11-23 14:42:40+00", "time 2026-11-23 14:42:40+00"],
    ["2026-11-23 14:42 UTC", "recovery_target_time = 2026-11-23 14:42:00+00", "time 2026-11-23 14:42:00+00"],
    ["2026-11-23 14:42:40.5+02", "recovery_target_time = 2026-11-23 12:42:40.5+00", "time 2026-11-23 12:42:40.5+00"],
    [
      "2026-11-23T00:12:40.123456-05:30",
      "recovery_target_time = 2026-11-23 05:42:40.123456+00",
      "time 2026-11-23 05:42:40.123456+00",
    ],
    ["2026-01-01 00:30:00+0100", "recovery_target_time = 2025-12-31 23:30:00+00", "time 2025-12-31 23:30:00+00"],
    ["2028-02-29 00:00:00Z", "recovery_target_time = 2028-02-29 00:00:00+00", "time 2028-02-29 00:00:00+00"],
  ])("reads %p", (text, setting, described) => {
    const target = parseRecoveryTarget(text);
    expect(targetSetting(target)?.join(" = ")).toBe(setting as string);
    expect(describeTarget(target)).toBe(described);
  });

  test.each([
    ["", '"" is not a target'],
    ["2026-11-23 14:42:40", 'the time "2026-11-23 14:42:40" has no zone'],
    ["2026-11-23T14:42", 'the time "2026-11-23T14:42" has no zone'],
    ["2026-11-23", '"2026-11-23" is a day, and not a time'],
    ["2026-11-23Z", '"2026-11-23Z" is a day, and not a time'],
    ["2026-02-29 00:00:00Z", 'there is no time "2026-02-29 00:00:00Z"'],
    ["2026-11-23 24:00:01Z", 'there is no time "2026-11-23 24:00:01Z"'],
    ["2026-11-23 14:60:00Z", 'there is no time "2026-11-23 14:60:00Z"'],
    ["2026-11-23 14:42:40+16", 'there is no time "2026-11-23 14:42:40+16"'],
    // The zone has other names, and two meanings in one night of autumn.
    ["2026-11-23 14:42:40 Europe/Berlin", '"2026-11-23 14:42:40 Europe/Berlin" is not a target'],
    ["2026-11-23 14:42:40 CET", '"2026-11-23 14:42:40 CET" is not a target'],
    ["23.11.2026 14:42", '"23.11.2026 14:42" is not a target'],
    ["14:42", '"14:42" is not a target'],
    ["now", '"now" is not clear as a target'],
    ["Yesterday", '"Yesterday" is not clear as a target'],
    ["newest", '"newest" is not clear as a target'],
    ["0/", '"0/" is not a target'],
    ["0/3000060/1", '"0/3000060/1" is not a target'],
    ["2", '"2" is not the number of a transaction'],
    ["4294967296", '"4294967296" is not the number of a transaction'],
    ["xid:seven", '"xid:seven" is not the number of a transaction'],
    ["xid:99999999999999999999", '"xid:99999999999999999999" is not the number of a transaction'],
    ["name:", '"" cannot be the name of a restore point'],
    [`name:${"x".repeat(64)}`, `"${"x".repeat(64)}" cannot be the name of a restore point`],
    ["name:two\nlines", '"two\nlines" cannot be the name of a restore point'],
    ["before release", '"before release" is not a target'],
    [
      "base_000000010000000000000004",
      '"base_000000010000000000000004" is no target but the name of a backup or of a file of WAL',
    ],
    [
      "00000001000000000000000A",
      '"00000001000000000000000A" is no target but the name of a backup or of a file of WAL',
    ],
  ])("refuses %p, and says how", (text, message) => {
    let failure: unknown;
    try {
      parseRecoveryTarget(text);
    } catch (error) {
      failure = error;
    }
    expect(failure).toBeInstanceOf(UsageError);
    expect((failure as Failure).message).toBe(message);
    expect((failure as Failure).hint).toMatch(/\.$/);
  });

  test("formatTime() gives back what parseRecoveryTarget() read, to the microsecond", () => {
    for (const text of ["2026-11-23 14:42:40.000001+00", "1999-12-31 23:59:59.9+00", "2026-01-01 00:00:00+00"]) {
      const target = parseRecoveryTarget(text);
      expect(target.kind === "time" && formatTime(target.time)).toBe(text);
    }
    expect(formatTime(-1n as Microseconds)).toBe("1969-12-31 23:59:59.999999+00");
    // Damaged WAL may tell of any time.
    expect(formatTime((2n ** 62n) as Microseconds)).toStartWith("+148108-");
    expect(formatTime((2n ** 63n - 1n) as Microseconds)).toStartWith("+275760-");
    expect(formatTime(microsecondsOf(new Date("2026-11-23T14:42:40.120Z")))).toBe("2026-11-23 14:42:40.12+00");
  });
});
