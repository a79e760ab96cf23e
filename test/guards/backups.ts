/** What guards backups: when one is listed, what of a restore can start, and what delete may remove. */
import { type Guard, ofPromise } from "./guard.ts";

export const BACKUP_GUARDS: readonly Guard[] = [
  ...ofPromise(5, [
    {
      guards: "the sentinel is written last",
      file: "repository/backup-upload.ts",
      search:
        "    await this.#put(keys.metadata, encodeMetadata(sentinel));\n    await this.#put(keys.sentinel, encodeSentinel(sentinel));",
      replacement:
        "    await this.#put(keys.sentinel, encodeSentinel(sentinel));\n    await this.#put(keys.metadata, encodeMetadata(sentinel));",
      test: "test/unit/repository/backup-upload.test.ts",
      fails: "the claim is written first and the sentinel last",
    },
    {
      guards: "delete removes the sentinel before what it stands for",
      file: "retention/delete.ts",
      search:
        "  for (const keys of contents) await store.delete(keys);\n  await store.delete(plan.removeWal.map(({ key }) => key));",
      replacement: "",
      test: "test/unit/retention/delete.test.ts",
      fails: "carryOut() > deletes the sentinel first, then the contents with the claim last, then WAL",
    },
    {
      guards: "a backup of a newer format is not guessed at",
      file: "repository/sentinel.ts",
      search: '  if ((own?.integer("FormatVersion") ?? 0) > FORMAT_VERSION) {',
      replacement: "  if (false) {",
      test: "test/unit/repository/sentinel.test.ts",
      fails: "a newer format",
    },
    {
      guards: "a backup waits for all WAL from start to stop",
      file: "backup/push.ts",
      search:
        "  const elsewhere = await waitForWal(session.startSegment, lastSegment, wait);\n  if (elsewhere) throw archivesElsewhere(elsewhere, wait);\n\n  const { server",
      replacement: "  void lastSegment;\n\n  const { server",
      test: "test/integration/backup-push-tells-why-wal-is-not-archived.test.ts",
      fails:
        "an archive that works > that breaks while files are copied: the missing segment is named, and the parts are taken back",
      needs: "servers",
    },
  ]),
  ...ofPromise(6, [
    {
      guards: "pg_control gets its name last",
      file: "backup/unpack.ts",
      search: "path === PG_CONTROL_PATH ? PG_CONTROL_UNTIL_COMPLETE : path",
      replacement: "path",
      test: "test/integration/backup-fetch-killed-leaves-nothing-that-starts.test.ts",
      fails: "killed when everything is there but pg_control's name",
      needs: "servers",
    },
    {
      guards: "a backup is complete, or its pg_control stays away",
      file: "backup/unpack.ts",
      search: "    if (missing.length === 0) return;\n    const shown",
      replacement: "    return;\n    const shown",
      test: "test/unit/backup/verify.test.ts",
      fails: "verifyBackups() finds > a part that is cut off between files",
    },
    {
      guards: "an unpacked part is read again when a directory of it is missing",
      file: "backup/resume.ts",
      search: "      (await hasDirectories(target, before));",
      replacement: "      true;",
      test: "test/integration/restore-resumes-where-it-was-interrupted.test.ts",
      fails: "what was changed meanwhile is restored again, whatever the marker says",
      needs: "servers",
    },
    {
      guards: "a restore goes on only with the backup that it began with",
      file: "backup/resume.ts",
      search:
        "  if (identity.backup === backup.name && identity.manifestSha256 === backup.walB.manifestSha256) return;\n",
      replacement: "  return;\n",
      test: "test/integration/restore-resumes-where-it-was-interrupted.test.ts",
      fails: "another backup, by its name",
      needs: "servers",
    },
    {
      guards: "a restore goes on only among its own files",
      file: "backup/resume.ts",
      search: "  if (foreign.length > 0) throw",
      replacement: "  if (false) throw",
      test: "test/integration/restore-resumes-where-it-was-interrupted.test.ts",
      fails: "files that no restore put there, in the target and in a tablespace, and removes nothing",
      needs: "servers",
    },
    {
      guards: "two restores do not work on one directory",
      file: "backup/restore-marker.ts",
      search: "  if (last && isRunning(last.runBy)) {",
      replacement: "  if (false) {",
      test: "test/integration/restore-resumes-where-it-was-interrupted.test.ts",
      fails: "a restore that still runs",
      needs: "servers",
    },
    {
      guards: "what a server has run on is restored no further",
      file: "backup/resume.ts",
      search: "    if (path === PG_CONTROL_PATH && !same) throw serverHasRun(plan.target);\n",
      replacement: "",
      test: "test/integration/restore-resumes-where-it-was-interrupted.test.ts",
      fails: "a directory that is complete and that a server has run on",
      needs: "servers",
    },
  ]),
  ...ofPromise(7, [
    {
      guards: "what a kept backup needs stays",
      file: "retention/plan.ts",
      search: "    retained.some((backup) => continues(backup, file, inventory.histories)) ||\n",
      replacement: "",
      test: "test/property/retention.test.ts",
      fails: "no plan removes what a kept backup, or recovery from it, needs",
    },
    {
      guards: "WAL of another timeline stays unless the history shows that it was left",
      file: "retention/plan.ts",
      search:
        "  return left === undefined || number <= segmentNumber(segmentHolding(file.timeline, left, size), size);",
      replacement:
        "  return file.timeline === backup.timeline || (left !== undefined && number <= segmentNumber(segmentHolding(file.timeline, left, size), size));",
      test: "test/property/retention.test.ts",
      fails: "no plan removes what a kept backup, or recovery from it, needs",
    },
    {
      guards: "a permanent backup keeps the WAL that completes it",
      file: "retention/plan.ts",
      search: "    permanent.some((backup) => completes(backup, file));",
      replacement: "    permanent.length < 0;",
      test: "test/property/retention.test.ts",
      fails: "no plan removes what a kept backup, or recovery from it, needs",
    },
    {
      guards: "WAL from the start of a backup that cannot be read stays",
      file: "retention/plan.ts",
      search: "!isNeeded(file) && !othersNeed(file);",
      replacement: "!isNeeded(file);",
      test: "test/property/retention.test.ts",
      fails: "no plan removes what a kept backup, or recovery from it, needs",
    },
    {
      guards: "a backup that cannot be read stops everything",
      file: "retention/inventory.ts",
      search: "  if (damaged) {",
      replacement: "  if (false && damaged) {",
      test: "test/unit/retention/delete.test.ts",
      fails: "readInventory() > refuses to go on with a damaged sentinel: what it needs cannot be known",
    },
    {
      guards: "nothing is deleted without --confirm",
      file: "cli/delete.ts",
      search: '      acts: words.isSet("confirm") && !words.isSet("dry-run"),',
      replacement: "      acts: true,",
      test: "test/unit/cli/delete.test.ts",
      fails: "removes nothing without --confirm, nor with --dry-run beside it",
    },
    {
      guards: "nothing is deleted when the plan could not be shown, because standard output is closed",
      file: "system/standard-stream.ts",
      search: "(Number.parseInt(flags, 8) & CLOSED_ON_EXEC) !== 0",
      replacement: "false",
      test: "test/cli/output.test.ts",
      fails: "standard output that is closed > delete removes nothing that it could not show",
      needs: "program",
    },
  ]),
];
