/** Reading from a file descriptor without giving up halfway. */
import { readSync } from "node:fs";

/**
 * @param position  of the first byte in the file; where the last read ended if left out
 * @returns fewer bytes than the buffer has only at the end of the file
 */
export function readFully(file: number, buffer: Uint8Array, position?: number): number {
  for (let filled = 0; ; ) {
    const at = position === undefined ? null : position + filled;
    const read = readSync(file, buffer, filled, buffer.byteLength - filled, at);
    filled += read;
    if (read === 0 || filled === buffer.byteLength) return filled;
  }
}
