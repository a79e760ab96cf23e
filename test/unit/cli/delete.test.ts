/** What delete says and does at the command line; what it decides is test/unit/retention. */
import { expect, test } from "bun:test";
import { runProgram } from "../../../src/cli/program.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { UsageError } from "../../../src/errors.ts";
import { backupKeys } from "../../../src/repository/keys.ts";
import { openDirectoryStore } from "../../../src/storage/directory.ts";
import { putBackup, putWal } from "../../support/stored-backup.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

const zstd = await openZstd(3);
const SEGMENTS = [1, 2, 3, 4, 5].map((n) => `00000001000000000000000${n}`);

async function repositoryOfTwo(directory: string): Promise<void> {
  await using store = await openDirectoryStore({ directory, signal: new AbortController().signal });
  await putWal(store, zstd, SEGMENTS);
  const parts = { "part_001.tar.zst": { "global/pg_control": Buffer.from("control") } };
  for (const [n, startSegment] of [SEGMENTS[1], SEGMENTS[3]].entries())
    await putBackup(store, zstd, { startSegment: startSegment as string, parts, finishedAt: new Date(n) });
}

async function run(directory: string, argv: readonly string[]): Promise<string> {
  const output: string[] = [];
  await runProgram(argv, {
    env: { WALB_FILE_PREFIX: directory },
    workingDirectory: "/",
    signal: new AbortController().signal,
    now: () => new Date("2026-11-23"),
    adoptVariables: () => {},
    output: { isTerminal: false, write: (text) => output.push(text) },
    writeLog: () => {},
    statusLine: undefined,
  });
  return output.join("");
}

const filesIn = (directory: string) => [...new Bun.Glob("**/*").scanSync({ cwd: directory, dot: true })].sort();

const COMMANDS = [["retain", "1"], ["before", "LATEST"], ["garbage", "--min-age", "0s"], ["everything"]];

test.each(COMMANDS)(
  "delete %s %s removes nothing without --confirm, nor with --dry-run beside it",
  async (...words) => {
    await using directory = await temporaryDirectory();
    await repositoryOfTwo(directory.path);
    const before = filesIn(directory.path);
    for (const flags of [[], ["--confirm", "--dry-run"]]) {
      const said = await run(directory.path, ["delete", ...words.filter(Boolean), ...flags]);
      expect(said).toContain("remove  ");
      expect(said).toEndWith("nothing was removed: that needs --confirm\n");
      expect(filesIn(directory.path)).toEqual(before);
    }
    const shown = await run(directory.path, ["delete", ...words.filter(Boolean)]);
    const said = await run(directory.path, ["delete", ...words.filter(Boolean), "--confirm"]);
    // The plan that was shown is the one that is carried out.
    expect(said).toBe(shown.replace("nothing was removed: that needs --confirm\n", ""));
    expect(filesIn(directory.path).length).toBeLessThan(before.length);
    // A second run has nothing to do.
    expect(await run(directory.path, ["delete", ...words.filter(Boolean), "--confirm"])).not.toContain("remove  ");
  },
  30_000,
);

test("the plan tells of ranges of WAL, because what a permanent backup needs stays between them", async () => {
  await using directory = await temporaryDirectory();
  await using store = await openDirectoryStore({ directory: directory.path, signal: new AbortController().signal });
  const segments = [1, 2, 3, 4, 5, 6, 7, 8, 9].map((n) => `00000001000000000000000${n}`);
  await putWal(store, zstd, ["00000002.history=1\t0/950000\treason", ...segments]);
  const parts = { "part_001.tar.zst": { "global/pg_control": Buffer.from("control") } };
  for (const [n, startSegment] of [segments[1], segments[4], segments[7]].entries())
    await putBackup(store, zstd, { startSegment: startSegment as string, parts, finishedAt: new Date(n) });
  for (const n of [1, 4]) await run(directory.path, ["backup-mark", `base_${segments[n]}`]);
  expect(await run(directory.path, ["delete", "before", "LATEST"])).toMatch(
    new RegExp(`no backup kept needs: ${segments[0]}, ${segments[3]}, ${segments[6]}\n`),
  );
  for (const n of [1, 4]) await run(directory.path, ["backup-mark", `base_${segments[n]}`, "--impermanent"]);
  expect(await run(directory.path, ["delete", "before", "LATEST"])).toContain(`: ${segments[0]} … ${segments[6]}\n`);
});

/** Of a kind that this program does not read. */
async function putSentinel(directory: string, name: string, fields: object): Promise<void> {
  await using store = await openDirectoryStore({ directory, signal: new AbortController().signal });
  await store.putIfAbsent(backupKeys(name).sentinel, Buffer.from(JSON.stringify(fields)));
}

const SPARING = [["retain", "1"], ["before", "LATEST"], ["garbage"]];

test.each(SPARING)(
  "delete %s %s keeps the full backup that a delta of WAL-G's is made on, and all WAL from its start on",
  async (...words) => {
    await using directory = await temporaryDirectory();
    await repositoryOfTwo(directory.path);
    const [base, delta] = [`base_${SEGMENTS[1]}`, `base_${SEGMENTS[2]}_D_${SEGMENTS[1]}`];
    await putSentinel(directory.path, delta, { DeltaFrom: base, DeltaFullName: base });
    const before = filesIn(directory.path);
    const said = await run(directory.path, ["delete", ...words.filter(Boolean), "--confirm"]);
    if (words[0] !== "garbage") expect(said).toContain(`keep    ${base}  the delta ${delta} is made on it\n`);
    const gone = words[0] === "retain" ? [] : [`wal_005/${SEGMENTS[0]}.zst`];
    expect(filesIn(directory.path)).toEqual(before.filter((path) => !gone.includes(path)));
  },
);

test.each([
  ["a delta", `base_${SEGMENTS[2]}_D_${SEGMENTS[1]}`, {}],
  ["WAL-E's", `base_${SEGMENTS[2]}_00000040`, {}],
  ["of a newer format", `base_${SEGMENTS[2]}`, { IsPermanent: true, WalB: { FormatVersion: 99 } }],
])(
  "delete everything without FORCE removes nothing beside a backup that may be permanent: %s",
  async (_, name, fields) => {
    await using directory = await temporaryDirectory();
    await repositoryOfTwo(directory.path);
    await putSentinel(directory.path, name, fields);
    const before = filesIn(directory.path);
    const refusal = run(directory.path, ["delete", "everything", "--confirm"]);
    await expect(refusal).rejects.toBeInstanceOf(UsageError);
    await expect(refusal).rejects.toMatchObject({
      message: "there are backups of a kind that this program does not know, which may be permanent",
      detail: `"${name}".`,
      hint: 'Remove them with the program that wrote them, or say "delete everything FORCE".',
    });
    expect(filesIn(directory.path)).toEqual(before);
    expect(await run(directory.path, ["delete", "everything", "FORCE"])).toContain(
      `remove  ${name}  everything goes\n`,
    );
    await run(directory.path, ["delete", "everything", "FORCE", "--confirm"]);
    expect(filesIn(directory.path)).toEqual([]);
  },
);
