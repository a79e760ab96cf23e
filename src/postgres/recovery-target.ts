/**
 * Where recovery ends: what a user says → one of PostgreSQL's recovery targets → its settings.
 *
 * What could mean two things is refused, because recovery cannot go back: a time without a zone, a word that is nearly one of
 * ours, a number with something behind it. Source: recovery_target_* in xlogrecovery.c, and their check hooks.
 */
import { UsageError } from "../errors.ts";
import { formatLsn, type Lsn, parseLsn } from "./lsn.ts";
import { parseWalFile } from "./wal-segment.ts";

/** Microseconds since 1970 in UTC: PostgreSQL's resolution, which Date has not. */
export type Microseconds = bigint & { readonly brand: "Microseconds" };

export type RecoveryTarget =
  /** The end of the archive. */
  | { readonly kind: "latest" }
  /** As soon as the backup is consistent. */
  | { readonly kind: "immediate" }
  | { readonly kind: "time"; readonly time: Microseconds }
  | { readonly kind: "lsn"; readonly lsn: Lsn }
  | { readonly kind: "xid"; readonly xid: number }
  /** Made by pg_create_restore_point(). */
  | { readonly kind: "name"; readonly name: string };

const WAYS =
  "Say latest, immediate, a time with its zone such as 2026-11-23 14:42:40+00, an LSN such as 0/3000060, xid:731, or name:before_release.";

const TIME =
  /^(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,6}))?)?)? ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?)?$/i;

/** Words that PostgreSQL or people take for times, and ours with other letters. */
const AMBIGUOUS = /^(now|today|tomorrow|yesterday|epoch|-?infinity|newest|last|end|current|none|default)$/i;

/** pg_create_restore_point() takes no longer ones (MAXFNAMELEN). */
const MAX_NAME_BYTES = 63;

/** @throws UsageError  it could mean something else, or nothing */
export function parseRecoveryTarget(text: string): RecoveryTarget {
  const [, kind, rest = ""] = /^(xid|name):(.*)$/s.exec(text) ?? [];
  if (kind === "name") return nameTarget(rest);
  if (kind === "xid") return xidTarget(rest, text);

  if (/^latest$/i.test(text)) return { kind: "latest" };
  if (/^immediate$/i.test(text)) return { kind: "immediate" };
  if (/^\d+$/.test(text)) return xidTarget(text, text);
  const lsn = parseLsn(text);
  if (lsn !== undefined) return { kind: "lsn", lsn };
  const time = TIME.exec(text);
  if (time) return timeTarget(text, time);
  return nameTarget(unambiguous(text));
}

function unambiguous(text: string): string {
  const hint = (what: string) => ({ hint: `${what} ${WAYS}` });
  if (AMBIGUOUS.test(text)) throw new UsageError(`"${text}" is not clear as a target`, hint("It could be a name."));
  if (/^base_[0-9A-F]{24}/.test(text) || parseWalFile(text) !== undefined) {
    throw new UsageError(`"${text}" is no target but the name of a backup or of a file of WAL`, {
      hint: "To restore a certain backup, say --backup. To stop when it is consistent, say --to immediate.",
    });
  }
  if (!/^[\p{L}_][\p{L}\p{N}_.-]*$/u.test(text)) throw new UsageError(`"${text}" is not a target`, { hint: WAYS });
  return text;
}

function nameTarget(name: string): RecoveryTarget {
  if (name === "" || new TextEncoder().encode(name).byteLength > MAX_NAME_BYTES || /[\0\n\r]/.test(name)) {
    throw new UsageError(`"${name}" cannot be the name of a restore point`, {
      hint: `A name has 1 to ${MAX_NAME_BYTES} bytes, on one line.`,
    });
  }
  return { kind: "name", name };
}

/** Below FirstNormalTransactionId nothing ever commits; above 32 bits there is the epoch, which PostgreSQL passes over. */
function xidTarget(digits: string, text: string): RecoveryTarget {
  const full = /^\d{1,20}$/.test(digits) ? BigInt(digits) : -1n;
  const xid = Number(BigInt.asUintN(32, full));
  if (full < 0n || full >= 1n << 64n || xid < 3) {
    throw new UsageError(`"${text}" is not the number of a transaction`, {
      hint: `It is what pg_current_xact_id() returns, or pg_waldump shows. ${WAYS}`,
    });
  }
  return { kind: "xid", xid };
}

