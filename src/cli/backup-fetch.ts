/** wal-b backup-fetch DIR NAME|LATEST */
import { lastingPath } from "../system/working-directory.ts";
import type { Command } from "./command.ts";
import { TABLESPACE_OPTIONS, tablespaceChoice } from "./tablespace-choice.ts";

export const backupFetch: Command = {
  name: "backup-fetch",
  summary: "restore a base backup into an empty directory",
  description:
    'Restores the backup NAME, or the LATEST one, into DIRECTORY, which must be empty or not exist. Every file is compared with the backup\'s manifest; global/pg_control gets its name last, so that a half-restored directory cannot be started. Then set restore_command, make "recovery.signal" in the directory, and start the server.',
  positionals: { directory: { help: "where to restore to" }, name: { help: "of the backup, or LATEST" } },
  options: {
    "pool-size": { alias: "p", kind: "text", value: "N", setting: "downloadConcurrency", help: "parts read at once" },
    resume: { kind: "flag", help: "go on with a restore into this directory that was interrupted" },
    ...TABLESPACE_OPTIONS,
  },
  examples: [
    ["wal-b backup-fetch /var/lib/postgresql/18/main LATEST", "the newest backup"],
    ["wal-b backup-fetch /restore LATEST --resume", "the same again, after it was interrupted"],
    ["wal-b backup-fetch /restore LATEST --tablespace-mapping 16388=/mnt/fast", "with a tablespace elsewhere"],
  ],
  isLong: true,

  async run(words, context) {
    const [{ openRepository }, { fetchBackup }, { RestoreMarker }] = await Promise.all([
      import("./open-repository.ts"),
      import("../backup/fetch.ts"),
      import("../backup/restore-marker.ts"),
    ]);
    const tablespaces = tablespaceChoice(words);
    await using repository = await openRepository(context);
    const { store, zstd } = repository;
    const { settings, log, startProgress, now, signal, workingDirectory } = context;
    const directory = lastingPath(workingDirectory, words.required("directory"));
    await fetchBackup(words.required("name"), directory, {
      store,
      zstd: await zstd(),
      partsAtOnce: settings.downloadConcurrency,
      tablespaces,
      interrupted: words.isSet("resume") ? await RestoreMarker.takeOver(directory) : undefined,
      log,
      startProgress,
      now,
      signal,
    });
  },
};
