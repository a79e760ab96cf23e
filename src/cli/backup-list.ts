/** wal-b backup-list [NAME|LATEST] [--detail] [--json] */
import type { Command } from "./command.ts";

export const backupList: Command = {
  name: "backup-list",
  summary: "list what can be restored",
  description:
    "Lists complete backups, oldest first. On a terminal the columns are aligned; elsewhere they are separated by tabs, with WAL-E's names, for scripts. Columns that need --detail are empty without it. The last column tells when verify --drill last tried whether the backup restores, and what came of it.",
  positionals: { name: { help: "only this backup, or LATEST", optional: true } },
  options: {
    detail: { kind: "flag", help: "sizes, ends and more" },
    json: { kind: "flag", help: "print JSON, with every detail" },
  },
  examples: [
    ["wal-b backup-list --detail", "with sizes"],
    ["wal-b backup-list LATEST --json", "for a script"],
  ],

  async run(words, context) {
    const [{ openRepository }, { whyUnreadable }, { listBackups, listDrills, formatJsonList, formatTable }] =
      await Promise.all([
        import("./open-repository.ts"),
        import("../repository/backup-catalog.ts"),
        import("../backup/list.ts"),
      ]);
    await using repository = await openRepository(context);
    const { backups, unreadable } = await listBackups(repository.store, words.text("name"));
    for (const each of unreadable)
      context.log.warning(`backup "${each.name}" cannot be restored by this program`, whyUnreadable(each));
    const form = {
      detail: words.isSet("detail") ? ("detail" as const) : ("brief" as const),
      alignment: context.output.isTerminal ? ("aligned" as const) : ("tabs" as const),
    };
    const json = words.isSet("json");
    const drills = await listDrills(backups, json ? "detail" : form.detail, { ...context, store: repository.store });
    context.output.write(json ? formatJsonList(backups, drills) : formatTable(backups, drills, form));
  },
};
