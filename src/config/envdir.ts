/**
 * Reads a directory of variables as daemontools' envdir does: one file a variable, named after it.
 * Source: envdir(8) and envdir.c: the first line counts, trailing blanks and tabs are cut, NUL means newline, an empty
 * file unsets the variable.
 */
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { reasonOf, UsageError } from "../errors.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface EnvdirReading {
  /** `undefined` for a variable that the directory unsets. */
  readonly variables: Environment;
  /** Files that accounts other than the owner and its group can read. */
  readonly readableByOthers: readonly string[];
}

/** @throws UsageError  the directory or one of its files cannot be read, or a name cannot be a variable */
export function readEnvdir(directory: string): EnvdirReading {
  const variables: Record<string, string | undefined> = {};
  const readableByOthers: string[] = [];

  for (const name of listFiles(directory)) {
    const path = join(directory, name);
    if (name.includes("=")) {
      throw new UsageError(`"${path}" cannot be a variable`, { hint: 'Rename the file; a name must not hold "=".' });
    }
    try {
      const stat = statSync(path);
      if (stat.isDirectory()) {
        throw new UsageError(`"${path}" is a directory, not a variable`, {
          hint: "Remove it, or pass another --envdir.",
        });
      }
      if (stat.mode & 0o004) readableByOthers.push(path);
      variables[name] = readValue(readFileSync(path));
    } catch (cause) {
      if (cause instanceof UsageError) throw cause;
      throw new UsageError(`could not read "${path}"`, { detail: `${reasonOf(cause)}.`, hint: HINT, cause });
    }
  }
  return { variables, readableByOthers };
}

/** envdir passes over names that begin with a dot. */
function listFiles(directory: string): readonly string[] {
  try {
    return readdirSync(directory)
      .filter((name) => !name.startsWith("."))
      .sort();
  } catch (cause) {
    throw new UsageError(`could not read the envdir "${directory}"`, {
      detail: `${reasonOf(cause)}.`,
      hint: HINT,
      cause,
    });
  }
}

const HINT = "Check that the path is right and that this account may read it.";

function readValue(content: Buffer): string | undefined {
  if (content.length === 0) return undefined;
  const [line = ""] = content.toString("utf8").split("\n", 1);
  return line.replace(/[ \t]+$/, "").replaceAll("\0", "\n");
}
