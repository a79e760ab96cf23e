/** archive_command = 'wal-b wal-push %p' */
import type { Command } from "./command.ts";

export const walPush: Command = {
  name: "wal-push",
  summary: "archive one file of pg_wal, and others that wait (archive_command)",
  description:
    "Archives PATH and succeeds only when the store has it for good. Nothing archived is ever overwritten: the same file again succeeds, another content under the same name fails. Other segments that are marked .ready beside it are archived in parallel.",
  positionals: { path: { help: "%p of archive_command" } },
  options: {
    "pool-size": {
      alias: "p",
      kind: "text",
      value: "N",
      setting: "walPushPoolSize",
      help: "segments archived at once",
    },
  },
  examples: [["archive_command = 'wal-b --envdir /etc/wal-e.d/env wal-push %p'", "in postgresql.conf"]],

  async run(words, context) {
    const [{ openRepository }, { pushWal }, { removeLeftovers }] = await Promise.all([
      import("./open-repository.ts"),
      import("../wal/push.ts"),
      import("./prefetcher.ts"),
    ]);
    removeLeftovers(words.required("path"), context);
    await using repository = await openRepository(context);
    const poolSize = context.settings.walPushPoolSize;
    await pushWal(words.required("path"), {
      archive: repository.archive,
      identity: repository.identity,
      proof: repository.proof,
      poolSize,
      log: context.log,
    });
  },
};
