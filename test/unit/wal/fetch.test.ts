import { expect, test } from "bun:test";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../../src/codec/zstd.ts";
import {
  DestinationError,
  type Failure,
  IntegrityError,
  NotFoundError,
  StorageError,
  UsageError,
} from "../../../src/errors.ts";
import { parseWalFile, type WalFile } from "../../../src/postgres/wal-segment.ts";
import { walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import { fetchWal } from "../../../src/wal/fetch.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { historyContent, SYSTEM_IDENTIFIER, sourceOf, walContent } from "../../support/wal-content.ts";

const zstd = await openZstd(3);
const SEGMENT = "000000010000000000000001";

async function setUp() {
  const directory = await temporaryDirectory();
  const store = new MemoryObjectStore();
  const archive = openWalArchive(store, async () => zstd);
  const { log, expectLog } = recordingLog();
  const put = async (name: string, content: Uint8Array) =>
    archive.putIfAbsent(await archive.prepare(parseWalFile(name) as WalFile, sourceOf(content)));
  await put(SEGMENT, walContent(SEGMENT));
  await put("00000002.history", historyContent());
  const destination = join(directory.path, "RECOVERYXLOG");
  return {
    directory: directory.path,
    put,
    destination,
    store,
    expectLog,
    fetch: (
      name: string,
      {
        to = destination,
        systemIdentifier = SYSTEM_IDENTIFIER as bigint | undefined,
        error = undefined as Error | undefined,
        gaps = "passed on" as "refused" | "passed on",
      } = {},
    ) =>
      fetchWal(name, to, {
        archive: openWalArchive(new FaultStore(store, error && { atCall: 1, when: "before", error }), async () => zstd),
        systemIdentifier,
        gaps,
        log,
        signal: new AbortController().signal,
      }),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

test("fetchWal() puts a segment in place, whole, over what was there, readable by its owner only", async () => {
  await using site = await setUp();
  await writeFile(site.destination, "left over from before");
  await site.fetch(SEGMENT);
  expect(Buffer.compare(await readFile(site.destination), walContent(SEGMENT))).toBe(0);
  expect((await stat(site.destination)).mode & 0o777).toBe(0o600);
  expect(await readdir(site.directory)).toEqual(["RECOVERYXLOG"]);
  site.expectLog(`INFO: restored "${SEGMENT}" from the archive`);
});

test("fetchWal() fetches a timeline history, and works where no cluster is known", async () => {
  await using site = await setUp();
  await site.fetch("00000002.history");
  expect(Buffer.compare(await readFile(site.destination), historyContent())).toBe(0);
  await site.fetch(SEGMENT, { systemIdentifier: undefined });
});

test("fetchWal() does not take a gap in the archive for its end, in recovery", async () => {
  await using site = await setUp();
  await site.put("000000010000000000000009", walContent("000000010000000000000009"));
  await site.put("00000002000000000000000A", walContent("00000002000000000000000A"));
  const gap = "000000010000000000000007";
  await expect(site.fetch(gap, { gaps: "refused" })).rejects.toThrow(`the archive has a gap: "${gap}" is missing`);
  await expect(site.fetch(gap)).rejects.toThrow(NotFoundError);
  // Behind the last segment of its timeline, whatever other timelines have.
  await expect(site.fetch("00000001000000000000000A", { gaps: "refused" })).rejects.toThrow(NotFoundError);
  await expect(site.fetch("000000030000000000000007", { gaps: "refused" })).rejects.toThrow(NotFoundError);
}, 20_000);

test.each([
  ["what is not in the archive", "000000010000000000000009", {}, NotFoundError, "is not in the archive"],
  ["a history that is not in the archive", "00000003.history", {}, NotFoundError, "is not in the archive"],
  ["what is no WAL file", "RECOVERYXLOG", {}, UsageError, "is not the name of a WAL file"],
  ["a path", "../000000010000000000000001", {}, UsageError, "is not the name of a WAL file"],
  [
    "another cluster's segment",
    SEGMENT,
    { systemIdentifier: 8n },
    IntegrityError,
    `archived "${SEGMENT}" is of another cluster`,
  ],
  ["anything while the store fails", SEGMENT, { error: new StorageError("time-out") }, StorageError, "time-out"],
  [
    "to a place that is not there",
    SEGMENT,
    { to: "/proc/not there/RECOVERYXLOG" },
    DestinationError,
    "could not write",
  ],
] as const)("fetchWal() does not fetch %s, and leaves nothing behind", async (_, name, options, failure, message) => {
  await using site = await setUp();
  const thrown = await site.fetch(name, options).catch((error: unknown) => error);
  expect(thrown).toBeInstanceOf(failure);
  expect((thrown as Failure).message).toContain(message);
  expect(await readdir(site.directory)).toEqual([]);
  site.expectLog();
});

test("fetchWal() never puts damaged content in place, wherever a bit of the object flipped", async () => {
  await using site = await setUp();
  const { body, metadata } = await site.store.get(walKey(SEGMENT), 2 ** 20);
  for (let place = 0; place < body.byteLength; place += 7) {
    const damaged = body.slice();
    damaged[place] = (damaged[place] ?? 0) ^ (1 << (place % 8));
    await site.store.replace(walKey(SEGMENT), damaged, metadata);
    const thrown = await site.fetch(SEGMENT).catch((error: unknown) => error);
    expect(thrown, `byte ${place}`).toBeInstanceOf(IntegrityError);
  }
  expect(await readdir(site.directory)).toEqual([]);
});
