/**
 * One file of a running server, read as exactly the bytes that its tar header promises.
 *
 * PostgreSQL goes on writing: a file that grows is cut at the size it had when it was opened, one that shrinks is filled up
 * with zeros, and one that vanishes is passed over. WAL replay settles all three.
 */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { reasonOf, SourceMissingError, systemCodeOf } from "../errors.ts";

const READ_BYTES = 512 * 1024;

export interface OpenDataFile extends AsyncDisposable {
  readonly sizeBytes: number;
  /** To be read once. */
  content(stopped: AbortSignal): AsyncGenerator<Uint8Array>;
}

/** @returns undefined when the file is gone */
export async function openDataFile(path: string): Promise<OpenDataFile | undefined> {
  const file = await openOrNothing(path);
  if (file === undefined) return undefined;
  const { size } = await file.stat();
  return {
    sizeBytes: size,
    content: (stopped) => exactly(size, file, path, stopped),
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
    const bytesRead = await readAt(file, buffer, at, path);
    if (bytesRead === 0) return yield* zeros(sizeBytes - at);
    at += bytesRead;
    yield buffer.subarray(0, bytesRead);
  }
}

async function readAt(file: FileHandle, buffer: Buffer, at: number, path: string): Promise<number> {
  try {
    return (await file.read(buffer, 0, buffer.byteLength, at)).bytesRead;
  } catch (cause) {
    throw new SourceMissingError(`could not read "${path}"`, { detail: `At byte ${at}: ${reasonOf(cause)}.`, cause });
  }
}

function* zeros(bytes: number): Generator<Uint8Array> {
  const buffer = new Uint8Array(Math.min(READ_BYTES, bytes));
  for (let left = bytes; left > 0; left -= buffer.byteLength)
    yield buffer.subarray(0, Math.min(left, buffer.byteLength));
}
