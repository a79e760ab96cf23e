/** The command lines of WAL-E's manual, as people have them in archive_command, cron and their heads (README of WAL-E 1.1). */
import { describe, expect, test } from "bun:test";
import { parseWords } from "../../../src/cli/command-line.ts";
import { allCommands, GLOBAL_OPTIONS } from "../../../src/cli/program.ts";
import { UsageError } from "../../../src/errors.ts";

/** Without what yargs adds: aliases, and words in another spelling. */
async function understood(line: string) {
  const { chosen } = await parseWords(line.split(" "), await allCommands(), GLOBAL_OPTIONS);
  const { command, words } = chosen ?? {};
  const named = { ...GLOBAL_OPTIONS, ...command?.positionals, ...command?.options };
  const given = Object.keys(named).filter((name) => words?.[name] !== undefined && words[name] !== false);
  return { command: command?.name, words: Object.fromEntries(given.map((name) => [name, words?.[name]])) };
}

describe("WAL-E's command lines are understood", () => {
  test.each([
    ["wal-push pg_wal/0", "wal-push", { path: "pg_wal/0" }],
    ["wal-push --pool-size 8 pg_wal/0", "wal-push", { "pool-size": "8", path: "pg_wal/0" }],
    ["wal-push -p 8 pg_wal/0", "wal-push", { "pool-size": "8", path: "pg_wal/0" }],
    ["--terse wal-push pg_wal/0", "wal-push", { terse: true, path: "pg_wal/0" }],
    ["wal-fetch 0 pg_wal/RECOVERYXLOG", "wal-fetch", { name: "0", destination: "pg_wal/RECOVERYXLOG" }],
    ["wal-fetch -p 0 0A pg_wal/X", "wal-fetch", { prefetch: "0", name: "0A", destination: "pg_wal/X" }],
    ["wal-fetch --prefetch=16 0A pg_wal/X", "wal-fetch", { prefetch: "16", name: "0A", destination: "pg_wal/X" }],
    ["backup-push /data", "backup-push", { directory: "/data" }],
    ["backup-push --pool-size 2 /data", "backup-push", { "pool-size": "2", directory: "/data" }],
    ["backup-push -p 2 /data", "backup-push", { "pool-size": "2", directory: "/data" }],
    ["backup-push /data --while-offline", "backup-push", { "while-offline": true, directory: "/data" }],
    [
      "backup-push --cluster-read-rate-limit 1048576 /data",
      "backup-push",
      { "cluster-read-rate-limit": "1048576", directory: "/data" },
    ],
    ["backup-fetch /data LATEST", "backup-fetch", { directory: "/data", name: "LATEST" }],
    ["backup-fetch -p 2 /data LATEST", "backup-fetch", { "pool-size": "2", directory: "/data", name: "LATEST" }],
    [
      "backup-fetch --blind-restore /data base_000000010000000000000006_00000032",
      "backup-fetch",
      { "blind-restore": true, directory: "/data", name: "base_000000010000000000000006_00000032" },
    ],
    [
      "backup-fetch --restore-spec /spec.json /data LATEST",
      "backup-fetch",
      { "restore-spec": "/spec.json", directory: "/data", name: "LATEST" },
    ],
    ["backup-list", "backup-list", {}],
    ["backup-list LATEST", "backup-list", { name: "LATEST" }],
    ["backup-list --detail", "backup-list", { detail: true }],
    [
      "delete before base_000000010000000000000006",
      "delete",
      { what: "before", value: "base_000000010000000000000006" },
    ],
    ["delete --confirm retain 5", "delete", { confirm: true, what: "retain", value: "5" }],
    ["delete --dry-run retain 5", "delete", { "dry-run": true, what: "retain", value: "5" }],
    ["delete --confirm old-versions", "delete", { confirm: true, what: "old-versions" }],
    ["delete --confirm everything", "delete", { confirm: true, what: "everything" }],
    ["version", "version", {}],
    [
      "-k KEY --s3-prefix=s3://bucket/path --aws-instance-profile backup-list",
      "backup-list",
      { "aws-access-key-id": "KEY", "s3-prefix": "s3://bucket/path", "aws-instance-profile": true },
    ],
    ["--gpg-key-id 0xABC wal-push pg_wal/0", "wal-push", { "gpg-key-id": "0xABC", path: "pg_wal/0" }],
  ])("%s", async (line, command, words) => {
    expect(await understood(line)).toEqual({ command, words });
  });

  test.each(["--wabs-prefix", "--gs-prefix"])("but of %s, which is another service, it is said", async (flag) => {
    const refusal = understood(`${flag}=x://bucket backup-list`);
    await expect(refusal).rejects.toBeInstanceOf(UsageError);
    await expect(refusal).rejects.toThrow(`unknown flag: ${flag}`);
  });
});
