/** wal-b verify --drill [NAME|LATEST] [--to TARGET] [--scratch DIR] [--keep] [--json] */
import { hostname } from "node:os";
import { resolve } from "node:path";
import { UsageError } from "../errors.ts";
import { parseRecoveryTarget } from "../postgres/recovery-target.ts";
import { currentAccount } from "../system/account.ts";
import { lastingPath } from "../system/working-directory.ts";
import type { CommandContext, Words } from "./command.ts";
import { parseTimeline } from "./restore.ts";
import { restoreCommandOf } from "./restore-command.ts";

/** For what survives a restart and may be large, by the Filesystem Hierarchy Standard. */
const SCRATCH = "/var/tmp";

export async function runDrill(name: string | undefined, words: Words, context: CommandContext): Promise<void> {
  const other = ["all", "wal"].find((flag) => words.isSet(flag));
  if (other !== undefined) throw new UsageError(`--drill and --${other} exclude each other`);
  const { settings, env, workingDirectory, log, startProgress, now, signal, output } = context;
  const target = parseRecoveryTarget(words.text("to") ?? "latest");
  const program = process.execPath;
  // What the envdir set is in the environment that the server gets: its account need not be able to read the files.
  const globalFlags = words.globalFlags().filter((flag) => !flag.startsWith("--envdir="));
  const { command } = restoreCommandOf({ program, globalFlags, settings, env, workingDirectory });

  const [{ openRepository }, { drillBackup }, { checkDrill, formatDrillJson, formatDrillText }] = await Promise.all([
    import("./open-repository.ts"),
    import("../backup/drill.ts"),
    import("../backup/drill-report.ts"),
  ]);
  await using repository = await openRepository(context);
  const { store, archive, zstd } = repository;
  const drill = await drillBackup(
    {
      backup: name === "LATEST" ? undefined : name,
      target,
      timeline: parseTimeline(words.text("timeline")),
      scratch: lastingPath(workingDirectory, settings.drillScratch ?? SCRATCH),
      afterwards: words.isSet("keep") ? "keep" : "remove",
      timeoutMs: settings.drillTimeoutMs,
      programs: settings.postgresBin && resolve(workingDirectory, settings.postgresBin),
      restoreCommand: command,
      program,
      users: [env["PGUSER"], "postgres", currentAccount(env).name].filter((user): user is string => Boolean(user)),
      env,
    },
    {
      ...{ store, archive, zstd: await zstd(), partsAtOnce: settings.downloadConcurrency },
      ...{ interrupted: undefined, log, startProgress, now, signal, hostname: hostname() },
    },
  );
  output.write(words.isSet("json") ? formatDrillJson(drill) : formatDrillText(drill));
  checkDrill(drill);
}
