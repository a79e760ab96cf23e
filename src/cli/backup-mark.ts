/** wal-b backup-mark NAME [--impermanent] */
import type { Command } from "./command.ts";

export const backupMark: Command = {
  name: "backup-mark",
  summary: "exempt a backup from retention",
  description:
    "Marks the backup NAME permanent: delete keeps it and the WAL that it needs to be restored to the moment it ended. With --impermanent, takes that back.",
  positionals: { name: { help: "of the backup" } },
  options: { impermanent: { alias: "i", kind: "flag", help: "take the mark back" } },
  examples: [["wal-b backup-mark base_000000010000000000000004", "keep this one"]],

  async run(words, context) {
    const [{ openRepository }, { markBackup }] = await Promise.all([
      import("./open-repository.ts"),
      import("../backup/mark.ts"),
    ]);
    await using repository = await openRepository(context);
    await markBackup(words.required("name"), words.isSet("impermanent") ? "impermanent" : "permanent", {
      store: repository.store,
      log: context.log,
    });
  },
};
