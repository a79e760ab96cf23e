/**
 * The marker in a directory that is being restored: which backup, where its tablespaces go, and which parts are unpacked.
 * What --resume goes on from; it is gone when the restore is complete.
 *
 * One JSON document a line, each appended at once; what a kill or a power cut left of the last one is passed over. Nothing in
 * it is trusted for content: files are compared with the manifest again. No base backup takes the directory ".wal-b" along.
 *
 * It is also what keeps two restores out of one directory. Who begins creates it, which only one can; who goes on appends
 * itself, and reads it back: of those that run it belongs to the first. Appends of one host to one file are one behind the
 * other, on NFS too, so that two that append at once see the same order. Of another host's processes nothing is known.
 */
import { constants, readFileSync } from "node:fs";
import { type FileHandle, open, readFile, rm, rmdir, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { DestinationError, systemCodeOf } from "../errors.ts";
import { isProcessRunning } from "../postgres/postmaster-pid.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
import { writeFully } from "../system/write-fully.ts";
import { makeDirectories, type Owner } from "./owner.ts";

const FORMAT_VERSION = 1;
const MAX_MARKER_BYTES = 64 * 2 ** 20;

/** Relative to the target. */
export const MARKER_DIRECTORY = ".wal-b";
export const MARKER = `${MARKER_DIRECTORY}/unfinished-restore`;

/** What is restored, and to where. */
export interface RestoreIdentity {
  readonly backup: string;
  /** Tells backups of one name apart; undefined when the backup has no manifest, and then nothing can be resumed. */
  readonly manifestSha256: string | undefined;
  /** Where it comes from, for messages. */
  readonly repository: string;
  readonly tablespaces: readonly { readonly oid: string; readonly place: string }[];
}

/** A part that was unpacked to its end, and the directories that are in it. */
export interface UnpackedPart {
  readonly part: string;
  readonly directories: readonly string[];
}

interface Runner {
  readonly hostname: string;
  readonly processId: number;
  /** As the kernel counts it, so that a number that is used again is another process; undefined where it does not say. */
  readonly started: string | undefined;
}

export interface InterruptedRestore {
  readonly identity: RestoreIdentity;
  readonly beganAt: Date;
  /** By their names. */
  readonly unpacked: ReadonlyMap<string, UnpackedPart>;
  /** Directories that were made for the target and its tablespaces. */
  readonly madeDirectories: readonly string[];
}

type Line =
  | ({ readonly formatVersion: number; readonly beganAt: string } & RestoreIdentity)
  | { readonly runBy: Runner }
  | { readonly madeDirectories: readonly string[] }
  | UnpackedPart;

/** The marker of this restore, to be added to. */
export class RestoreMarker implements AsyncDisposable {
  readonly #target: string;
  readonly #file: FileHandle;

  private constructor(target: string, file: FileHandle) {
    this.#target = target;
    this.#file = file;
  }

  /** @throws DestinationError  another restore began meanwhile, or the file system refuses */
  static async begin(
    target: string,
    identity: RestoreIdentity,
    { now, owner }: { readonly now: Date; readonly owner: Owner | undefined },
  ): Promise<RestoreMarker> {
    const directory = join(target, MARKER_DIRECTORY);
    await makeDirectories(directory, owner).catch((cause: unknown) => {
      throw destinationError(`could not create "${directory}"`, cause);
    });
    const marker = await RestoreMarker.#open(target, constants.O_CREAT | constants.O_EXCL);
    if (owner) await marker.#writing((file) => file.chown(owner.uid, owner.gid));
    // At once: with the first alone it would look as if nobody were at it.
    const first = lineOf({ formatVersion: FORMAT_VERSION, beganAt: now.toISOString(), ...identity });
    await marker.#append(first + lineOf({ runBy: THIS_PROCESS }));
    return marker;
  }

  /**
   * Takes possession of a restore that was interrupted, before what it left is looked at: that takes long, and is true only
   * while nobody else changes it.
   *
   * @returns undefined when none was interrupted here
   * @throws DestinationError  another process has it, or the marker cannot be read or written
   */
  static async takeOver(target: string): Promise<InterruptedRestore | undefined> {
    const interrupted = await readInterruptedRestore(target);
    if (interrupted === undefined) return undefined;
    await using marker = await RestoreMarker.#open(target, 0);
    // Ends what a kill may have left of a line.
    await marker.#append(`\n${lineOf({ runBy: THIS_PROCESS })}`);
    await checkOurs(target);
    return interrupted;
  }

  /** Of a restore that this process took over. @throws DestinationError  it is not this process's any more */
  static async resume(target: string): Promise<RestoreMarker> {
    await checkOurs(target);
    return await RestoreMarker.#open(target, 0);
  }

  static async #open(target: string, flags: number): Promise<RestoreMarker> {
    const path = join(target, MARKER);
    try {
      const file = await open(path, constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW | flags, 0o600);
      return new RestoreMarker(target, file);
    } catch (cause) {
      if (systemCodeOf(cause) === "EEXIST") throw isAtIt(target, (await runnersOf(target))?.find(isRunning));
      throw destinationError(`could not write "${path}"`, cause);
    }
  }

  async unpacked(part: UnpackedPart): Promise<void> {
    await this.#append(lineOf(part));
  }

  async madeDirectories(madeDirectories: readonly string[]): Promise<void> {
    if (madeDirectories.length > 0) await this.#append(lineOf({ madeDirectories }));
  }

  async #append(text: string): Promise<void> {
    await this.#writing((file) => writeFully(file, new TextEncoder().encode(text)));
  }

  async #writing(work: (file: FileHandle) => Promise<unknown>): Promise<void> {
    try {
      await work(this.#file);
    } catch (cause) {
      throw destinationError(`could not write "${join(this.#target, MARKER)}"`, cause);
    }
  }

  /** Before what is there becomes a data directory. @throws DestinationError  it is not this process's any more */
  async checkOurs(): Promise<void> {
    await checkOurs(this.#target);
  }

  /** The restore is complete. */
  async remove(): Promise<void> {
    try {
      await rm(join(this.#target, MARKER));
      await rmdir(join(this.#target, MARKER_DIRECTORY));
      await syncDirectory(this.#target);
    } catch (cause) {
      if (systemCodeOf(cause) === "ENOENT") throw notOurs(this.#target);
      throw destinationError(`could not remove "${join(this.#target, MARKER)}"`, cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

/**
 * Only reads: who goes on with it takes possession (RestoreMarker.takeOver).
 *
 * @returns undefined when no restore was interrupted here
 * @throws DestinationError  one is still running, or the marker cannot be read
 */
export async function readInterruptedRestore(target: string): Promise<InterruptedRestore | undefined> {
  const path = join(target, MARKER);
  const all = await readLines(path);
  if (all === undefined) return undefined;
  const [first, ...lines] = all;
  if (first === undefined || !("formatVersion" in first)) throw unusable(path, "It does not say of which backup.");
  if (first.formatVersion !== FORMAT_VERSION)
    throw unusable(path, `It has format version ${first.formatVersion}; this program knows ${FORMAT_VERSION}.`);

  // Not only the last one: behind the one that has it may be some that yielded to it.
  const running = runnersIn(lines).find(isRunning);
  if (running) throw isAtIt(target, running);
  const { backup, manifestSha256, repository, tablespaces } = first;
  return {
    identity: { backup, manifestSha256, repository, tablespaces },
    beganAt: new Date(first.beganAt),
    unpacked: new Map(lines.filter((line) => "part" in line).map((line) => [line.part, line])),
    madeDirectories: lines.flatMap((line) => ("madeDirectories" in line ? line.madeDirectories : [])),
  };
}

/** Whether this process is one of those that the marker names. */
export const namesThisProcess = async (target: string): Promise<boolean> =>
  (await runnersOf(target).catch(() => undefined))?.some(isThisProcess) ?? false;

/** @throws DestinationError  the marker is gone, another process has it, or it cannot be read */
async function checkOurs(target: string): Promise<void> {
  const runners = (await runnersOf(target)) ?? [];
  const ours = runners.findIndex(isThisProcess);
  if (ours === -1) throw notOurs(target);
  // One of another host that came later saw nothing of this process.
  const other = runners.slice(0, ours).find(isRunning) ?? runners.slice(ours).find((runner) => !isOfThisHost(runner));
  if (other) throw isAtIt(target, other);
}

const notOurs = (target: string) =>
  new DestinationError(`the restore into "${target}" is not this process's any more`, {
    detail: `"${join(target, MARKER)}" is gone, or does not name process ${process.pid}. What is there stays as it is.`,
    hint: "See whether another restore has ended there, or somebody has emptied the directory.",
  });

/** @param runner  undefined when it has not got so far that it says which process it is */
function isAtIt(target: string, runner: Runner | undefined): DestinationError {
  const where = runner && !isOfThisHost(runner) ? ` on "${runner.hostname}"` : "";
  return new DestinationError(`a restore into "${target}" is running`, {
    detail: runner ? `Its process is ${runner.processId}${where}.` : "It began at this moment.",
    hint: "Wait for it, or end it first.",
  });
}

const runnersOf = async (target: string): Promise<readonly Runner[] | undefined> => {
  const lines = await readLines(join(target, MARKER));
  return lines && runnersIn(lines);
};

const runnersIn = (lines: readonly Line[]) => lines.flatMap((line) => ("runBy" in line ? [line.runBy] : []));

/** @returns undefined when there is no marker */
async function readLines(path: string): Promise<readonly Line[] | undefined> {
  try {
    if ((await stat(path)).size > MAX_MARKER_BYTES) throw unusable(path, "It is too large.");
    return (await readFile(path, "utf8")).split("\n").flatMap(parseLine);
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return undefined;
    throw cause instanceof DestinationError ? cause : destinationError(`could not read "${path}"`, cause);
  }
}

function unusable(path: string, detail: string): DestinationError {
  return new DestinationError("the restore that was interrupted cannot be resumed", {
    detail: `"${path}": ${detail}`,
    hint: "Empty the directory, and restore from the beginning.",
  });
}

const lineOf = (line: Line) => `${JSON.stringify(line)}\n`;

/** What a kill left of a line is none. */
function parseLine(text: string): readonly Line[] {
  try {
    return text === "" ? [] : [JSON.parse(text) as Line];
  } catch {
    return [];
  }
}

/** Asked once: a host may get another name while it restores. */
const THIS_PROCESS: Runner = { hostname: hostname(), processId: process.pid, started: startOf(process.pid) };

const isOfThisHost = (runner: Runner) => runner.hostname === THIS_PROCESS.hostname;

const isThisProcess = (runner: Runner) =>
  isOfThisHost(runner) && runner.processId === THIS_PROCESS.processId && runner.started === THIS_PROCESS.started;

const isRunning = (runner: Runner) =>
  isOfThisHost(runner) &&
  runner.processId !== process.pid &&
  isProcessRunning(runner.processId) &&
  isSameStart(runner.started, startOf(runner.processId));

/** Where the kernel does not say, as with hidepid for another account, the number alone counts. */
const isSameStart = (noted: string | undefined, found: string | undefined) =>
  noted === undefined || found === undefined || noted === found;

/** Linux only. Source: proc_pid_stat(5): field 22, the 20th behind the name in parentheses. */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}
