/**
 * What a server's log tells of its recovery, read as it grows.
 * The texts are those of lc_messages C, the same from 12 to 18; source: xlog.c, xlogrecovery.c, xlogarchive.c.
 */
import { open } from "node:fs/promises";
import { type Lsn, parseLsn } from "./lsn.ts";

export interface LogMoment {
  readonly lsn: Lsn;
  readonly at: Date;
}

export interface RecoveryTold {
  readonly redoStart?: LogMoment;
  readonly redoDone?: LogMoment;
  /** Recovery stopped at its target. */
  readonly stoppedAtTarget?: true;
  /** The last segment that was taken from the archive. */
  readonly lastRestored?: string;
  /** restore_command ended in a way that recovery does not take for "there is no such file". */
  readonly notRestored?: string;
}

const TIME = "(\\d{4}-\\d\\d-\\d\\d \\d\\d:\\d\\d:\\d\\d\\.\\d{3}) UTC LOG: +";
const REDO_START = new RegExp(`^${TIME}redo starts at ([0-9A-F/]+)`);
const REDO_DONE = new RegExp(`^${TIME}redo done at ([0-9A-F/]+)`);
const STOPPED = / LOG: +recovery stopping (?:before|after|at) /;
const RESTORED = / LOG: +restored log file "([0-9A-F]{24})" from archive/;
const NOT_RESTORED = / FATAL: +could not restore file "([0-9A-F.a-z]+)" from archive/;

/** Lines that are kept, for messages. */
const LAST_LINES = 12;
const READ_BYTES = 64 * 1024;
const LONGEST_LINE = 8 * 1024;

export class ServerLog {
  readonly path: string;
  #told: RecoveryTold = {};
  #position = 0;
  #rest = "";
  #lines: string[] = [];

  constructor(path: string) {
    this.path = path;
  }

  /** Reads what has come since the last call. */
  async read(): Promise<RecoveryTold> {
    const file = await open(this.path, "r");
    try {
      const buffer = Buffer.alloc(READ_BYTES);
      for (;;) {
        const { bytesRead } = await file.read(buffer, 0, READ_BYTES, this.#position);
        if (bytesRead === 0) return this.#told;
        this.#position += bytesRead;
        const lines = (this.#rest + buffer.toString("latin1", 0, bytesRead)).split("\n");
        this.#rest = (lines.pop() ?? "").slice(-LONGEST_LINE);
        for (const line of lines) this.#take(line.slice(0, LONGEST_LINE));
      }
    } finally {
      await file.close();
    }
  }

  /** The end of it, without what is said of each segment. */
  get lastLines(): string {
    return this.#lines.join("\n");
  }

  includes(text: RegExp): boolean {
    return text.test(this.lastLines);
  }

  #take(line: string): void {
    const restored = RESTORED.exec(line)?.[1];
    if (restored !== undefined) {
      this.#told = { ...this.#told, lastRestored: restored };
      return;
    }
    if (/^wal-b: INFO: /.test(line)) return;
    this.#lines = [...this.#lines, line].slice(-LAST_LINES);
    const [redoStart, redoDone, notRestored] = [
      momentOf(REDO_START, line),
      momentOf(REDO_DONE, line),
      NOT_RESTORED.exec(line)?.[1],
    ];
    this.#told = {
      ...this.#told,
      ...(redoStart && { redoStart }),
      ...(redoDone && { redoDone }),
      ...(STOPPED.test(line) && { stoppedAtTarget: true }),
      ...(notRestored && { notRestored }),
    };
  }
}

function momentOf(pattern: RegExp, line: string): LogMoment | undefined {
  const [, time, text] = pattern.exec(line) ?? [];
  const lsn = parseLsn(text ?? "");
  return time === undefined || lsn === undefined ? undefined : { lsn, at: new Date(`${time.replace(" ", "T")}Z`) };
}
