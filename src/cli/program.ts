/** The table of commands, and the words on the command line → one of them. */
import yargs from "yargs";
import { type Environment, readEnvdir } from "../config/envdir.ts";
import { loadSettings, SETTINGS, type SettingName } from "../config/settings.ts";
import { UsageError } from "../errors.ts";
import { createLog, type LogLevel } from "../system/log.ts";
import { COMMIT, VERSION } from "../version.ts";
import { backupFetch } from "./backup-fetch.ts";
import { backupList } from "./backup-list.ts";
import { backupMark } from "./backup-mark.ts";
import { backupPush } from "./backup-push.ts";
import type { Command, CommandContext, Option, Output, Words } from "./command.ts";
import { remove } from "./delete.ts";
import { version } from "./version.ts";
import { walFetch } from "./wal-fetch.ts";
import { walPrefetch } from "./wal-prefetch.ts";
import { walPush } from "./wal-push.ts";

export const COMMANDS: readonly Command[] = [
  walPush,
  walFetch,
  walPrefetch,
  backupPush,
  backupFetch,
  backupList,
  backupMark,
  remove,
  version,
];

/** Words that every command takes. WAL-E's come before the command there; here they may stand anywhere. */
const GLOBAL_OPTIONS: Readonly<Record<string, Option>> = {
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
}

/**
 * @param argv  without the interpreter and the program's own name
 * @throws Failure  what a command throws; UsageError for words that no command takes
 */
export async function runProgram(argv: readonly string[], edge: ProgramEdge): Promise<void> {
  let chosen: { readonly command: Command; readonly words: Parsed } | undefined;
  const parser = COMMANDS.reduce(
    (program, command) =>
      addCommand(program, command, (words) => {
        chosen = { command, words };
      }),
    describeProgram(),
  );

  refuseUnknownFlags(argv);
  // Help and version end here: yargs prints them and runs no command.
  await parser.parseAsync([...argv], {}, (error, _, text) => {
    if (error) throw error instanceof UsageError ? error : usageError(error.message);
    if (text) edge.output.write(`${text}\n`);
  });
  if (chosen === undefined) return;

  const { command, words } = chosen;
  await command.run(wordsOf(words), contextOf(command, words, edge));
}

/** Before yargs, which takes the word after a flag that it does not know for its value, and then misses that word. */
function refuseUnknownFlags(argv: readonly string[]): void {
  const known = new Set([GLOBAL_OPTIONS, ...COMMANDS.map(({ options }) => options)].flatMap(Object.keys));
  for (const word of argv) {
    if (word === "--") return;
    const name = /^--(?:no-)?([^=]+)/.exec(word)?.[1];
    if (name !== undefined && !known.has(name) && name !== "help" && name !== "version")
      throw usageError(`unknown flag: ${word.split("=", 1)[0]}`);
  }
}

type Parsed = Readonly<Record<string, unknown>>;
type Program = ReturnType<typeof yargs>;

function describeProgram(): Program {
  const program = yargs()
    .scriptName("wal-b")
    .usage(
      "wal-b archives PostgreSQL to S3: WAL, base backups, retention, restore.\n\nUsage: wal-b [--envdir DIR] COMMAND …",
    )
    .version(`wal-b ${VERSION}${COMMIT ? ` (${COMMIT})` : ""}`)
    .help()
    .alias("h", "help")
    .exitProcess(false)
    .strict()
    .demandCommand(1, "no command was given")
    .recommendCommands()
    .updateStrings(WORDING)
    .parserConfiguration({
      "duplicate-arguments-array": false,
      "parse-numbers": false,
      "parse-positional-numbers": false,
    })
    .wrap(100)
    .showHelpOnFail(false)
    .fail((message, error) => {
      // A word that lacks its value comes as yargs' own kind of error.
      throw error === undefined || error.name === "YError" ? usageError(message || error.message) : error;
    })
    .epilogue(EPILOGUE);
  return addOptions(program, GLOBAL_OPTIONS, "Everywhere:");
}

/** Where yargs' own texts do not say what is wrong. The types of yargs know no plurals here. */
const WORDING = {
  "Did you mean %s?": 'there is no such command; did you mean "%s"?',
  "Unknown argument: %s": { one: "unknown word: %s", other: "unknown words: %s" },
  "Not enough non-option arguments: got %s, need at least %s": {
    one: "too few words: got %s, need at least %s",
    other: "too few words: got %s, need at least %s",
  },
  "Not enough arguments following: %s": "--%s needs a value",
} as unknown as Record<string, string>;

