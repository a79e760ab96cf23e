/** What is in a directory that was restored, or half restored. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";

/** Of a restore that is under way. */
export const MARKER = ".wal-b/unfinished-restore";

export const filesOf = async (directory: string): Promise<readonly string[]> =>
  [...new Bun.Glob("**/*").scanSync({ cwd: directory, dot: true, onlyFiles: true })].sort();

/** "path mode hash" of every file but the marker. */
export async function filesBelow(directory: string): Promise<readonly string[]> {
  const tell = async (file: string) => {
    const path = join(directory, file);
    return `${file} ${(await stat(path)).mode.toString(8)} ${Bun.hash(await readFile(path))}`;
  };
  return await Promise.all((await filesOf(directory)).filter((file) => file !== MARKER).map(tell));
}

/** restore notes the time in this one. */
export const withoutNotes = (files: readonly string[]): readonly string[] =>
  files.filter((file) => !file.startsWith("postgresql.auto.conf "));
