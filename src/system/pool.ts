/** At most n promises at once; the first failure stops the others and is the one that is thrown. */

/**
 * Runs `work` for each item with at most `concurrency` at once. Items are taken lazily, so the list may be endless.
 *
 * @param work  its signal is aborted when another item failed, so that a long one can end early
 * @returns when every started one has settled
 * @throws the first failure; items not yet started by then are never started
 */
export async function forEachAtOnce<Item>(
  concurrency: number,
  items: Iterable<Item> | AsyncIterable<Item>,
  work: (item: Item, stopped: AbortSignal) => Promise<void>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  const stop = new AbortController();
  let exhausted = false;

  const runSome = async () => {
    while (!stop.signal.aborted && !exhausted) {
      const next = await iterator.next();
      if (next.done) exhausted = true;
      else if (!stop.signal.aborted) await work(next.value, stop.signal);
    }
  };
  // The reason of the abort is the first failure: those that the abort itself causes come later and change nothing.
  const guarded = () => runSome().catch((error: unknown) => stop.abort(error));

  await Promise.all(Array.from({ length: concurrency }, guarded));
  try {
    await iterator.return?.();
  } finally {
    // Before whatever the source has to say on its way out.
    stop.signal.throwIfAborted();
  }
}
