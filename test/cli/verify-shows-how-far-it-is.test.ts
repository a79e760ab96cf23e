/** On a terminal verify draws a line with percent, rate and time left, and takes it away again; the report is not touched by it. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { baseEnvironment } from "../support/run-program.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/temporary-directory.ts";
import { walbBinary } from "../support/walb.ts";

const segment = (number: number) => `0000000100000000000000${number.toString(16).toUpperCase().padStart(2, "0")}`;

let reports = 0;
let directory: TemporaryDirectory;
/** A short gap at the end of the archive is looked at for some seconds: long enough for a line, however fast this machine is. */
beforeAll(async () => {
  directory = await temporaryDirectory();
  const path = join(directory.path, "repository");
  await mkdir(path);
  const store = await openDirectoryStore({
    directory: join(directory.path, "repository"),
    signal: new AbortController().signal,
  });
  const zstd = await openZstd(3);
  const parts = { "part_001.tar.zst": { "global/pg_control": Buffer.alloc(8192) } };
  await putBackup(store, zstd, { startSegment: segment(1), parts });
  await putWal(store, zstd, [segment(1), segment(2), segment(4)]);
});
afterAll(async () => await directory[Symbol.asyncDispose]());

/** With stdout in a file, as of a script whose messages go to a terminal. */
async function verify(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  let shown = "";
  const output = join(directory.path, `report-${++reports}`);
  const command = ["/bin/sh", "-c", 'report=$1; shift; exec "$@" > "$report"', "sh", output, await walbBinary()];
  const running = Bun.spawn([...command, "verify", ...args], {
    env: { ...baseEnvironment(), WALB_FILE_PREFIX: join(directory.path, "repository"), TERM: "xterm", ...env },
    terminal: {
      cols: 100,
      rows: 24,
      data: (_, bytes) => {
        shown += Buffer.from(bytes).toString("utf8").replaceAll("\x1b", "ESC");
      },
    },
  });
  const exitCode = await running.exited;
  running.terminal?.close();
  return { exitCode, shown, report: await readFile(output, "utf8") };
}

const DRAWN = /\rWAL: read 3\.0 MiB of 3\.0 MiB \(100 %\), [\d.]+ MiB\/s(?:, 0 s left)?ESC\[K/g;

test.concurrent("a line is drawn over and over, and is gone before the last message; --json is one document", async () => {
  const { exitCode, shown, report } = await verify(["--json"]);
  expect(exitCode).toBe(65);
  expect(shown.match(DRAWN)?.length).toBeGreaterThan(1);
  const [, last] = shown.split("\rESC[Kwal-b: ERROR: ");
  expect(last).toStartWith("1 of 1 backup is not good\r\n");
  expect(last).not.toContain("ESC");
  expect(JSON.parse(report)).toMatchObject({ verdict: "bad", backups: [{ findings: [{}] }] });
}, 30_000);

test.concurrent.each([
  ["--terse", ["--terse"], {}],
  ["a terminal that cannot", [], { TERM: "dumb" }],
])(
  "with %s there is none",
  async (_, args, env) => {
    const { exitCode, shown, report } = await verify(args, env);
    expect(exitCode).toBe(65);
    expect(shown).not.toContain("ESC");
    expect(shown).not.toContain("read");
    expect(report).toStartWith("bad   base_");
  },
  30_000,
);
