/** The table of commands, and the words on the command line → one of them. */
import { type Environment, readEnvdir } from "../config/envdir.ts";
import { loadSettings, SETTING_NAMES, SETTINGS, type SettingName, variablesOf } from "../config/settings.ts";
import { UsageError } from "../errors.ts";
import { createLog, type LogLevel } from "../system/log.ts";
import { progressIn, repeat } from "../system/progress.ts";
import type { StatusLine } from "../system/status-line.ts";
import { isDecoded } from "../system/working-directory.ts";
import { type Command, type CommandContext, HINT_FOR_WORDS, type Option, type Output, type Words } from "./command.ts";
import { type ChosenCommand, type ParsedWords, parsePlainWords } from "./plain-words.ts";
import { walFetch } from "./wal-fetch.ts";

/**
 * Each is loaded when it is asked for, because PostgreSQL starts one of them for every segment; but wal-fetch, for which recovery
 * waits each time, comes with this file: loading it for itself takes 2 to 3 ms of 20.
 */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  "wal-push": async () => (await import("./wal-push.ts")).walPush,
  "wal-fetch": async () => walFetch,
  "wal-prefetch": async () => (await import("./wal-prefetch.ts")).walPrefetch,
  "backup-push": async () => (await import("./backup-push.ts")).backupPush,
  "backup-fetch": async () => (await import("./backup-fetch.ts")).backupFetch,
  restore: async () => (await import("./restore.ts")).restore,
  "backup-list": async () => (await import("./backup-list.ts")).backupList,
  "backup-mark": async () => (await import("./backup-mark.ts")).backupMark,
  delete: async () => (await import("./delete.ts")).remove,
  verify: async () => (await import("./verify.ts")).verify,
  version: async () => (await import("./version.ts")).version,
};

/** In the order of the help. */
export const allCommands = (): Promise<readonly Command[]> =>
  Promise.all(Object.values(COMMANDS).map((load) => load()));

/** Words that every command takes. WAL-E's come before the command there; here they may stand anywhere. */
export const GLOBAL_OPTIONS: Readonly<Record<string, Option>> = {
  envdir: { kind: "text", value: "DIR", help: "read variables from the files in DIR, as envdir does" },
  "s3-prefix": { kind: "text", value: "URL", setting: "s3Prefix", help: SETTINGS.s3Prefix.help },
  "file-prefix": { kind: "text", value: "DIR", setting: "filePrefix", help: SETTINGS.filePrefix.help },
  "aws-access-key-id": {
    alias: "k",
    kind: "text",
    value: "ID",
    setting: "accessKeyId",
    help: "access key; its secret comes from AWS_SECRET_ACCESS_KEY",
  },
  "aws-instance-profile": {
    kind: "flag",
    help: "use the credentials of the instance; they are found without this flag too",
  },
  "gpg-key-id": {
    kind: "text",
    value: "ID",
    help: "not supported yet: refused, so that nothing is stored in plain text by mistake",
  },
  "log-format": {
    kind: "text",
    value: "FORMAT",
    setting: "logFormat",
    choices: ["text", "json"],
    help: SETTINGS.logFormat.help,
  },
  verbose: { kind: "flag", help: "tell more" },
  terse: { kind: "flag", help: "tell warnings and errors only" },
};

export interface ProgramEdge {
  readonly env: Environment;
  /** Takes what --envdir sets and unsets, for those who read the process's environment themselves. */
  readonly adoptVariables: (variables: Environment) => void;
  readonly workingDirectory: string;
  readonly signal: AbortSignal;
  readonly now: () => Date;
  readonly output: Output;
  /** Takes one record of the log. */
  readonly writeLog: (record: string) => void;
  /** Where records go to a terminal. */
  readonly statusLine: StatusLine | undefined;
}

/**
 * @param argv  without the interpreter and the program's own name
 * @throws Failure  what a command throws; UsageError for words that no command takes
 */
export async function runProgram(argv: readonly string[], edge: ProgramEdge): Promise<void> {
  refuseLostBytes(argv);
  const given = withoutEndOfFlags(argv);
  const chosen = (await findPlainWords(given)) ?? (await parseCommandLine(given, edge));
  if (chosen === undefined) return;

  const { command, words } = chosen;
  await command.run(wordsOf(words), contextOf(command, words, edge));
}

/** A path that is not UTF-8 has become another one by now, and what is restored would be there. */
function refuseLostBytes(argv: readonly string[]): void {
  const word = argv.find((each) => !isDecoded(each));
  if (word !== undefined)
    throw new UsageError(`"${word}" is not UTF-8`, { hint: "Say a path with a name in UTF-8, or a relative one." });
}