const EPILOGUE = `Settings come from flags and from variables: WALB_X, else WALG_X, else WALE_X, and AWS's own.
The least that is needed is WALB_S3_PREFIX=s3://bucket/path and credentials. "wal-b COMMAND --help" tells more.

In postgresql.conf:
  archive_mode    = on
  archive_command = 'wal-b --envdir /etc/wal-e.d/env wal-push %p'
  restore_command = 'wal-b --envdir /etc/wal-e.d/env wal-fetch %f %p'
Every night:
  wal-b --envdir /etc/wal-e.d/env backup-push /var/lib/postgresql/18/main
  wal-b --envdir /etc/wal-e.d/env delete retain 7 --confirm`;

function addCommand(program: Program, command: Command, choose: (words: Parsed) => void): Program {
  const positionals = Object.entries(command.positionals);
  const usage = [
    command.name,
    ...positionals.map(([name, { optional }]) => (optional ? `[${name}]` : `<${name}>`)),
  ].join(" ");
  return program.command(
    usage,
    // The declared type has one overload for a text and one for false, and none for both.
    (command.isInternal ? false : command.summary) as string,
    (own) => {
      own.usage(`Usage: wal-b ${usage.replace(/[<>]/g, "")}\n\n${command.description}`).epilogue("");
      for (const [name, { help }] of positionals) own.positional(name, { type: "string", describe: help });
      for (const [example, what] of command.examples) own.example(example, what);
      return addOptions(own, command.options, "Options:");
    },
    (words) => choose(words),
  );
}

function addOptions(program: Program, options: Readonly<Record<string, Option>>, group: string): Program {
  for (const [name, { kind, help, alias, choices, setting }] of Object.entries(options)) {
    const initial = setting && SETTINGS[setting].initialText;
    program.option(name, {
      type: kind === "flag" ? "boolean" : "string",
      describe: initial === undefined ? help : `${help} (${initial} if not set)`,
      group,
      ...(alias && { alias }),
      ...(choices && { choices }),
      ...(kind === "text" && { requiresArg: true }),
    });
  }
  return program;
}

function usageError(message: string): UsageError {
  const [first = "", ...rest] = message
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  const lowered = first.slice(0, 1).toLowerCase() + first.slice(1).replace(/[.:]$/, "");
  return new UsageError(lowered, {
    ...(rest.length > 0 && { detail: `${rest.join(" ")}.` }),
    hint: 'Run "wal-b --help", or "wal-b COMMAND --help".',
  });
}

function contextOf(command: Command, words: Parsed, edge: ProgramEdge): CommandContext {
  const { env, warn } = environmentOf(words, edge);
  const settings = loadSettings(flagsOf(command, words), env);
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
  };
}

function environmentOf(words: Parsed, edge: ProgramEdge) {
  const envdir = words["envdir"];
  if (typeof envdir !== "string") return { env: edge.env, warn: [] };
  const { variables, readableByOthers } = readEnvdir(envdir);
  edge.adoptVariables(variables);
  const warn = readableByOthers.filter((path) => isSecret(path.slice(path.lastIndexOf("/") + 1)));
  return { env: { ...edge.env, ...variables }, warn };
}

const isSecret = (variable: string) =>
  variable === "PGPASSWORD" ||
  Object.values(SETTINGS).some((row) => row.secret === true && row.variables.includes(variable));

/** A flag as it was given, for a process that is to see the same. */
function flagAgain(name: string, value: unknown): readonly string[] {
  if (value === true) return [`--${name}`];
  return typeof value === "string" ? [`--${name}=${value}`] : [];
}

function flagsOf(command: Command, words: Parsed): Partial<Record<SettingName, string>> {
  const flags: Partial<Record<SettingName, string>> = {};
  for (const [name, { setting }] of Object.entries({ ...GLOBAL_OPTIONS, ...command.options })) {
    const value = words[name];
    if (setting !== undefined && typeof value === "string") flags[setting] = value;
  }
  return flags;
}

function wordsOf(words: Parsed): Words {
  const text = (name: string) => (typeof words[name] === "string" ? words[name] : undefined);
  return {
    text,
    required(name) {
      const value = text(name);
      if (value === undefined || value === "") throw usageError(`no ${name} was given`);
      return value;
    },
    isSet: (name) => words[name] === true,
    globalFlags: () => Object.keys(GLOBAL_OPTIONS).flatMap((name) => flagAgain(name, words[name])),
  };
}
