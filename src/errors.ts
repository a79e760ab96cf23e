/** Every failure a user can see, and its exit code. docs/exit-codes.md is generated from EXIT_CODES. */

export interface FailureText {
  /** Whole sentences: what was found. */
  readonly detail?: string | undefined;
  /** Whole sentences: what to do next. */
  readonly hint?: string | undefined;
  readonly cause?: unknown;
}

/**
 * What a user reads when something could not be done, in PostgreSQL's message style: the message in lower case
 * without a full stop, detail and hint as whole sentences.
 */
export abstract class Failure extends Error {
  abstract readonly exitCode: number;
  readonly detail: string | undefined;
  readonly hint: string | undefined;

  constructor(message: string, { detail, hint, cause }: FailureText = {}) {
    super(message, { cause });
    this.name = new.target.name;
    this.detail = detail;
    this.hint = hint;
  }
}

/** The command line or a setting is wrong. Nothing was read or written. */
export class UsageError extends Failure {
  readonly exitCode = 64;
}

/** Bytes are not what they must be, or a name in the repository is taken by other content. */
export class IntegrityError extends Failure {
  readonly exitCode = 65;
}

/** A file to read is not there, or cannot be read. */
export class SourceMissingError extends Failure {
  readonly exitCode = 66;
}

/** The store failed, until the deadline or in a way that asking again does not change. What was being written may exist or not. */
export class StorageError extends Failure {
  readonly exitCode = 69;
}

/** A file could not be put in place on this machine. */
export class DestinationError extends Failure {
  readonly exitCode = 73;
}

/** The store answered, and the answer was "no such key". The only failure that may mean "end of WAL". */
export class NotFoundError extends Failure {
  readonly exitCode = 74;
}

/** The server cannot be reached, or is not in the state the command needs. */
export class PostgresError extends Failure {
  readonly exitCode = 76;
}

/** The store refused the credentials, or there are none. */
export class AccessError extends Failure {
  readonly exitCode = 77;
}

/** A signal asked the program to stop. `exitCode` is 128 + the signal's number, as PostgreSQL expects. */
export class InterruptedError extends Failure {
  readonly exitCode: number;

  constructor(signalName: string, signalNumber: number) {
    super(`interrupted by ${signalName}`);
    this.exitCode = 128 + signalNumber;
  }
}

/** EX_SOFTWARE: what was thrown is not a Failure and so a bug of ours. */
export const EXIT_BUG = 70;

/**
 * wal-fetch could not find out whether the file exists, and this is recovery. Above 125, so that PostgreSQL stops
 * instead of promoting; not 126, 127, 137 or 143, which PostgreSQL or the shell give other meanings.
 */
export const EXIT_RECOVERY_MUST_STOP = 200;

/** The table of docs/exit-codes.md; a test keeps codes unique, not 1, and (but for recovery) below 126. */
export const EXIT_CODES: readonly { readonly code: number; readonly name: string; readonly meaning: string }[] = [
  { code: 0, name: "done", meaning: "the store confirmed it, or the file is in place" },
  { code: 64, name: "UsageError", meaning: "the command line or a setting is wrong; nothing was read or written" },
  { code: 65, name: "IntegrityError", meaning: "damaged or foreign bytes, or the name is taken by other content" },
  { code: 66, name: "SourceMissingError", meaning: "the file to read is not there or cannot be read" },
  { code: 69, name: "StorageError", meaning: "the store failed, until the deadline or for good" },
  { code: EXIT_BUG, name: "bug", meaning: "an unexpected failure in wal-b; please report it" },
  { code: 73, name: "DestinationError", meaning: "a file could not be put in place on this machine" },
  { code: 74, name: "NotFoundError", meaning: "the store proved that the file or backup is not there" },
  { code: 76, name: "PostgresError", meaning: "the server is unreachable or not in the state the command needs" },
  { code: 77, name: "AccessError", meaning: "the store refused the credentials, or there are none" },
  {
    code: EXIT_RECOVERY_MUST_STOP,
    name: "recovery must stop",
    meaning: "wal-fetch could not find out whether the file exists, and this is recovery",
  },
];

/** What the program exits with. */
export function exitCodeOf(error: unknown): number {
  return error instanceof Failure ? error.exitCode : EXIT_BUG;
}

/** What the user reads: PostgreSQL's three parts, or the whole stack of a bug. */
export function textOf(error: unknown): string {
  if (!(error instanceof Failure)) {
    return `unexpected failure, please report it: ${error instanceof Error ? error.stack : String(error)}`;
  }
  const { message, detail, hint } = error;
  return [message, detail && `DETAIL: ${detail}`, hint && `HINT: ${hint}`].filter(Boolean).join("\n");
}

/** Message and detail, to be told within another message. */
export const sentencesOf = ({ message, detail }: Failure): string => [`${message}.`, detail].filter(Boolean).join(" ");

/** The short form of a cause for a DETAIL: its code and message, never its stack. Bun has no words of its own for EDQUOT. */
export function reasonOf(cause: unknown): string {
  if (!(cause instanceof Error)) return String(cause);
  const code = "code" in cause && typeof cause.code === "string" ? cause.code : undefined;
  const message = cause.message.replace("EDQUOT: unknown error", "EDQUOT: disk quota exceeded");
  return code && !message.includes(code) ? `${code}: ${message}` : message;
}

/** The `code` of a Node.js system error (ENOENT, ENOSPC …), if that is what it is. */
export function systemCodeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
