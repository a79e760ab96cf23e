/** At most n promises at once; stops starting new ones at the first failure, and waits for those that run. */

/**
 * Runs `work` for each item with at most `concurrency` at once. Items are taken lazily, so the list may be endless.
 *
 * @returns when every started one has settled
 * @throws the first failure; items not yet started by then are never started
 */
export async function forEachAtOnce<Item>(
  concurrency: number,
  items: Iterable<Item> | AsyncIterable<Item>,
  work: (item: Item) => Promise<void>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let failed = false;
  let exhausted = false;

  const runOne = async () => {
    while (!failed && !exhausted) {
      const next = await iterator.next();
      if (next.done) {
        exhausted = true;
        return;
      }
      if (failed) return;
      await work(next.value);
    }
  };
  const guarded = async () => {
    try {
      await runOne();
    } catch (error) {
      failed = true;
      throw error;
    }
  };

  const settled = await Promise.allSettled(Array.from({ length: concurrency }, guarded));
  await iterator.return?.();
  const failure = settled.find((result) => result.status === "rejected");
  if (failure) throw failure.reason;
}
