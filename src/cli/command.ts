/** What a command is: its words, its help, and what it does with them. */

import type { Environment } from "../config/envdir.ts";
import type { SettingName, Settings } from "../config/settings.ts";
import type { Log } from "../system/log.ts";
import type { StartProgress } from "../system/progress.ts";

/** A word of the command line. Values come as text and are checked where they are used, so that messages agree. */
export interface Option {
  readonly help: string;
  readonly alias?: string;
  readonly kind: "text" | "flag";
  /** How the value is called in the help; only for texts. */
  readonly value?: string;
  /** The setting that this flag sets; then the setting's bounds and initial value count. */
  readonly setting?: SettingName;
  /** Only these texts are allowed. */
  readonly choices?: readonly string[];
}

export interface Positional {
  readonly help: string;
  readonly optional?: true;
}

export interface Command {
  readonly name: string;
  /** One line, for the list of commands. */
  readonly summary: string;
  /** A paragraph, for the command's own help. */
  readonly description: string;
  readonly positionals: Readonly<Record<string, Positional>>;
  readonly options: Readonly<Record<string, Option>>;
  readonly examples: readonly (readonly [command: string, what: string])[];
  /** Started by wal-b itself, and in no help. */
  readonly isInternal?: true;
  /** Giving up would cost hours of work: some settings have another initial value then (`initialOfLong`). */
  readonly isLong?: true;
  run(words: Words, context: CommandContext): Promise<void>;
}

export interface Words {
  /** A positional or an option with a value. */
  text(name: string): string | undefined;
  /** The same, for a positional that is not optional. */
  required(name: string): string;
  isSet(name: string): boolean;
  /** The flags that every command takes, as they were given. */
  globalFlags(): readonly string[];
}

export interface CommandContext {
  readonly settings: Settings;
  readonly env: Environment;
  readonly log: Log;
  /** Aborted, with an InterruptedError as its reason, when a signal asks the program to stop. */
  readonly signal: AbortSignal;
  readonly workingDirectory: string;
  readonly now: () => Date;
  readonly output: Output;
  readonly startProgress: StartProgress;
}

/** Standard output: results, as opposed to messages. */
export interface Output {
  readonly isTerminal: boolean;
  write(text: string): void;
}

export const HINT_FOR_WORDS = 'Run "wal-b --help", or "wal-b COMMAND --help".';
