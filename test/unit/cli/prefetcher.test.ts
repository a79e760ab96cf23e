import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { CommandContext, Words } from "../../../src/cli/command.ts";
import { prefetchDirectoryOf, prefetcherFor, removeLeftovers } from "../../../src/cli/prefetcher.ts";
import { loadSettings } from "../../../src/config/settings.ts";
import { NO_PROGRESS } from "../../../src/system/progress.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { piecesOf, SYSTEM_IDENTIFIER, walContent } from "../../support/wal-content.ts";
import { controlFile } from "../postgres/control-file.ts";

const SEGMENT = "000000010000000000000001";

/** A data directory in recovery. */
async function setUp(env: Readonly<Record<string, string>> = {}) {
  const directory = await temporaryDirectory();
  for (const name of ["global", "pg_wal"]) await mkdir(join(directory.path, name));
  await writeFile(join(directory.path, "global/pg_control"), controlFile());
  await writeFile(join(directory.path, "recovery.signal"), "");
  const { log, expectLog } = recordingLog();
  const context: CommandContext = {
    settings: loadSettings({}, env),
    env: {},
    log,
    signal: new AbortController().signal,
    workingDirectory: directory.path,
    now: () => new Date(0),
    output: { isTerminal: false, write: () => {} },
    startProgress: NO_PROGRESS,
  };
  const words: Words = { text: () => undefined, required: () => "", isSet: () => false, globalFlags: () => [] };
  const destination = join(directory.path, "pg_wal", "RECOVERYXLOG");
  return {
    directory: directory.path,
    destination,
    context,
    kept: prefetchDirectoryOf(destination, context.settings, SYSTEM_IDENTIFIER),
    expectLog,
    prefetcher: (name = SEGMENT, to = destination) => prefetcherFor(name, to, words, context),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

/** Above the kernel's limit: nobody's. */
const DEAD = String(2 ** 22 + 1);

test("a segment that is ready is put in place", async () => {
  await using site = await setUp();
  site.kept.create(SEGMENT);
  await site.kept.put(SEGMENT, piecesOf(walContent(SEGMENT)));
  expect(await site.prefetcher()?.take()).toBe("taken");
  expect(Buffer.compare(await readFile(site.destination), walContent(SEGMENT))).toBe(0);
  expect(await site.prefetcher()?.take()).toBe("not ready");
  site.expectLog();
});

test("a segment that was ready from another repository is none", async () => {
  await using site = await setUp({ WALB_FILE_PREFIX: "/here" });
  const other = loadSettings({}, { WALB_FILE_PREFIX: "/there" });
  site.kept.create(SEGMENT);
  await prefetchDirectoryOf(site.destination, other, SYSTEM_IDENTIFIER).put(SEGMENT, piecesOf(walContent(SEGMENT)));
  expect(await site.prefetcher()?.take()).toBe("not ready");
  site.expectLog(`WARNING: discarded "${SEGMENT}": it was damaged after it was prefetched`);
  expect(existsSync(site.destination)).toBe(false);
});

test("a directory that cannot be used costs speed and never an exit code", async () => {
  await using site = await setUp({ WALB_PREFETCH_DIR: "/proc/not there" });
  const prefetcher = site.prefetcher();
  expect(await prefetcher?.take()).toBe("not ready");
  await prefetcher?.advance();
  site.expectLog(
    `WARNING: cannot prefetch WAL\n  DETAIL: ENOENT: no such file or directory, mkdir '${site.kept.path}'.`,
  );
});

test("a file in the directory's place costs speed and never an exit code", async () => {
  await using site = await setUp();
  await writeFile(site.kept.path, "");
  const prefetcher = site.prefetcher();
  expect(await prefetcher?.take()).toBe("not ready");
  await prefetcher?.advance();
  const warning = `WARNING: cannot prefetch WAL\n  DETAIL: "${site.kept.path}" is not a directory that only this account can write to.`;
  site.expectLog(warning, warning);
});

test("a pg_control that cannot be read costs speed and never an exit code", async () => {
  await using site = await setUp();
  await writeFile(join(site.directory, "global/pg_control"), "");
  expect(await site.prefetcher()?.take()).toBe("not ready");
});

test("there is nothing to prefetch for people, outside of recovery, and where it is switched off", async () => {
  await using site = await setUp();
  expect(site.prefetcher(SEGMENT, join(site.directory, "pg_wal", SEGMENT))).toBeUndefined();
  await using without = await setUp({ WALB_PREFETCH: "0" });
  expect(without.prefetcher()).toBeUndefined();
  await rm(join(site.directory, "recovery.signal"));
  expect(site.prefetcher()).toBeUndefined();
});

test.each([
  ["dead", DEAD, false],
  ["alive", String(process.pid), true],
])("what a prefetcher keeps that is %s, when recovery asks for a history", async (_, number, stays) => {
  await using site = await setUp();
  site.kept.create(SEGMENT);
  await writeFile(join(site.kept.path, "prefetcher"), number);
  const history = site.prefetcher("00000002.history", join(site.directory, "pg_wal", "RECOVERYHISTORY"));
  expect(await history?.take()).toBe("not ready");
  expect(existsSync(site.kept.path)).toBe(stays);
});

test.each([
  ["dead", DEAD, false],
  ["alive", String(process.pid), true],
])("what a prefetcher keeps that is %s, when wal-push comes by", async (_, number, stays) => {
  await using site = await setUp();
  await removeLeftovers(`pg_wal/${SEGMENT}`, site.context);
  site.kept.create(SEGMENT);
  await writeFile(join(site.kept.path, "prefetcher"), number);
  await removeLeftovers(`pg_wal/${SEGMENT}`, site.context);
  expect(existsSync(site.kept.path)).toBe(stays);
});

describe("on a standby", () => {
  const NEXT = "000000010000000000000002";

  /** The segment before was put in place some time ago. */
  async function setUpStandby(agoMs: number) {
    const site = await setUp();
    await rename(join(site.directory, "recovery.signal"), join(site.directory, "standby.signal"));
    await writeFile(join(site.directory, "pg_wal", SEGMENT), "");
    // The time of a file's last change of status cannot be set.
    await Bun.sleep(agoMs);
    return site;
  }

  test("that keeps up, none is started, and what is left is removed", async () => {
    await using site = await setUpStandby(2_100);
    await site.prefetcher(NEXT)?.advance();
    expect(existsSync(site.kept.path)).toBe(false);
  });

  test("that catches up, one is started", async () => {
    await using site = await setUpStandby(0);
    await site.prefetcher(NEXT)?.advance();
    expect(site.kept.position()?.name).toBe(NEXT);
  });
});
