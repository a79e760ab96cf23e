/**
 * The edge of the process: argv, environment and signals come in here, the exit code goes out.
 *
 * Everything else is imported inside run(), so that not even a module that fails to load ends the process with Bun's own code
 * for what nobody caught, which is 1 and means "no such WAL" to recovery.
 */
import { readFileSync, writeSync } from "node:fs";
import { recoveryState, walFetchExitCode } from "./cli/recovery.ts";
import { DestinationError, exitCodeOf, InterruptedError, NotFoundError, reasonOf, systemCodeOf } from "./errors.ts";
import { createLog, type LogFormat } from "./system/log.ts";
import { printable } from "./system/printable.ts";
import { wasClosedAtStart } from "./system/standard-stream.ts";
import { StatusLine } from "./system/status-line.ts";
import { workingDirectory } from "./system/working-directory.ts";

/** Their numbers are the same everywhere (POSIX, kill); node:os, which knows them too, takes 0.2 ms to load. */
const STOPPED_BY = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGTERM: 15 };

const words = process.argv.slice(2);
const stop = new AbortController();
/** Asked for its width only when it shows something: making the stream takes 2 ms. */
const statusLine = new StatusLine(
  (text) => writeFully(2, text),
  () => process.stderr.columns,
);

/** Within it, a signal that comes again is the same: one supervisor sends it to the process and to its group. Later, it forces the end. */
const SAME_SIGNAL_MS = 1_000;

// PostgreSQL expects 128 + signal from a command it interrupted. A plain 1 from restore_command would read as "end of
// archive" (PostgreSQL, xlogarchive.c, RestoreArchivedFile).
for (const [name, number] of Object.entries(STOPPED_BY)) {
  // Whoever says nohup wants a backup to outlive the terminal. PostgreSQL says no such thing, and to find out takes 0.3 ms.
  if (name === "SIGHUP" && !isOfServer() && isIgnored(number)) continue;
  const onSignal = () => {
    stop.abort(new InterruptedError(name, number));
    setTimeout(() => process.off(name, onSignal), SAME_SIGNAL_MS).unref();
  };
  process.on(name, onSignal);
}

// A rejection nobody awaited would otherwise exit 1.
for (const event of ["uncaughtException", "unhandledRejection"] as const) process.on(event, fail);

process.exit(await run());

async function run(): Promise<number> {
  try {
    process.env["HOME"] ||= await homeOrRoot();
    const { runProgram } = await import("./cli/program.ts");
    await runProgram(words, {
      env: process.env,
      adoptVariables,
      workingDirectory: workingDirectory(process.cwd()),
      signal: stop.signal,
      now: () => new Date(),
      output: {
        // Asked for by few, and making the stream takes 2 ms.
        get isTerminal() {
          return process.stdout.isTTY === true;
        },
        write: writeOutput,
      },
      writeLog: writeMessage,
      get statusLine() {
        return process.stderr.isTTY && process.env["TERM"] !== "dumb" ? statusLine : undefined;
      },
    });
    return 0;
  } catch (error) {
    return fail(stop.signal.aborted ? stop.signal.reason : error);
  }
}

/** wal-push and wal-fetch, which a server starts for each segment, and wal-prefetch. */
function isOfServer(): boolean {
  return words.some((word) => word.startsWith("wal-"));
}

/** Whether the signal was ignored when this process was started. Linux says so in /proc. */
function isIgnored(signal: number): boolean {
  try {
    const [, mask = "0"] = /^SigIgn:\s*([0-9a-f]+)$/m.exec(readFileSync("/proc/self/status", "utf8")) ?? [];
    return ((BigInt(`0x${mask}`) >> BigInt(signal - 1)) & 1n) === 1n;
  } catch {
    return false;
  }
}

/** The AWS SDK looks for its files at home, whatever else is set, and fails where the account has neither a home nor a name, as in many a container. */
async function homeOrRoot(): Promise<string> {
  const { homedir } = await import("node:os");
  try {
    return homedir();
  } catch {
    return "/";
  }
}

/** What is not handed on by us, such as AWS_PROFILE, the AWS SDK looks for in the environment of the process. */
function adoptVariables(variables: Readonly<Record<string, string | undefined>>): void {
  for (const [name, value] of Object.entries(variables)) {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  }
}

/** Whatever goes wrong while it tells, the exit code is the one that counts. */
function fail(error: unknown): never {
  try {
    const log = createLog(writeMessage, {
      format: logFormat(),
      level: words.includes("--terse") ? "warning" : "info",
      now: () => new Date(),
    });
    // Every recovery asks for files that are not there, and ends with one: nothing is wrong.
    if (isWalFetch() && error instanceof NotFoundError) log.info(error.message);
    else log.error(error);
  } finally {
    process.exit(exitCode(error));
  }
}

function isWalFetch(): boolean {
  return words.includes("wal-fetch");
}

/** The command is not known for certain when its words were wrong; a word alone is enough to be careful. */
function exitCode(error: unknown): number {
  if (!isWalFetch()) return exitCodeOf(error);
  // The destination comes last, unless a flag does; which of the words are values of flags is not known here.
  const destinations = words.slice(words.indexOf("wal-fetch") + 1).filter((word) => !word.startsWith("-"));
  return walFetchExitCode(error, recoveryState(workingDirectory(process.cwd()), destinations.toReversed()));
}

/** Before the settings are read, or when they cannot be. */
function logFormat(): LogFormat {
  const flag = words.indexOf("--log-format");
  const asked =
    words.find((word) => word.startsWith("--log-format="))?.slice("--log-format=".length) ??
    (flag === -1 ? undefined : words[flag + 1]);
  const variables = ["WALB_LOG_FORMAT", "WALG_LOG_FORMAT", "WALE_LOG_FORMAT"].map((name) => process.env[name]);
  return (asked ?? variables.find(Boolean)) === "json" ? "json" : "text";
}

/** @throws DestinationError  a list that did not arrive must not pass for an empty one */
function writeOutput(text: string): void {
  if (wasClosedAtStart(1))
    throw new DestinationError("could not write to standard output", { detail: "It is closed." });
  try {
    writeFully(1, printable(text));
  } catch (cause) {
    // A reader that has seen enough, such as head, is no failure.
    if (systemCodeOf(cause) === "EPIPE") return;
    throw new DestinationError("could not write to standard output", { detail: `${reasonOf(cause)}.`, cause });
  }
}

/** Nobody can be told that telling failed. */
function writeMessage(record: string): void {
  try {
    statusLine.writeAbove(record);
  } catch {
    // The outcome stays what it is.
  }
}

/** writeSync, because process.exit() drops what process.stderr.write() has not yet put in the pipe. */
function writeFully(descriptor: number, text: string): void {
  const bytes = new TextEncoder().encode(text);
  for (let written = 0; written < bytes.length; ) {
    try {
      written += writeSync(descriptor, bytes, written);
    } catch (error) {
      // A pipe that is full and does not block asks to be tried again.
      if (systemCodeOf(error) !== "EAGAIN") throw error;
      Bun.sleepSync(5);
    }
  }
}
