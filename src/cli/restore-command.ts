/** The restore_command of a restored server: this program, with the settings that it was started with, and no secret. */
import { type Environment, readEnvdir } from "../config/envdir.ts";
import { loadSettings, SETTING_NAMES, type Settings, variablesOf } from "../config/settings.ts";
import { UsageError } from "../errors.ts";
import { lastingPath } from "../system/working-directory.ts";

export interface RestoreCommandSource {
  readonly program: string;
  /** Of every command, as they were given. */
  readonly globalFlags: readonly string[];
  readonly settings: Pick<Settings, "s3Prefix" | "filePrefix">;
  /** With what --envdir set. */
  readonly env: Environment;
  readonly workingDirectory: string;
}

export interface RestoreCommand {
  readonly command: string;
  /** Names that only the environment has: the server's must have them too. */
  readonly variables: readonly string[];
}

/** What makes messages more or fewer is for this run only. */
const FOR_THIS_RUN = /^--(verbose|terse|log-format)(=|$)/;

/** @throws UsageError  a flag cannot be written into a configuration file */
export function restoreCommandOf(source: RestoreCommandSource): RestoreCommand {
  const { program, settings, env, workingDirectory } = source;
  const flags = source.globalFlags.filter((flag) => !FOR_THIS_RUN.test(flag));
  const given = flags.find((flag) => flag.startsWith("--envdir="))?.slice("--envdir=".length);
  const envdir = given === undefined ? undefined : lastingPath(workingDirectory, given);
  const inEnvdir = envdir === undefined ? {} : readEnvdir(envdir).variables;
  const words = [
    program,
    ...(envdir === undefined ? [] : ["--envdir", envdir]),
    ...flags.filter((flag) => !flag.startsWith("--envdir=")),
    ...prefixFlags(settings, flags, inEnvdir),
  ];
  const command = `${words.map(quoteWord).join(" ")} wal-fetch %f "%p"`;
  if (/[\0\n\r]/.test(command)) throw new UsageError("restore_command cannot hold a line's end");
  const variables = repositoryVariables(env, inEnvdir).filter(
    (name) => settings.filePrefix === undefined || !ofS3(name),
  );
  return { command, variables };
}

/** The server's environment need not say where the repository is. */
function prefixFlags(
  { s3Prefix, filePrefix }: RestoreCommandSource["settings"],
  flags: readonly string[],
  inEnvdir: Environment,
) {
  const known = loadSettings({}, inEnvdir);
  const missing = (flag: string, value: string | undefined, there: string | undefined) =>
    value === undefined || value === there || flags.some((each) => each.startsWith(`--${flag}=`))
      ? []
      : [`--${flag}=${value}`];
  return [...missing("s3-prefix", s3Prefix, known.s3Prefix), ...missing("file-prefix", filePrefix, known.filePrefix)];
}

function repositoryVariables(env: Environment, inEnvdir: Environment): readonly string[] {
  const prefixes = new Set([...variablesOf("s3Prefix"), ...variablesOf("filePrefix")]);
  const ours = new Set(SETTING_NAMES.flatMap(variablesOf));
  return Object.keys(env)
    .filter((name) => env[name] && !inEnvdir[name] && !prefixes.has(name))
    .filter((name) => ours.has(name) || name.startsWith("AWS_"))
    .sort();
}

/** Of no use to a repository in a directory. */
const ofS3 = (variable: string) => /^AWS_|_S3_/.test(variable);

/** For a POSIX shell; PostgreSQL replaces %f, %p and %r, and %% by % (BuildRestoreCommand). */
function quoteWord(word: string): string {
  const escaped = word.replaceAll("%", "%%");
  return /^[\w./:=,@+-]+$/.test(word) ? escaped : `'${escaped.replaceAll("'", `'\\''`)}'`;
}
