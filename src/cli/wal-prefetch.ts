/** wal-b wal-prefetch DESTINATION: started by wal-fetch, not by people */
import { dirname, resolve } from "node:path";
import { isSegmentSize } from "../postgres/wal-segment.ts";
import type { Command } from "./command.ts";

const IDLE_MS = 60_000;

/** Short: wal-fetch waits for a segment that is on its way, and has the patience itself that recovery needs. */
const RETRY_DEADLINE_MS = 2_000;

export const walPrefetch: Command = {
  name: "wal-prefetch",
  summary: "keep segments ready ahead of recovery (started by wal-fetch)",
  description: "Runs beside recovery and ends with it. wal-fetch starts it; there is no reason to do so by hand.",
  positionals: { destination: { help: "%p of restore_command" } },
  options: {
    prefetch: { kind: "text", value: "N", setting: "prefetchCount", help: "segments to keep ready ahead of recovery" },
  },
  examples: [],
  isInternal: true,

  async run(words, context) {
    const [{ prefetchDirectoryOf }, { readPgControl }] = await Promise.all([
      import("./prefetcher.ts"),
      import("../postgres/pg-control.ts"),
    ]);
    const destination = resolve(context.workingDirectory, words.required("destination"));
    const walDirectory = dirname(destination);
    const dataDirectory = dirname(walDirectory);
    const { systemIdentifier, walSegmentSizeBytes } = await readPgControl(dataDirectory);
    if (!isSegmentSize(walSegmentSizeBytes) || context.settings.prefetchCount === 0) return;

    // Before anything that takes time, so that the next wal-fetch does not start another one.
    const directory = prefetchDirectoryOf(destination, context.settings, systemIdentifier);
    using claim = directory.claim();
    if (claim === undefined) return;

    const [{ openRepository }, { prefetchWal }] = await Promise.all([
      import("./open-repository.ts"),
      import("../wal/prefetch.ts"),
    ]);
    const loading = new AbortController();
    await using repository = await openRepository({
      ...context,
      settings: { ...context.settings, retryDeadlineMs: RETRY_DEADLINE_MS },
      signal: AbortSignal.any([context.signal, loading.signal]),
    });
    await prefetchWal({
      archive: repository.archive,
      directory,
      claim,
      dataDirectory,
      walDirectory,
      systemIdentifier,
      segmentSize: walSegmentSizeBytes,
      count: context.settings.prefetchCount,
      idleMs: IDLE_MS,
      signal: context.signal,
      stopLoading: () => loading.abort(),
    });
  },
};
