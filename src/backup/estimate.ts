/** How much there is to copy: counted beside the copying, for whoever watches it. */
import type { DataEntry } from "../postgres/data-entry.ts";
import type { Progress } from "../system/progress.ts";

/**
 * Adds up the sizes of files and tells the sum, without holding up anything.
 *
 * @param entries  the same that are copied; what fails while they are looked up fails where they are copied, too
 * @returns to be disposed when the copying has ended: ends the counting, and waits for that
 */
export function countBeside(entries: AsyncIterable<DataEntry>, progress: Progress): AsyncDisposable {
  const ended = new AbortController();
  const count = async () => {
    let bytes = 0;
    for await (const entry of entries) {
      if (ended.signal.aborted) return;
      if (entry.kind === "file") bytes += entry.sizeBytes;
    }
    progress.expect(bytes);
  };
  const counting = count().catch(() => {});
  return {
    async [Symbol.asyncDispose]() {
      ended.abort();
      await counting;
    },
  };
}