/** "--" says that no flags follow. yargs takes what does for no command's words, so it goes where it says what is so anyway. */
function withoutEndOfFlags(argv: readonly string[]): readonly string[] {
  const end = argv.indexOf("--");
  const behind = argv.slice(end + 1);
  return end === -1 || behind.some((word) => word.startsWith("-")) ? argv : [...argv.slice(0, end), ...behind];
}

async function findPlainWords(argv: readonly string[]): Promise<ChosenCommand | undefined> {
  const name = argv.find((word) => Object.hasOwn(COMMANDS, word));
  const command = await COMMANDS[name ?? ""]?.();
  return command && parsePlainWords(argv, [command], GLOBAL_OPTIONS);
}

/** What yargs prints by itself, help and the version, is all that was asked for then. */
async function parseCommandLine(argv: readonly string[], { output }: ProgramEdge): Promise<ChosenCommand | undefined> {
  const { parseWords } = await import("./command-line.ts");
  const { chosen, printed } = await parseWords(argv, await allCommands(), GLOBAL_OPTIONS);
  if (printed) output.write(`${printed}\n`);
  return chosen;
}

function contextOf(command: Command, words: ParsedWords, edge: ProgramEdge): CommandContext {
  const { env, warn } = environmentOf(words, edge);
  const settings = loadSettings(flagsOf(command, words), env, command);
  const level: LogLevel = words["verbose"] ? "debug" : words["terse"] ? "warning" : "info";
  const log = createLog(edge.writeLog, { format: settings.logFormat, level, now: edge.now });
  for (const path of warn) {
    log.warning(`"${path}" holds a secret and can be read by every account`, {
      hint: `Run "chmod 640 ${path}", with the group of the account that runs wal-b.`,
    });
  }
  // Empty or not: a key was asked for.
  if (words["gpg-key-id"] !== undefined) loadSettings({}, { WALE_GPG_KEY_ID: `${words["gpg-key-id"]} ` });
  return {
    settings,
    env,
    log,
    signal: edge.signal,
    workingDirectory: edge.workingDirectory,
    now: edge.now,
    output: edge.output,
    startProgress: progressIn({
      log,
      get line() {
        return level === "warning" || settings.logFormat === "json" ? undefined : edge.statusLine;
      },
      now: () => performance.now(),
      every: repeat,
    }),
  };
}

function environmentOf(words: ParsedWords, edge: ProgramEdge) {
  const envdir = words["envdir"];
  if (typeof envdir !== "string") return { env: edge.env, warn: [] };
  const { variables, readableByOthers } = readEnvdir(envdir);
  edge.adoptVariables(variables);
  return { env: { ...edge.env, ...variables }, warn: withSecrets(readableByOthers) };
}

/** @param paths  of an envdir's files, which have the names of variables */
function withSecrets(paths: readonly string[]): readonly string[] {
  if (paths.length === 0) return [];
  const secrets = SETTING_NAMES.filter((name) => SETTINGS[name].secret).flatMap(variablesOf);
  const variables = new Set(["PGPASSWORD", ...secrets]);
  return paths.filter((path) => variables.has(path.slice(path.lastIndexOf("/") + 1)));
}

/** A flag as it was given, for a process that is to see the same. */
function flagAgain(name: string, value: unknown): readonly string[] {
  if (value === true) return [`--${name}`];
  return typeof value === "string" ? [`--${name}=${value}`] : [];
}

function flagsOf(command: Command, words: ParsedWords): Partial<Record<SettingName, string>> {
  const flags: Partial<Record<SettingName, string>> = {};
  for (const [name, { setting }] of Object.entries({ ...GLOBAL_OPTIONS, ...command.options })) {
    const value = words[name];
    if (setting !== undefined && typeof value === "string") flags[setting] = value;
  }
  return flags;
}

function wordsOf(words: ParsedWords): Words {
  const text = (name: string) => (typeof words[name] === "string" ? words[name] : undefined);
  return {
    text,
    required(name) {
      const value = text(name);
      if (value === undefined || value === "") throw new UsageError(`no ${name} was given`, { hint: HINT_FOR_WORDS });
      return value;
    },
    isSet: (name) => words[name] === true,
    globalFlags: () => Object.keys(GLOBAL_OPTIONS).flatMap((name) => flagAgain(name, words[name])),
  };
}
