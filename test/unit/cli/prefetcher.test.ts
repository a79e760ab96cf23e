import { expect, test } from "bun:test";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { CommandContext, Words } from "../../../src/cli/command.ts";
import { prefetcherFor, prefetchPath } from "../../../src/cli/prefetcher.ts";
import { loadSettings } from "../../../src/config/settings.ts";
import { PrefetchDirectory } from "../../../src/wal/prefetch-directory.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { walContent } from "../../support/wal-content.ts";

const SEGMENT = "000000010000000000000001";

/** A data directory in recovery. */
async function setUp(env: Readonly<Record<string, string>> = {}) {
  const directory = await temporaryDirectory();
  for (const name of ["global", "pg_wal"]) await mkdir(join(directory.path, name));
  for (const name of ["global/pg_control", "recovery.signal"]) await writeFile(join(directory.path, name), "");
  const { log, expectLog } = recordingLog();
  const context: CommandContext = {
    settings: loadSettings({}, env),
    env: {},
    log,
    signal: new AbortController().signal,
    workingDirectory: directory.path,
    now: () => new Date(0),
    output: { isTerminal: false, write: () => {} },
  };
  const words: Words = { text: () => undefined, required: () => "", isSet: () => false, globalFlags: () => [] };
  const destination = join(directory.path, "pg_wal", "RECOVERYXLOG");
  return {
    directory: directory.path,
    destination,
    expectLog,
    prefetcher: (name = SEGMENT, to = destination) => prefetcherFor(name, to, words, context),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

test("a segment that is ready is put in place", async () => {
  await using site = await setUp();
  const ready = new PrefetchDirectory(prefetchPath(site.destination, undefined));
  await ready.setPosition(SEGMENT);
  await ready.put(SEGMENT, walContent(SEGMENT));
  expect(await site.prefetcher()?.take()).toBe("taken");
  expect(Buffer.compare(await readFile(site.destination), walContent(SEGMENT))).toBe(0);
  expect(await site.prefetcher()?.take()).toBe("not ready");
});

test("a directory that cannot be used costs speed and never an exit code", async () => {
  await using site = await setUp({ WALB_PREFETCH_DIR: "/proc/not there" });
  const prefetcher = site.prefetcher();
  expect(await prefetcher?.take()).toBe("not ready");
  await prefetcher?.advance();
  const path = prefetchPath(site.destination, "/proc/not there");
  site.expectLog(
    `WARNING: cannot prefetch into "${path}"\n  DETAIL: ENOENT: no such file or directory, mkdir '${path}'.`,
  );
});

test("there is nothing to prefetch for histories, for people, and where it is switched off", async () => {
  await using site = await setUp();
  expect(site.prefetcher("00000002.history")).toBeUndefined();
  expect(site.prefetcher(SEGMENT, join(site.directory, "pg_wal", SEGMENT))).toBeUndefined();
  await using without = await setUp({ WALB_PREFETCH: "0" });
  expect(without.prefetcher()).toBeUndefined();
});
