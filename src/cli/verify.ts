/** wal-b verify [NAME|LATEST|--all] [--wal] [--json], or with --drill: a restore on trial */
import { UsageError } from "../errors.ts";
import type { Command } from "./command.ts";

export const verify: Command = {
  name: "verify",
  summary: "read backups and their WAL back, and tell what is damaged or missing",
  description:
    "Reads every part of the backup NAME, or of the LATEST one, compares every file with the backup's manifest, and reads every WAL segment that the backup needs; for the newest backup, all WAL up to the end of the archive, along timelines. Writes nothing. Ends with 0 when all is good, and with 65 when anything is damaged or missing.\nWith --drill it proves that the backup restores: it is restored into a directory of its own, a PostgreSQL of its major that is installed here, cut off from the network and from the archive, replays all WAL on it, and everything in it is read, with amcheck where that is installed. Times are measured, the result is stored beside the backup, and the copy is removed.",
  positionals: { name: { help: "of the backup, or LATEST", optional: true } },
  options: {
    all: { kind: "flag", help: "every backup" },
    wal: { kind: "flag", help: "WAL up to the end of the archive, for a backup that is not the newest, too" },
    json: { kind: "flag", help: "print a JSON document" },
    drill: { kind: "flag", help: "restore it, recover it, look at what is in it, and remove it again" },
    to: { kind: "text", value: "TARGET", help: "with --drill: where recovery ends, as of restore (latest if not set)" },
    timeline: { kind: "text", value: "N", help: "with --drill: recover along this timeline" },
    scratch: {
      kind: "text",
      value: "DIR",
      setting: "drillScratch",
      help: "with --drill: restore into a directory of its own in this one (/var/tmp if not set)",
    },
    "postgres-bin": {
      kind: "text",
      value: "DIR",
      setting: "postgresBin",
      help: "with --drill: where the server's programs are, if not in PATH or where packages put them",
    },
    keep: { kind: "flag", help: "with --drill: keep the restored directory" },
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
    ["wal-b verify --drill --scratch /srv/scratch", "a restore on trial"],
  ],
  isLong: true,

  async run(words, context) {
    const name = words.text("name");
    if (words.isSet("all") && name !== undefined)
      throw new UsageError("--all and the name of a backup exclude each other");
    if (words.isSet("drill")) {
      const { runDrill } = await import("./verify-drill.ts");
      return await runDrill(name, words, context);
    }
    const ofDrill = ["to", "timeline", "scratch", "postgres-bin", "keep"].find(
      (flag) => words.isSet(flag) || words.text(flag) !== undefined,
    );
    if (ofDrill !== undefined)
      throw new UsageError(`--${ofDrill} is for --drill`, { hint: `Add --drill, or leave out --${ofDrill}.` });
    const [{ openRepository }, { verifyBackups }, { checkReport, formatVerifyJson, formatVerifyText }] =
      await Promise.all([
        import("./open-repository.ts"),
        import("../backup/verify.ts"),
        import("../backup/verify-report.ts"),
      ]);
    await using repository = await openRepository(context);
    const { store, archive, zstd } = repository;
    const { settings, startProgress, now, signal, output } = context;
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
      startProgress,
      now,
      signal,
    });
    output.write(words.isSet("json") ? formatVerifyJson(report) : formatVerifyText(report));
    checkReport(report);
  },
};
