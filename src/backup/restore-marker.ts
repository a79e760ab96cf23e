/**
 * The marker in a directory that is being restored: which backup, where its tablespaces go, and which parts are unpacked.
 * What --resume goes on from; it is gone when the restore is complete.
 *
 * One JSON document a line, each appended at once; what a kill or a power cut left of the last one is passed over. Nothing in
 * it is trusted for content: files are compared with the manifest again. No base backup takes the directory ".wal-b" along.
 */
import { constants, readFileSync } from "node:fs";
import { type FileHandle, open, readFile, rm, rmdir, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { DestinationError, systemCodeOf } from "../errors.ts";
import { isProcessRunning } from "../postgres/postmaster-pid.ts";
import { destinationError, syncDirectory } from "../system/atomic-file.ts";
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

  /** @throws DestinationError  the file system refuses */
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
    await marker.#append({ formatVersion: FORMAT_VERSION, beganAt: now.toISOString(), ...identity });
    await marker.#append({ runBy: thisProcess() });
    return marker;
  }

  static async resume(target: string): Promise<RestoreMarker> {
    const marker = await RestoreMarker.#open(target, 0);
    // Ends what a kill may have left of a line.
    await marker.#writing((file) => file.write("\n"));
    await marker.#append({ runBy: thisProcess() });
    return marker;
  }

  static async #open(target: string, flags: number): Promise<RestoreMarker> {
    const path = join(target, MARKER);
    try {
      const file = await open(path, constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW | flags, 0o600);
      return new RestoreMarker(target, file);
    } catch (cause) {
      throw destinationError(`could not write "${path}"`, cause);
    }
  }

  async unpacked(part: UnpackedPart): Promise<void> {
    await this.#append(part);
  }

  async madeDirectories(madeDirectories: readonly string[]): Promise<void> {
    if (madeDirectories.length > 0) await this.#append({ madeDirectories });
  }

  async #append(line: Line): Promise<void> {
    await this.#writing((file) => file.write(`${JSON.stringify(line)}\n`));
  }

  async #writing(work: (file: FileHandle) => Promise<unknown>): Promise<void> {
    try {
      await work(this.#file);
    } catch (cause) {
      throw destinationError(`could not write "${join(this.#target, MARKER)}"`, cause);
    }
  }

  /** The restore is complete. */
  async remove(): Promise<void> {
    try {
      await rm(join(this.#target, MARKER));
      await rmdir(join(this.#target, MARKER_DIRECTORY));
      await syncDirectory(this.#target);
    } catch (cause) {
      throw destinationError(`could not remove "${join(this.#target, MARKER)}"`, cause);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

export const hasMarker = async (target: string): Promise<boolean> =>
  (await stat(join(target, MARKER)).catch(() => undefined)) !== undefined;

/**
 * @returns undefined when no restore was interrupted here
 * @throws DestinationError  one is still running, or the marker cannot be read
 */
export async function readInterruptedRestore(target: string): Promise<InterruptedRestore | undefined> {
  const path = join(target, MARKER);
  let text: string;
  try {
    if ((await stat(path)).size > MAX_MARKER_BYTES) throw unusable(path, "It is too large.");
    text = await readFile(path, "utf8");
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return undefined;
    throw cause instanceof DestinationError ? cause : destinationError(`could not read "${path}"`, cause);
  }
  const [first, ...lines] = text.split("\n").flatMap(parseLine);
  if (first === undefined || !("formatVersion" in first)) throw unusable(path, "It does not say of which backup.");
  if (first.formatVersion !== FORMAT_VERSION)
    throw unusable(path, `It has format version ${first.formatVersion}; this program knows ${FORMAT_VERSION}.`);

  const last = lines.findLast((line) => "runBy" in line);
  if (last && isRunning(last.runBy)) {
    throw new DestinationError(`a restore into "${target}" is running`, {
      detail: `Its process is ${last.runBy.processId}.`,
      hint: "Wait for it, or end it first.",
    });
  }
  const { backup, manifestSha256, repository, tablespaces } = first;
  return {
    identity: { backup, manifestSha256, repository, tablespaces },
    beganAt: new Date(first.beganAt),
    unpacked: new Map(lines.filter((line) => "part" in line).map((line) => [line.part, line])),
    madeDirectories: lines.flatMap((line) => ("madeDirectories" in line ? line.madeDirectories : [])),
  };
}

function unusable(path: string, detail: string): DestinationError {
  return new DestinationError("the restore that was interrupted cannot be resumed", {
    detail: `"${path}": ${detail}`,
    hint: "Empty the directory, and restore from the beginning.",
  });
}

/** What a kill left of a line is none. */
function parseLine(text: string): readonly Line[] {
  try {
    return text === "" ? [] : [JSON.parse(text) as Line];
  } catch {
    return [];
  }
}

const thisProcess = (): Runner => ({
  hostname: hostname(),
  processId: process.pid,
  started: startOf(process.pid),
});

const isRunning = ({ hostname: host, processId, started }: Runner) =>
  host === hostname() && processId !== process.pid && isProcessRunning(processId) && startOf(processId) === started;

/** Linux only. Source: proc_pid_stat(5): field 22, the 20th behind the name in parentheses. */
function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  } catch {
    return undefined;
  }
}
