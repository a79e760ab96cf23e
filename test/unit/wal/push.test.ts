import { describe, expect, test } from "bun:test";
import { mkdir, readdir, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../../src/codec/zstd.ts";
import {
  IntegrityError,
  InterruptedError,
  NotFoundError,
  SourceMissingError,
  StorageError,
  UsageError,
} from "../../../src/errors.ts";
import { walKey } from "../../../src/repository/keys.ts";
import { NO_PROOF_NEEDED } from "../../../src/repository/overwrite-proof.ts";
import { openWalArchive, type WalArchive } from "../../../src/repository/wal-archive.ts";
import { openHostMemory } from "../../../src/system/host-memory.ts";
import { openClusterIdentity } from "../../../src/wal/cluster-identity.ts";
import { pushWal, type WalPushContext } from "../../../src/wal/push.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { type Fault, FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import {
  historyContent,
  MiB,
  SYSTEM_IDENTIFIER,
  type WalContentOptions,
  walContent,
} from "../../support/wal-content.ts";
import { controlFile } from "../postgres/control-file.ts";

const zstd = await openZstd(3);
const [FIRST, SECOND, THIRD] = [1, 2, 3].map((n) => `00000001000000000000000${n}`) as [string, string, string];

async function setUp(fault?: Fault) {
  const directory = await temporaryDirectory();
  const walDirectory = join(directory.path, "pg_wal");
  await mkdir(join(walDirectory, "archive_status"), { recursive: true });
  const store = new MemoryObjectStore();
  const faulty = new FaultStore(store, fault);
  const archive = openWalArchive(faulty, async () => zstd);
  const memory = openHostMemory(directory.path, process.geteuid?.() ?? 0);
  const identity = openClusterIdentity({ archive, location: store.location, remembered: store.location, memory });
  const { log, expectLog } = recordingLog();
  const context: WalPushContext = { archive, identity, proof: NO_PROOF_NEEDED, poolSize: 4, log };
  return {
    store,
    archive,
    calls: () => faulty.calls,
    expectLog,
    walDirectory,
    path: (name: string) => join(walDirectory, name),
    async control(systemIdentifier: bigint) {
      await mkdir(join(directory.path, "global"), { recursive: true });
      await writeFile(join(directory.path, "global/pg_control"), controlFile({ systemIdentifier }));
    },
    push: (name: string, options: Partial<WalPushContext> = {}) =>
      pushWal(join(walDirectory, name), { ...context, ...options }),
    write: (name: string, options?: WalContentOptions) =>
      writeFile(join(walDirectory, name), walContent(name, options)),
    markReady: (name: string) => writeFile(join(walDirectory, "archive_status", `${name}.ready`), ""),
    marks: async () => (await readdir(join(walDirectory, "archive_status"))).sort(),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

describe("pushWal()", () => {
  test("archives a segment", async () => {
    await using site = await setUp();
    await site.write(FIRST);
    await site.push(FIRST);
    expect(site.store.keys).toEqual([walKey(FIRST)]);
    site.expectLog(`INFO: archived "${FIRST}"`);
  });

  test.each([
    ["a timeline history", "00000002.history", historyContent()],
    ["a partial segment", `${FIRST}.partial`, walContent(FIRST)],
    ["a backup history", `${FIRST}.00000028.backup`, Buffer.from("START WAL LOCATION: 0/1000028\n")],
  ])("archives %s", async (_, name, content) => {
    await using site = await setUp();
    await writeFile(site.path(name), content);
    await site.push(name);
    expect(site.store.keys).toEqual([walKey(name)]);
  });

  test("succeeds again for the same content, and archives it once", async () => {
    await using site = await setUp();
    await site.write(FIRST);
    await site.push(FIRST);
    await site.push(FIRST);
    site.expectLog(`INFO: archived "${FIRST}"`, `INFO: "${FIRST}" was already archived with the same content`);
  });

  test("refuses other content under the same name and keeps the first", async () => {
    await using site = await setUp();
    await site.write(FIRST, { fill: 1 });
    await site.push(FIRST);
    const before = await site.store.get(walKey(FIRST), 2 ** 20);
    await site.write(FIRST, { fill: 2 });
    await expect(site.push(FIRST)).rejects.toThrow(`"${FIRST}" is already archived with different content`);
    expect(await site.store.get(walKey(FIRST), 2 ** 20)).toEqual(before);
    site.expectLog(`INFO: archived "${FIRST}"`);
  });

  test("uploads a large segment in parts as it is compressed, and takes it for what it is the next time", async () => {
    await using site = await setUp();
    const large = { sizeBytes: 64 * MiB };
    await site.write(FIRST, large);
    await site.push(FIRST);
    expect(site.calls().filter((call) => call.startsWith("upload.write"))).toHaveLength(32);
    expect(site.calls()).not.toContain(`putIfAbsent ${walKey(FIRST)}`);
    const { metadata } = await site.store.head(walKey(FIRST));
    expect(metadata["sha256"]).toBe(new Bun.CryptoHasher("sha256").update(walContent(FIRST, large)).digest("hex"));

    await site.push(FIRST);
    await writeFile(site.path(FIRST), walContent(FIRST, large).with(-1, 1));
    await expect(site.push(FIRST)).rejects.toThrow(`"${FIRST}" is already archived with different content`);
    site.expectLog(`INFO: archived "${FIRST}"`, `INFO: "${FIRST}" was already archived with the same content`);
  });

  test("does not archive a large segment that changes between its hash and its upload", async () => {
    await using site = await setUp();
    await site.write(FIRST, { sizeBytes: 64 * MiB });
    const archive: WalArchive = {
      ...site.archive,
      async prepare(file, content) {
        const wal = await site.archive.prepare(file, content);
        await writeFile(site.path(FIRST), walContent(FIRST, { sizeBytes: 64 * MiB }).with(-1, 1));
        return wal;
      },
    };
    await expect(site.push(FIRST, { archive })).rejects.toThrow(`"${FIRST}" changed while it was archived`);
    expect(site.store.keys).toEqual([]);
    expect(await Array.fromAsync(site.store.listUnfinishedUploads(""))).toEqual([]);
  });

  test("a name that is taken by nothing that can be read is no success, and no absence", async () => {
    await using site = await setUp();
    await site.write(FIRST);
    await site.push(FIRST);
    const read = () => {
      throw new NotFoundError("deleted meanwhile");
    };
    await expect(site.push(FIRST, { archive: { ...site.archive, read } })).rejects.toThrow(StorageError);
  });

  test("archives other segments that are marked ready, oldest first, and marks those done", async () => {
    await using site = await setUp();
    for (const name of [THIRD, FIRST, SECOND]) {
      await site.write(name);
      await site.markReady(name);
    }
    await writeFile(site.path("00000002.history"), historyContent());
    await site.markReady("00000002.history");
    await site.push(FIRST, { poolSize: 2 });
    expect(site.store.keys).toEqual([walKey(FIRST), walKey(SECOND)]);
    // PostgreSQL marks the one it asked for itself, and asks for histories before anything else.
    expect(await site.marks()).toEqual([
      `${FIRST}.ready`,
      `${SECOND}.done`,
      `${THIRD}.ready`,
      "00000002.history.ready",
    ]);
  });

  test("reads others while the requested segment is written, and writes them after it", async () => {
    await using site = await setUp();
    for (const name of [FIRST, SECOND]) await site.write(name);
    await site.markReady(SECOND);
    const [mayWrite, prepared] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const archive: WalArchive = {
      ...site.archive,
      async prepare(file, content) {
        const wal = await site.archive.prepare(file, content);
        if (file.name === SECOND) prepared.resolve();
        return wal;
      },
      async putIfAbsent(wal) {
        if (wal.key === walKey(FIRST)) await mayWrite.promise;
        return await site.archive.putIfAbsent(wal);
      },
    };
    const pushing = site.push(FIRST, { archive });
    await prepared.promise;
    await Bun.sleep(20);
    expect(site.store.keys).toEqual([]);
    mayWrite.resolve();
    await pushing;
    expect(site.store.keys).toEqual([walKey(FIRST), walKey(SECOND)]);
  });

  test("a waiting segment that cannot be archived is told and left to PostgreSQL", async () => {
    await using site = await setUp();
    for (const name of [FIRST, SECOND]) await site.write(name);
    await site.markReady(SECOND);
    await writeFile(site.path(SECOND), walContent(THIRD));
    await site.push(FIRST);
    expect(await site.marks()).toEqual([`${SECOND}.ready`]);
    expect(site.store.keys).toEqual([walKey(FIRST)]);
  });

  test("a waiting segment that is gone says nothing: another archiver was faster", async () => {
    await using site = await setUp();
    for (const name of [FIRST, SECOND]) {
      await site.write(name);
      await site.markReady(name);
    }
    await rm(site.path(SECOND));
    await site.push(FIRST);
    site.expectLog(`INFO: archived "${FIRST}"`);
  });

  test("marks nothing done that the store did not confirm", async () => {
    const interrupted = new InterruptedError("SIGTERM", 15);
    for (const error of [new StorageError("time-out"), interrupted]) {
      for (let atCall = 1; atCall <= 6; atCall++) {
        await using site = await setUp({ atCall, when: "before", error });
        for (const name of [FIRST, SECOND]) {
          await site.write(name);
          await site.markReady(name);
        }
        await site.push(FIRST).catch((thrown: unknown) => expect(thrown).toBe(error));
        const done = (await site.marks()).filter((mark) => mark.endsWith(".done"));
        if (done.length > 0) expect(site.store.keys).toContain(walKey(SECOND));
        expect(done).not.toContain(`${FIRST}.done`);
      }
    }
  });

  test("one request archives a segment, once the archive is known to be this cluster's", async () => {
    await using site = await setUp();
    for (const name of [FIRST, SECOND, THIRD]) await site.write(name);
    await site.push(FIRST);
    await site.push(SECOND);
    const before = site.calls().length;
    await site.push(THIRD);
    expect(site.calls().slice(before)).toEqual([`putIfAbsent ${walKey(THIRD)}`]);
  });

  test.each([
    ["a timeline history", "00000002.history", historyContent()],
    ["a backup history", `${SECOND}.00000028.backup`, Buffer.from("START WAL LOCATION: 0/2000028\n")],
  ])("refuses %s of another cluster, by the pg_control beside it", async (_, name, content) => {
    await using site = await setUp();
    await site.write(FIRST);
    await site.push(FIRST);
    await writeFile(site.path(name), content);
    await site.control(8n);
    await expect(site.push(name)).rejects.toThrow("the archive at memory://test belongs to another cluster");
    // pg_wal on another disk: beside what its link leads to, there is no pg_control.
    const elsewhere = join(site.walDirectory, "../elsewhere/wal");
    await mkdir(join(elsewhere, ".."));
    await rename(site.walDirectory, elsewhere);
    await symlink(elsewhere, site.walDirectory);
    await expect(site.push(name)).rejects.toThrow("belongs to another cluster");
    expect(site.store.keys).toEqual([walKey(FIRST)]);

    // The archive's own cluster, which is remembered, needs one request as before.
    await site.control(SYSTEM_IDENTIFIER);
    await site.write(SECOND);
    await site.push(SECOND);
    const before = site.calls().length;
    await site.push(name);
    expect(site.calls().slice(before)).toEqual([`putIfAbsent ${walKey(name)}`]);
  });

  test.each([
    ["another name", "RECOVERYXLOG", UsageError, '"RECOVERYXLOG" is not the name of a WAL file'],
    ["a file that is not there", SECOND, SourceMissingError, "could not read"],
    ["a file that is not what its name says", THIRD, IntegrityError, `"${THIRD}" is not a valid WAL segment`],
  ])("refuses %s, and asks nothing of the store", async (_, name, failure, message) => {
    await using site = await setUp();
    await writeFile(site.path(THIRD), walContent(FIRST));
    const thrown = await site.push(name).catch((error: unknown) => error);
    expect(thrown).toBeInstanceOf(failure);
    expect((thrown as Error).message).toContain(message);
    expect(site.calls()).toEqual([]);
  });

  test("works where there is no archive_status, as for a file that somebody archives by hand", async () => {
    await using directory = await temporaryDirectory();
    await using site = await setUp();
    const path = join(directory.path, FIRST);
    await writeFile(path, walContent(FIRST));
    await site.push(join("..", "..", "..", path));
    expect(site.store.keys).toEqual([walKey(FIRST)]);
  });
});

test("pushWal() archives nothing else when the requested segment conflicts: this server writes another history", async () => {
  await using site = await setUp();
  await site.write(FIRST);
  await site.push(FIRST);
  await site.write(FIRST, { fill: 9 });
  await site.write(SECOND, { fill: 9 });
  await site.markReady(SECOND);
  await expect(site.push(FIRST)).rejects.toThrow("is already archived with different content");
  expect(site.store.keys).toEqual([`wal_005/${FIRST}.zst`]);
  expect(await site.marks()).toEqual([`${SECOND}.ready`]);
});

test("pushWal() archives the new timeline's segments when the old one's partial segment conflicts: recovery never asks for that", async () => {
  await using site = await setUp();
  const partial = `${FIRST}.partial`;
  const [next, later] = ["000000030000000000000001", "000000030000000000000002"] as const;
  await site.write(partial, { fill: 1 });
  await site.push(partial);
  // Another standby is promoted, which had received more.
  await site.write(partial, { fill: 2 });
  for (const name of [next, later]) await site.write(name);
  for (const name of [partial, next, later]) await site.markReady(name);
  const before = await site.store.get(walKey(partial), 2 ** 20);

  const refused = await site.push(partial).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(IntegrityError);
  expect((refused as IntegrityError).message).toBe(`"${partial}" is already archived with different content`);
  expect((refused as IntegrityError).hint).toContain(
    `rename archive_status/${partial}.ready in pg_wal to ${partial}.done`,
  );
  expect(await site.store.get(walKey(partial), 2 ** 20)).toEqual(before);
  expect(site.store.keys).toEqual([partial, next, later].map(walKey));
  expect(await site.marks()).toEqual([`${partial}.ready`, `${next}.done`, `${later}.done`]);
});

test("pushWal() archives nothing else when the store fails at a partial segment", async () => {
  await using site = await setUp();
  const partial = `${FIRST}.partial`;
  for (const name of [partial, SECOND]) {
    await site.write(name);
    await site.markReady(name);
  }
  const putIfAbsent = () => Promise.reject(new StorageError("time-out"));
  await expect(site.push(partial, { archive: { ...site.archive, putIfAbsent } })).rejects.toThrow("time-out");
  expect(await site.marks()).toEqual([`${partial}.ready`, `${SECOND}.ready`]);
});

test("pushWal() archives nothing else when a timeline history conflicts, and tells that the timeline is taken", async () => {
  await using site = await setUp();
  const [history, next] = ["00000002.history", "000000020000000000000001"] as const;
  await writeFile(site.path(history), historyContent());
  await site.push(history);
  await writeFile(site.path(history), historyContent("1\t0/3000100\tno recovery target specified\n"));
  await site.write(next);
  await site.markReady(next);
  const refused = await site.push(history).catch((error: unknown) => error);
  expect((refused as IntegrityError).hint).toStartWith("Two servers were promoted to the same timeline");
  expect(site.store.keys).toEqual([walKey(history)]);
  expect(await site.marks()).toEqual([`${next}.ready`]);
});
