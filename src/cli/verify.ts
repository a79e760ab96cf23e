/** wal-b verify [NAME|LATEST|--all] [--wal] [--json] */
import { UsageError } from "../errors.ts";
import type { Command } from "./command.ts";

export const verify: Command = {
  name: "verify",
  summary: "read backups and their WAL back, and tell what is damaged or missing",
  description:
    "Reads every part of the backup NAME, or of the LATEST one, compares every file with the backup's manifest, and reads every WAL segment that the backup needs; for the newest backup, all WAL up to the end of the archive, along timelines. Writes nothing. Ends with 0 when all is good, and with 65 when anything is damaged or missing.",
  positionals: { name: { help: "of the backup, or LATEST", optional: true } },
  options: {
    all: { kind: "flag", help: "every backup" },
    wal: { kind: "flag", help: "WAL up to the end of the archive, for a backup that is not the newest, too" },
    json: { kind: "flag", help: "print a JSON document" },
    "pool-size": {
      alias: "p",
      kind: "text",
      value: "N",
      setting: "downloadConcurrency",
      help: "parts or segments read at once",
    },
  },
  examples: [
    ["wal-b verify", "the newest backup, and all WAL since"],
    ["wal-b verify --all --json", "everything, for a script"],
  ],

  async run(words, context) {
    const name = words.text("name");
    if (words.isSet("all") && name !== undefined)
      throw new UsageError("--all and the name of a backup exclude each other");
    const [{ openRepository }, { verifyBackups }, { checkReport, formatVerifyJson, formatVerifyText }] =
      await Promise.all([
        import("./open-repository.ts"),
        import("../backup/verify.ts"),
        import("../backup/verify-report.ts"),
      ]);
    await using repository = await openRepository(context);
    const { store, archive, zstd } = repository;
    const { settings, log, now, signal, output } = context;
    const choice = {
      backups: words.isSet("all") ? { all: true as const } : (name ?? "LATEST"),
      walToEnd: words.isSet("wal") ? ("each" as const) : ("newest" as const),
    };
    const report = await verifyBackups(choice, {
      store,
      archive,
      zstd: await zstd(),
      atOnce: settings.downloadConcurrency,
      gapPauseMs: 1_000,
      log,
      now,
      signal,
    });
    output.write(words.isSet("json") ? formatVerifyJson(report) : formatVerifyText(report));
    checkReport(report);
  },
};
