/** Paths that are given relative to the working directory, also where that has no name that can be read. */
import { resolve } from "node:path";
import { UsageError } from "../errors.ts";

/** Linux's own way there. */
const WITHOUT_A_NAME = "/proc/self/cwd";

/**
 * Bun decodes paths as UTF-8, and one with other bytes becomes another path, where nothing is: recovery.signal would be missed in a
 * data directory of such a name, and what fails be taken for the end of WAL.
 *
 * @param path  what the process is told
 */
export const workingDirectory = (path: string): string => (isDecoded(path) ? path : WITHOUT_A_NAME);

/** Whether nothing was lost when it became text. */
export const isDecoded = (text: string): boolean => !text.includes("\uFFFD");

/**
 * Of a directory that is kept by its name, in links and settings.
 *
 * @throws UsageError  it is relative to a directory whose name cannot be read
 */
export function lastingPath(from: string, path: string): string {
  const found = resolve(from, path);
  if (!found.startsWith(`${WITHOUT_A_NAME}/`) && found !== WITHOUT_A_NAME) return found;
  throw new UsageError(`"${path}" is relative to a directory whose name is not UTF-8`, {
    hint: "Say an absolute path, to a place with a name in UTF-8.",
  });
}
