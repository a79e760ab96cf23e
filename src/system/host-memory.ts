/**
 * What was found out about a repository and need not be asked again on this host: small texts in a private directory below the
 * temporary one. Forgetting is harmless, so failures to remember are none.
 */
import { lstat, mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";

export interface HostMemory {
  recall(question: string): Promise<string | undefined>;
  remember(question: string, answer: string): Promise<void>;
}

/** @param userId  the account's number: nobody else's memory is trusted */
export function openHostMemory(temporaryDirectory: string, userId: number): HostMemory {
  const directory = join(temporaryDirectory, `wal-b-${userId}`);
  const fileOf = (question: string) =>
    join(directory, new Bun.CryptoHasher("sha256").update(question).digest("hex").slice(0, 32));

  return {
    async recall(question) {
      if (!(await isOurs(directory, userId))) return undefined;
      return readFile(fileOf(question), "utf8").catch(() => undefined);
    },

    async remember(question, answer) {
      try {
        await mkdir(directory, { recursive: true, mode: 0o700 });
        if (await isOurs(directory, userId)) await writeFile(fileOf(question), answer, { mode: 0o600 });
      } catch {
        // A full or read-only temporary directory costs a few requests a run and nothing else.
      }
    },
  };
}

async function isOurs(directory: string, userId: number): Promise<boolean> {
  // A link in the temporary directory may be anybody's.
  const found = await lstat(directory).catch(() => undefined);
  return found?.isDirectory() === true && found.uid === userId && (found.mode & 0o022) === 0;
}
