/** One line per event on stderr, for people (text) or machines (json); the text is reviewed like an interface. */
import { Failure, textOf } from "../errors.ts";
import { escapedJson, printable } from "./printable.ts";

export type LogFormat = "text" | "json";
export type LogLevel = "error" | "warning" | "info" | "debug";

export interface Log {
  error(failure: unknown): void;
  warning(message: string, text?: { readonly detail?: string; readonly hint?: string }): void;
  info(message: string): void;
  /** Shown with --verbose only. */
  debug(message: string): void;
}

export interface LogOptions {
  readonly format: LogFormat;
  /** The least important level that is written. */
  readonly level: LogLevel;
  readonly now: () => Date;
}

/** For a second look at what is told the first time. */
export const SILENT: Log = { error() {}, warning() {}, info() {}, debug() {} };

const RANK: Record<LogLevel, number> = { error: 0, warning: 1, info: 2, debug: 3 };

/** @param write  takes one record, without a line end; a text record may hold several lines */
export function createLog(write: (record: string) => void, { format, level, now }: LogOptions): Log {
  const emit = (
    at: LogLevel,
    message: string,
    text: { readonly detail?: string | undefined; readonly hint?: string | undefined } = {},
  ) => {
    if (RANK[at] > RANK[level]) return;
    if (format === "json") {
      write(escapedJson(JSON.stringify({ time: now().toISOString(), level: at, message, ...text })));
    } else {
      const lines = [message, text.detail && `DETAIL: ${text.detail}`, text.hint && `HINT: ${text.hint}`];
      write(printable(`wal-b: ${at.toUpperCase()}: ${lines.filter(Boolean).join("\n  ")}`));
    }
  };

  return {
    error: (failure) =>
      failure instanceof Failure
        ? emit("error", failure.message, { detail: failure.detail, hint: failure.hint })
        : emit("error", textOf(failure)),
    warning: (message, text) => emit("warning", message, text),
    info: (message) => emit("info", message),
    debug: (message) => emit("debug", message),
  };
}
