/** Reading from a file descriptor without giving up halfway. */
import { readSync } from "node:fs";

/** @returns fewer bytes than the buffer has only at the end of the file */
export function readFully(file: number, buffer: Uint8Array): number {
  for (let filled = 0; ; ) {
    const read = readSync(file, buffer, filled, buffer.byteLength - filled, null);
    filled += read;
    if (read === 0 || filled === buffer.byteLength) return filled;
  }
}
