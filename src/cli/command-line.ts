/** Words of the command line → one of the commands, in all the forms that people use; help; what is wrong with the words. */
import yargs from "yargs";
import { initialTextOf } from "../config/settings.ts";
import { UsageError } from "../errors.ts";
import { FULL_VERSION } from "../version.ts";
import { type Command, HINT_FOR_WORDS, type Option } from "./command.ts";
import type { ChosenCommand, ParsedWords } from "./plain-words.ts";

type Options = Readonly<Record<string, Option>>;
type Program = ReturnType<typeof yargs>;

/**
 * @returns no command when help or the version was asked for; `printed` is the answer
 * @throws UsageError  words that no command takes
 */
export async function parseWords(
  argv: readonly string[],
  commands: readonly Command[],
  globalOptions: Options,
): Promise<{ readonly chosen: ChosenCommand | undefined; readonly printed: string | undefined }> {
  let chosen: ChosenCommand | undefined;
  let printed: string | undefined;
  const parser = commands.reduce(
    (program, command) =>
      addCommand(program, command, (words) => {
        chosen = { command, words };
      }),
    describeProgram(globalOptions),
  );

  refuseUnknownFlags(argv, commands, globalOptions);
  await parser.parseAsync([...argv], {}, (error, _, text) => {
    if (error) throw error instanceof UsageError ? error : usageError(error.message);
    if (text) printed = text;
  });
  return { chosen, printed };
}

/** Before yargs, which takes the word after a flag that it does not know for its value, and then misses that word. */
function refuseUnknownFlags(argv: readonly string[], commands: readonly Command[], globalOptions: Options): void {
  const known = new Set([globalOptions, ...commands.map(({ options }) => options)].flatMap(Object.keys));
  for (const word of argv) {
    if (word === "--") return;
    const name = /^--(?:no-)?([^=]+)/.exec(word)?.[1];
    if (name !== undefined && !known.has(name) && name !== "help" && name !== "version")
      throw usageError(`unknown flag: ${word.split("=", 1)[0]}`);
    // yargs keeps the words that are no flags under "_", and fails when a letter of a short flag replaces them.
    if (/^-[^-=]*_/.test(word)) throw usageError(`unknown flag: ${word.split("=", 1)[0]}`);
  }
}

function describeProgram(globalOptions: Options): Program {
  const program = yargs()
    .scriptName("wal-b")
    .usage(
      "wal-b archives PostgreSQL to S3: WAL, base backups, retention, restore.\n\nUsage: wal-b [--envdir DIR] COMMAND …",
    )
    .version(FULL_VERSION)
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
  return addOptions(program, globalOptions, "Everywhere:");
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

function addCommand(program: Program, command: Command, choose: (words: ParsedWords) => void): Program {
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

function addOptions(program: Program, options: Options, group: string): Program {
  for (const [name, { kind, help, alias, choices, setting }] of Object.entries(options)) {
    const initial = setting && initialTextOf(setting);
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
    hint: HINT_FOR_WORDS,
  });
}