function timeTarget(text: string, match: RegExpExecArray): RecoveryTarget {
  const [, year, month, day, hour, minute, second = "00", fraction = "", zone] = match;
  const refuse = (message: string, hint: string): never => {
    throw new UsageError(message, { hint });
  };
  if (hour === undefined) return refuse(`"${text}" is a day, and not a time`, WAYS);
  if (zone === undefined) {
    return refuse(
      `the time "${text}" has no zone`,
      `Write it with one: "${text}Z" or "${text}+00" for UTC, "${text}+01" for an hour east of it.`,
    );
  }
  const local = `${year}-${month}-${day}T${hour}:${minute}:${second}`;
  const date = new Date(`${local}Z`);
  const offsetMinutes = minutesOf(zone);
  // Date takes 31 February for 3 March.
  if (Number.isNaN(date.getTime()) || !date.toISOString().startsWith(local) || offsetMinutes === undefined)
    return refuse(`there is no time "${text}"`, WAYS);
  const seconds = BigInt(date.getTime() / 1000 - offsetMinutes * 60);
  return { kind: "time", time: (seconds * 1_000_000n + BigInt(fraction.padEnd(6, "0"))) as Microseconds };
}

/** East of UTC. */
function minutesOf(zone: string): number | undefined {
  const [, sign, hours, minutes = "00"] = /^([+-])(\d\d):?(\d\d)?$/.exec(zone) ?? [];
  if (sign === undefined) return 0;
  if (Number(hours) > 15 || Number(minutes) > 59) return undefined;
  return (sign === "-" ? -1 : 1) * (Number(hours) * 60 + Number(minutes));
}

export const microsecondsOf = (date: Date) => (BigInt(date.getTime()) * 1000n) as Microseconds;

/** What Date can hold; a record of damaged WAL may tell of any time. */
const MAX_SECONDS = 8_640_000_000_000n;

/** "2026-11-23 14:42:40.123456+00": what PostgreSQL reads whatever its timezone and datestyle are. */
export function formatTime(time: Microseconds): string {
  const fraction = ((time % 1_000_000n) + 1_000_000n) % 1_000_000n;
  const seconds = (time - fraction) / 1_000_000n;
  const shown = seconds > MAX_SECONDS ? MAX_SECONDS : seconds < -MAX_SECONDS ? -MAX_SECONDS : seconds;
  const text = new Date(Number(shown) * 1000)
    .toISOString()
    .replace(/\.\d+Z$/, "")
    .replace("T", " ");
  return `${text}${fraction === 0n ? "" : `.${String(fraction).padStart(6, "0").replace(/0+$/, "")}`}+00`;
}

/** For people: "time 2026-11-23 14:42:40+00". */
export function describeTarget(target: RecoveryTarget): string {
  switch (target.kind) {
    case "latest":
      return "the end of the archive";
    case "immediate":
      return "the end of the backup";
    case "time":
      return `time ${formatTime(target.time)}`;
    case "lsn":
      return `LSN ${formatLsn(target.lsn)}`;
    case "xid":
      return `transaction ${target.xid}`;
    case "name":
      return `restore point "${target.name}"`;
  }
}

/** The one setting that says where recovery ends; PostgreSQL refuses to start with two. */
export function targetSetting(target: RecoveryTarget): readonly [name: string, value: string] | undefined {
  switch (target.kind) {
    case "latest":
      return undefined;
    case "immediate":
      return ["recovery_target", "immediate"];
    case "time":
      return ["recovery_target_time", formatTime(target.time)];
    case "lsn":
      return ["recovery_target_lsn", formatLsn(target.lsn)];
    case "xid":
      return ["recovery_target_xid", String(target.xid)];
    case "name":
      return ["recovery_target_name", target.name];
  }
}
