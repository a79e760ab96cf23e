/** What all peers need around their commands: somewhere to restore to, and whether they did. */
import { copyFile, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../../test/support/account.ts";
import type { PostgresServer } from "../../test/support/postgres-server.ts";
import { sizeBelow } from "../size.ts";
import type { Workload } from "../workload.ts";

const TIMEOUT_MS = 600_000;

/** @returns what the program printed */
export async function runOrThrow(
  server: PostgresServer,
  command: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<string> {
  const { exitCode, stdout, stderr } = await server.runAs(command, { env, timeoutMs: TIMEOUT_MS });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}:\n${stdout}${stderr}`);
  return stdout;
}

/** As a server in recovery has it: a pg_control, and a pg_wal for the segment. @returns %p of restore_command */
export async function dataDirectoryToRestoreInto(peer: string, server: PostgresServer): Promise<string> {
  const directory = `in recovery with ${peer}`;
  for (const name of ["", "/global", "/pg_wal"]) await server.makeDirectory(directory + name);
  const control = join(server.directory, directory, "global/pg_control");
  await copyFile(join(server.dataDirectory, "global/pg_control"), control);
  await giveTo(server.account, control);
  return join(server.directory, directory, "pg_wal/RECOVERYXLOG");
}

export async function expectSameFile(actual: string, expected: string): Promise<void> {
  const [found, wanted] = await Promise.all([readFile(actual), readFile(expected)]);
  if (!found.equals(wanted)) throw new Error(`${actual} is not what was archived`);
}

/** PostgreSQL makes them anew, so no backup has them. */
const NOT_BACKED_UP = ["pgsql_tmp", "pg_internal.init"];

/**
 * The relations' files are all there, with all of their bytes; that they can be used is for tests to say. Then they go: four of ten
 * gigabytes would not fit on many disks.
 */
export async function expectRestored(directory: string, { server }: Workload): Promise<void> {
  const [found, wanted] = await Promise.all(
    [directory, server.dataDirectory].map((root) => sizeBelow(join(root, "base"), { except: NOT_BACKED_UP })),
  );
  if (found !== wanted) throw new Error(`${directory}/base has ${found} bytes, not ${wanted}`);
  await rm(directory, { recursive: true });
}
