/** Writing to a file without giving up halfway. */
import type { FileHandle } from "node:fs/promises";

/** Behind what was written before. */
export async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.byteLength; ) {
    const { bytesWritten } = await file.write(bytes, at, bytes.byteLength - at);
    at += bytesWritten;
  }
}
