/** pgBackRest with its repository in a directory: zstd, two processes, checksums of pages and files as by default. */
import { copyFile, mkdir, readdir, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../../test/support/account.ts";
import { sizeBelow } from "../size.ts";
import type { Workload } from "../workload.ts";
import type { Missing, Peer } from "./peer.ts";
import { dataDirectoryToRestoreInto, expectRestored, expectSameFile, runOrThrow } from "./place.ts";

const STANZA = "bench";
const PROCESSES = 2;
/** ParamRequiredError in pgBackRest's error.yaml: archive-push without a path. */
const PATH_MISSING = 43;

/** @param name  also that of its directories */
export async function openPgbackrest(name: string, level: number, workload: Workload): Promise<Peer | Missing> {
  const program = Bun.which("pgbackrest");
  if (program === null) return { name, why: "pgbackrest is not installed" };

  const { server, segments } = workload;
  const [before, segment] = segments;
  const repository = await server.makeDirectory(`repository of ${name}`);
  const restored = join(server.directory, `restored by ${name}`);
  const fetched = await dataDirectoryToRestoreInto(name, server);
  const config = await writeConfig(workload, await server.makeDirectory(name), repository, level);
  const command = (...words: string[]) => [program, `--config=${config}`, `--stanza=${STANZA}`, ...words];
  const archivePush = command("archive-push")
    .map((word) => `'${word}'`)
    .join(" ");

  await runOrThrow(server, command("stanza-create"));
  await runOrThrow(server, command("archive-push", before.path));
  const backups = join(repository, "backup", STANZA);
  const empty = await keepEmpty(backups, await server.makeDirectory(`${name} without backups`));
  const archived = () => archivedFile(join(repository, "archive", STANZA), segment.name);

  return {
    name,
    version: (await runOrThrow(server, [program, "version"])).trim(),
    trials: {
      version: { command: [program, "version"] },
      failure: { command: command("archive-push"), expectedExitCode: PATH_MISSING },
      pushSegment: {
        command: command("archive-push", segment.path),
        async prepare() {
          const path = await archived();
          if (path !== undefined) await rm(path);
        },
        storedBytes: async () => (await stat((await archived()) ?? "")).size,
      },
      fetchSegment: {
        command: command("archive-get", segment.name, fetched),
        prepare: () => rm(fetched, { force: true }),
        check: () => expectSameFile(fetched, segment.path),
      },
      pushBackup: {
        command: command("backup", "--type=full"),
        async prepare() {
          await empty.restore();
          await workload.archiveWith(`exec ${archivePush} "$1"`);
        },
        storedBytes: () => sizeBelow(backups, { except: ["backup.info", "backup.info.copy", "latest"] }),
      },
      fetchBackup: {
        command: command("restore", `--pg1-path=${restored}`),
        async prepare() {
          await rm(restored, { recursive: true, force: true });
          await mkdir(restored, { mode: 0o700 });
          await giveTo(server.account, restored);
        },
        check: () => expectRestored(restored, workload),
      },
    },
  };
}

async function writeConfig({ server }: Workload, own: string, repository: string, level: number): Promise<string> {
  const path = join(own, "pgbackrest.conf");
  const lines = [
    "[global]",
    `repo1-path=${repository}`,
    "repo1-retention-full=9",
    `lock-path=${own}`,
    `log-path=${own}`,
    `spool-path=${own}`,
    "log-level-console=warn",
    "log-level-file=off",
    "compress-type=zst",
    `compress-level=${level}`,
    `process-max=${PROCESSES}`,
    "start-fast=y",
    "expire-auto=n",
    `[${STANZA}]`,
    `pg1-path=${server.dataDirectory}`,
    `pg1-socket-path=${server.socketDirectory}`,
    `pg1-port=${server.port}`,
    `pg1-user=${server.user}`,
  ];
  await writeFile(path, `${lines.join("\n")}\n`);
  await giveTo(server.account, path);
  return path;
}

/** pgBackRest lists its backups in two files, which must fit what is there. */
async function keepEmpty(backups: string, copies: string): Promise<{ restore(): Promise<void> }> {
  const lists = ["backup.info", "backup.info.copy"];
  for (const name of lists) await copyFile(join(backups, name), join(copies, name));
  return {
    async restore() {
      for (const name of await readdir(backups))
        if (!lists.includes(name)) await rm(join(backups, name), { recursive: true });
      for (const name of lists) await copyFile(join(copies, name), join(backups, name));
    },
  };
}

/** Its name there ends with the content's hash. */
async function archivedFile(archive: string, segment: string): Promise<string | undefined> {
  for (const path of await readdir(archive, { recursive: true }))
    if (path.includes(`/${segment}-`)) return join(archive, path);
  return undefined;
}
