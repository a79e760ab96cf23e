/**
 * Words of the command line in their plain form → a command, without yargs.
 *
 * PostgreSQL starts wal-fetch and wal-push for every segment, and loading yargs takes them longer than everything else of their
 * start. What is plain: the command's words, and long flags that are spelled out and come once. All else is left to yargs, with
 * which this must agree: test/unit/cli/plain-words.test.ts.
 */
import type { Command, Option } from "./command.ts";

/** Texts, and true for flags that are set. */
export type ParsedWords = Readonly<Record<string, unknown>>;

export interface ChosenCommand {
  readonly command: Command;
  readonly words: ParsedWords;
}

type Options = Readonly<Record<string, Option>>;

/** @returns undefined for what is not plain: help, abbreviations, mistakes */
export function parsePlainWords(
  argv: readonly string[],
  commands: readonly Command[],
  globalOptions: Options,
): ChosenCommand | undefined {
  const isOfCommand = (word: string) => commands.find(({ name }) => name === word);
  const command = argv.map(isOfCommand).find((found) => found !== undefined);
  if (command === undefined) return undefined;

  const split = splitFlags(argv, globalOptions, command.options);
  if (split === undefined || split.others[0] !== command.name) return undefined;
  const values = split.others.slice(1);
  const names = Object.keys(command.positionals);
  const needed = Object.values(command.positionals).filter(({ optional }) => !optional).length;
  if (values.length < needed || values.length > names.length) return undefined;
  const positionals = Object.fromEntries(values.map((value, n) => [names[n], value]));
  return { command, words: { ...split.flags, ...positionals } };
}

function splitFlags(
  argv: readonly string[],
  globalOptions: Options,
  commandOptions: Options,
): { readonly flags: ParsedWords; readonly others: readonly string[] } | undefined {
  const flags: Record<string, unknown> = {};
  const others: string[] = [];
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? "";
    if (!word.startsWith("-")) {
      // yargs takes these for the value of a flag before them.
      if (word === "true" || word === "false") return undefined;
      others.push(word);
      continue;
    }
    const [, name = "", , inline] = /^--([a-z0-9-]+)(=(.*))?$/s.exec(word) ?? [];
    // Before the command, yargs knows only the flags of all.
    const options = others.length === 0 ? globalOptions : { ...globalOptions, ...commandOptions };
    const option = Object.hasOwn(options, name) ? options[name] : undefined;
    if (option === undefined || name in flags) return undefined;
    if (option.kind === "flag") {
      if (inline !== undefined) return undefined;
      flags[name] = true;
    } else {
      const value = inline ?? argv[++at];
      if (!value || value.startsWith("-") || option.choices?.includes(value) === false) return undefined;
      flags[name] = value;
    }
  }
  return { flags, others };
}
