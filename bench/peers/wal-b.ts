/** wal-b itself: the binary that was built, with a repository in a directory. */
import { chmod, copyFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { sizeBelow } from "../size.ts";
import type { Workload } from "../workload.ts";
import type { Peer } from "./peer.ts";
import { dataDirectoryToRestoreInto, expectRestored, expectSameFile, runOrThrow } from "./place.ts";

/** Of a name that is no WAL file's (src/errors.ts). */
const USAGE_ERROR = 64;
/** A broken archive_command is to be told soon. */
const ARCHIVE_TIMEOUT = "1min";

/**
 * @param name      also that of its directory
 * @param settings  other ones than the initial ones
 */
export async function openWalB(
  name: string,
  built: string,
  workload: Workload,
  settings: Readonly<Record<string, string>> = {},
): Promise<Peer> {
  const { server, segments } = workload;
  const [before, segment] = segments;
  const binary = await keepCopy(built, await server.makeDirectory(`program of ${name}`));
  const repository = await server.makeDirectory(`repository of ${name}`);
  const env = { ...server.env, WALB_FILE_PREFIX: repository, WALB_ARCHIVE_TIMEOUT: ARCHIVE_TIMEOUT, ...settings };
  const restored = join(server.directory, `restored by ${name}`);
  const fetched = await dataDirectoryToRestoreInto(name, server);
  const archived = join(repository, "wal_005", `${segment.name}.zst`);
  const run = (...words: string[]) => runOrThrow(server, [binary, ...words], env);

  const version = (await run("--version")).trim();
  await run("wal-push", before.path);
  return {
    name,
    version,
    trials: {
      version: { command: [binary, "--version"], env },
      failure: { command: [binary, "wal-push", "no-wal-file"], env, expectedExitCode: USAGE_ERROR },
      pushSegment: {
        command: [binary, "wal-push", segment.path],
        env,
        prepare: () => rm(archived, { force: true }),
        storedBytes: async () => (await stat(archived)).size,
      },
      fetchSegment: {
        command: [binary, "wal-fetch", segment.name, fetched],
        env,
        prepare: () => rm(fetched, { force: true }),
        check: () => expectSameFile(fetched, segment.path),
      },
      pushBackup: {
        command: [binary, "backup-push", server.dataDirectory],
        env,
        async prepare() {
          await rm(join(repository, "basebackups_005"), { recursive: true, force: true });
          await workload.archiveWith(`WALB_FILE_PREFIX='${repository}' exec '${binary}' wal-push "$1"`);
        },
        storedBytes: () => sizeBelow(join(repository, "basebackups_005")),
      },
      fetchBackup: {
        command: [binary, "backup-fetch", restored, "LATEST"],
        env,
        prepare: () => rm(restored, { recursive: true, force: true }),
        check: () => expectRestored(restored, workload),
      },
    },
  };
}

/** A build that ends meanwhile would change what is measured. */
export async function keepCopy(built: string, directory: string): Promise<string> {
  const copy = join(directory, "wal-b");
  await copyFile(built, copy);
  await chmod(copy, 0o755);
  return copy;
}
