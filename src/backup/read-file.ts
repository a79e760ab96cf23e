/**
 * One file of a running server, read as exactly the bytes that its tar header promises.
 *
 * PostgreSQL goes on writing: a file that grows is cut at the size it had when it was opened, one that shrinks is filled up
 * with zeros, and one that vanishes is passed over. WAL replay settles all three.
 */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";

/** A multiple of every size that a page can have. */
export const READ_BYTES = 1024 * 1024;

export interface OpenDataFile extends AsyncDisposable {
  readonly sizeBytes: number;
  /** To be read once. Every piece but the last has READ_BYTES. */
  content(stopped: AbortSignal): AsyncGenerator<Uint8Array>;
  /** Fills `into` with what is there now. @returns fewer bytes at the end of the file */
  read(into: Uint8Array, at: number): Promise<number>;
}

/** @returns undefined when the file is gone */
export async function openDataFile(path: string): Promise<OpenDataFile | undefined> {
  const file = await openOrNothing(path);
  if (file === undefined) return undefined;
  const { size } = await file.stat();
  return {
    sizeBytes: size,
    content: (stopped) => exactly(size, file, path, stopped),
    read: (into, at) => readAt(file, into, at, path),
    [Symbol.asyncDispose]: () => file.close(),
  };
}

async function openOrNothing(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOCTTY | constants.O_NONBLOCK);
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return undefined;
    const denied = systemCodeOf(cause) === "EACCES";
    throw new SourceMissingError(`could not open "${path}"`, {
      detail: `${reasonOf(cause)}.`,
      ...(denied && { hint: "Run wal-b as the account that owns the data directory, usually postgres." }),
      cause,
    });
  }
}

async function* exactly(
  sizeBytes: number,
  file: FileHandle,
  path: string,
  stopped: AbortSignal,
): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < sizeBytes; ) {
    stopped.throwIfAborted();
    const buffer = Buffer.allocUnsafeSlow(Math.min(READ_BYTES, sizeBytes - at));
    buffer.fill(0, await readAt(file, buffer, at, path));
    yield buffer;
    at += buffer.byteLength;
  }
}

async function readAt(file: FileHandle, into: Uint8Array, at: number, path: string): Promise<number> {
  try {
    for (let filled = 0; ; ) {
      const { bytesRead } = await file.read(into, filled, into.byteLength - filled, at + filled);
      filled += bytesRead;
      if (bytesRead === 0 || filled === into.byteLength) return filled;
    }
  } catch (cause) {
    throw new SourceMissingError(`could not read "${path}"`, { detail: `At byte ${at}: ${reasonOf(cause)}.`, cause });
  }
}
