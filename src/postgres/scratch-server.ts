/**
 * A server on a throw-away copy, which ends with us, whatever we die of.
 *
 * It is started by a shell that waits for it, and that holds the other end of a pipe from us: when the pipe closes, because we
 * are done or were killed, the server is told to stop.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { reasonOf } from "../errors.ts";
import { abortableDelay } from "../system/delay.ts";
import { readPostmasterPid } from "./postmaster-pid.ts";
import { type RecoveryTold, ServerLog } from "./server-log.ts";

export interface ScratchServerStart {
  readonly bin: string;
  readonly dataDirectory: string;
  readonly configFile: string;
  readonly logFile: string;
  /** undefined: this one. */
  readonly account: { readonly uid: number; readonly gid: number } | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * $1 and so on are the server. Standard input is the pipe; a signal's name may come through it. More than one signal, because a
 * shell starts what is in the background deaf to them, and the server hears them a little later; at last one that needs no ears.
 */
const SCRIPT = `exec 3<&0
"$@" 3<&- </dev/null & server=$!
{
  read -r signal <&3
  signals=0
  while kill -"\${signal:-QUIT}" "$server"; do
    signals=$((signals + 1))
    if [ "$signals" -ge 60 ]; then signal=KILL; fi
    sleep 1
  done
} >/dev/null 2>&1 & guard=$!
exec 3<&-
wait "$server"; code=$?
kill "$guard" 2>/dev/null
exit "$code"`;

const POLL_MS = 50;

/** Disposing it stops the server at once: its directory is of no more use. */
export class ScratchServer implements AsyncDisposable {
  readonly log: ServerLog;
  readonly #dataDirectory: string;
  readonly #shell: ChildProcess;
  readonly #ended: Promise<void>;
  #failure: unknown;
  #hasEnded = false;

  constructor({ bin, dataDirectory, configFile, logFile, account, env }: ScratchServerStart) {
    this.log = new ServerLog(logFile);
    this.#dataDirectory = dataDirectory;
    const log = openSync(logFile, "a", 0o600);
    try {
      const server = [join(bin, "postgres"), "-D", dataDirectory, "-c", `config_file=${configFile}`];
      this.#shell = spawn("/bin/sh", ["-c", SCRIPT, "wal-b drill", ...server], {
        cwd: "/",
        env: { ...env },
        stdio: ["pipe", log, log],
        // A terminal's Ctrl-C is for us, and we tell the server.
        detached: true,
        ...account,
      });
    } finally {
      closeSync(log);
    }
    this.#shell.stdin?.on("error", () => undefined);
    this.#ended = new Promise<void>((resolve) => {
      this.#shell.once("error", (error) => {
        this.#failure = error;
        resolve();
      });
      this.#shell.once("exit", () => resolve());
    }).then(() => {
      this.#hasEnded = true;
    });
  }

  /**
   * @param onPoll  is told what the log says, again and again
   * @returns when it accepts connections, or has ended by itself
   * @throws the signal's reason
   */
  async settled(signal: AbortSignal, onPoll: (told: RecoveryTold) => void): Promise<"ready" | "ended"> {
    for (;;) {
      // First, so that what is read of its log then is all there is.
      const hasEnded = this.#hasEnded;
      onPoll(await this.log.read());
      if (hasEnded) return "ended";
      if (readPostmasterPid(this.#dataDirectory)?.status === "ready") return "ready";
      await abortableDelay(POLL_MS, signal);
    }
  }

  /** Why not even the shell could be started. */
  get failure(): string | undefined {
    return this.#failure === undefined ? undefined : reasonOf(this.#failure);
  }

  /** Orderly, for a directory that is kept. */
  async shutDown(): Promise<void> {
    await this.#end("INT");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#end("");
  }

  async #end(signal: "INT" | ""): Promise<void> {
    if (this.#hasEnded) return;
    const { stdin } = this.#shell;
    if (signal === "") stdin?.end();
    else stdin?.end(`${signal}\n`);
    await this.#ended;
  }
}
