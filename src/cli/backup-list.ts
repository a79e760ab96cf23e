/** wal-b backup-list [NAME|LATEST] [--detail] [--json] */
import { Failure } from "../errors.ts";
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
    const [{ openRepository }, { listBackups, listDrills, formatJsonList, formatTable }] = await Promise.all([
      import("./open-repository.ts"),
      import("../backup/list.ts"),
    ]);
    await using repository = await openRepository(context);
    const { backups, unreadable } = await listBackups(repository.store, words.text("name"));
    for (const { name, failure } of unreadable) {
      const detail =
        failure instanceof Failure
          ? [`${failure.message}.`, failure.detail].filter(Boolean).join(" ")
          : String(failure);
      context.log.warning(`backup "${name}" cannot be restored by this program`, {
        detail,
        ...(failure instanceof Failure && failure.hint && { hint: failure.hint }),
      });
    }
    const form = {
      detail: words.isSet("detail") ? ("detail" as const) : ("brief" as const),
      alignment: context.output.isTerminal ? ("aligned" as const) : ("tabs" as const),
    };
    const json = words.isSet("json");
    const drills = await listDrills(backups, json ? "detail" : form.detail, { ...context, store: repository.store });
    context.output.write(json ? formatJsonList(backups, drills) : formatTable(backups, drills, form));
  },
};
