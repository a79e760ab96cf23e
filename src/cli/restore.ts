/** wal-b restore DIR [--to TIME|LSN|XID|NAME|immediate|latest] */
import type { RestoreRequest, TargetAction } from "../backup/restore-request.ts";
import { UsageError } from "../errors.ts";
import { parseRecoveryTarget } from "../postgres/recovery-target.ts";
import { lastingPath } from "../system/working-directory.ts";
import type { Command, CommandContext, Words } from "./command.ts";
import { restoreCommandOf } from "./restore-command.ts";
import { TABLESPACE_OPTIONS, tablespaceChoice } from "./tablespace-choice.ts";

export const restore: Command = {
  name: "restore",
  summary: "restore to a moment: backup, WAL and recovery settings in one step",
  description:
    "Restores into DIRECTORY, which must be empty or not exist, so that a server that is started on it recovers to the target:\n  latest        all that is archived; this if not set\n  TIME          2026-11-23 14:42:40+00, with its zone\n  LSN           0/3000060\n  xid:N         the transaction N, or only N\n  name:TEXT     a restore point, or only TEXT\n  immediate     as soon as the backup is consistent\nThe newest backup that leads there is chosen. Before anything is written, everything is checked: directory, space, every WAL segment on the way, and that the archive reaches the target. Settings go to postgresql.auto.conf, behind those that are there.",
  positionals: { directory: { help: "where to restore to" } },
  options: {
    to: { kind: "text", value: "TARGET", help: "where recovery ends (latest if not set)" },
    timeline: {
      kind: "text",
      value: "N",
      help: "recover along this timeline; the newest one in the archive if not set",
    },
    action: {
      kind: "text",
      value: "ACTION",
      choices: ["pause", "promote", "shutdown"],
      help: "what the server does at the target: pause and let you look, if not set",
    },
    standby: { kind: "flag", help: "make a standby, which goes on to ask the archive" },
    backup: {
      kind: "text",
      value: "NAME",
      help: "begin with this backup, instead of the newest that leads to the target",
    },
    "dry-run": { alias: "n", kind: "flag", help: "check everything, show the plan, and write nothing" },
    json: { kind: "flag", help: "the plan of --dry-run as JSON" },
    "pool-size": { alias: "p", kind: "text", value: "N", setting: "downloadConcurrency", help: "parts read at once" },
    resume: { kind: "flag", help: "go on with a restore into this directory that was interrupted" },
    ...TABLESPACE_OPTIONS,
  },
  examples: [
    ["wal-b restore /restore/main", "all that is archived"],
    ["wal-b restore /restore/main --to '2026-11-23 14:42:40+00' --dry-run", "could it be done, and how"],
    ["wal-b restore /restore/main --to name:before_release --action promote", "a restore point, without a pause"],
  ],
  isLong: true,

  async run(words, context) {
    const { command, variables } = restoreCommandOf({
      program: process.execPath,
      globalFlags: words.globalFlags(),
      settings: context.settings,
      env: context.env,
      workingDirectory: context.workingDirectory,
    });
    const request = { ...requestOf(words), restoreCommand: command };
    const tablespaces = tablespaceChoice(words);
    const [{ openRepository }, { carryOutRestore, planRestore }, { readInterruptedRestore, RestoreMarker }, report] =
      await Promise.all([
        import("./open-repository.ts"),
        import("../backup/restore.ts"),
        import("../backup/restore-marker.ts"),
        import("../backup/restore-report.ts"),
      ]);

    await using repository = await openRepository(context);
    const { store, archive, zstd } = repository;
    const { settings, log, startProgress, signal, now, output } = context;
    const directory = lastingPath(context.workingDirectory, words.required("directory"));
    // A dry run only looks.
    const goOn = words.isSet("dry-run") ? readInterruptedRestore : RestoreMarker.takeOver;
    const restoring = {
      ...{ store, archive, zstd: await zstd(), partsAtOnce: settings.downloadConcurrency, tablespaces },
      interrupted: words.isSet("resume") ? await goOn(directory) : undefined,
      ...{ log, startProgress, signal, now },
    };
    const plan = await planRestore(directory, request, restoring);
    if (words.isSet("dry-run")) {
      output.write(words.isSet("json") ? report.formatPlanJson(plan) : report.formatPlan(plan, request));
      tellVariables(variables, words, context);
      return;
    }

    log.info(`backup "${plan.backup.name}": ${plan.because}`);
    await carryOutRestore(plan, restoring);
    tellVariables(variables, words, context);
    output.write(report.formatNextSteps(plan, request));
  },
};

/** @throws UsageError  words that contradict each other */
function requestOf(words: Words): Omit<RestoreRequest, "restoreCommand"> {
  const target = parseRecoveryTarget(words.text("to") ?? "latest");
  const role = words.isSet("standby") ? "standby" : "primary";
  const action = words.text("action") as TargetAction | undefined;
  if (role === "standby" && target.kind !== "latest") {
    throw new UsageError("a standby has no target", { hint: "Leave out --standby, or --to." });
  }
  if (target.kind === "latest" && action !== undefined && (action !== "promote" || role === "standby")) {
    throw new UsageError(`--action ${action} needs a target`, {
      hint: "Recovery of all that is archived ends by itself, and the server is promoted. Say where it is to end with --to.",
    });
  }
  if (words.isSet("json") && !words.isSet("dry-run"))
    throw new UsageError("--json is for --dry-run", { hint: "Add --dry-run, or leave out --json." });
  return {
    target,
    role,
    action: action ?? "pause",
    timeline: parseTimeline(words.text("timeline")),
    backup: words.text("backup"),
  };
}

/** @throws UsageError  it is not one */
export function parseTimeline(text: string | undefined): number | "latest" {
  if (text === undefined || text === "latest") return "latest";
  const timeline = /^\d{1,10}$/.test(text) ? Number(text) : 0;
  if (timeline >= 1 && timeline < 2 ** 32) return timeline;
  throw new UsageError(`"${text}" is not a timeline`, { hint: "It is a number from 1 on, in decimal, or latest." });
}

/** Their values may be secrets, and a configuration file is no place for those. */
function tellVariables(variables: readonly string[], words: Words, { log }: CommandContext): void {
  if (variables.length === 0) return;
  const envdir = words.text("envdir");
  log.warning("the server's environment must have the variables that this command was given", {
    detail: `They are ${variables.join(", ")}. restore_command does not hold them.`,
    hint:
      envdir === undefined
        ? "Better keep them in files, and say wal-b --envdir DIR restore."
        : `Better put them into "${envdir}" as files.`,
  });
}
