/** wal-b wal-prefetch DESTINATION: started by wal-fetch, not by people */
import { dirname, resolve } from "node:path";
import { isSegmentSize } from "../postgres/wal-segment.ts";
import type { Command } from "./command.ts";

export const walPrefetch: Command = {
  name: "wal-prefetch",
  summary: "keep segments ready ahead of recovery (started by wal-fetch)",
  description: "Runs beside recovery and ends with it. wal-fetch starts it; there is no reason to do so by hand.",
  positionals: { destination: { help: "%p of restore_command" } },
  options: {},
  examples: [],
  isInternal: true,

  async run(words, context) {
    const [{ openRepository }, { prefetchWal }, { readPgControl }, { PrefetchDirectory }, { prefetchPath }] =
      await Promise.all([
        import("./open-repository.ts"),
        import("../wal/prefetch.ts"),
        import("../postgres/pg-control.ts"),
        import("../wal/prefetch-directory.ts"),
        import("./prefetcher.ts"),
      ]);
    const { settings, signal, workingDirectory } = context;
    const destination = resolve(workingDirectory, words.required("destination"));
    const dataDirectory = dirname(dirname(destination));
    const { systemIdentifier, walSegmentSizeBytes } = await readPgControl(dataDirectory);
    if (!isSegmentSize(walSegmentSizeBytes)) return;

    await using repository = await openRepository(context);
    await prefetchWal({
      archive: repository.archive,
      directory: new PrefetchDirectory(prefetchPath(destination, settings.prefetchDirectory)),
      dataDirectory,
      systemIdentifier,
      segmentSize: walSegmentSizeBytes,
      count: settings.prefetchCount,
      signal,
    });
  },
};
