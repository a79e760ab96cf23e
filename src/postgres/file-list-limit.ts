/** How long a list of a backup's files may become: a restore reads no more, so no more is written. */
import { PostgresError } from "../errors.ts";
import { formatBytes } from "../system/quantity.ts";

/** No list has more than this around its files: head, WAL ranges, checksum. */
const AROUND_FILES_BYTES = 1024;

export class FileListLimit {
  readonly #list: string;
  readonly #maxBytes: number;
  #bytes = AROUND_FILES_BYTES;

  /** @param list  its name, for the message */
  constructor(list: string, maxBytes: number) {
    this.#list = list;
    this.#maxBytes = maxBytes;
  }

  /** @throws PostgresError  with this text the list is too long */
  take(text: string, separator: string): void {
    this.#bytes += Buffer.byteLength(text) + separator.length;
    if (this.#bytes <= this.#maxBytes) return;
    throw new PostgresError("the cluster has too many files for a backup", {
      detail: `${this.#list}, the list of them, would have more than ${formatBytes(this.#maxBytes)}, and a restore reads no more.`,
      hint: "Each table, index and partition has files of its own: drop what is not needed, or give databases a cluster of their own.",
    });
  }
}
