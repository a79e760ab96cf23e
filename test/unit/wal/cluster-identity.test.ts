import { expect, test } from "bun:test";
import { chmod, readdir, symlink } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../../src/codec/zstd.ts";
import { IntegrityError, StorageError } from "../../../src/errors.ts";
import { parseWalFile, type WalFile } from "../../../src/postgres/wal-segment.ts";
import { walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import { openHostMemory } from "../../../src/system/host-memory.ts";
import { openClusterIdentity } from "../../../src/wal/cluster-identity.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { SYSTEM_IDENTIFIER, sourceOf, walContent } from "../../support/wal-content.ts";

const zstd = await openZstd(3);
const SEGMENT = "000000010000000000000002";
const userId = process.geteuid?.() ?? 0;

async function setUp() {
  const directory = await temporaryDirectory();
  const store = new MemoryObjectStore();
  const put = async (name: string, systemIdentifier: bigint) => {
    const archive = openWalArchive(store, async () => zstd);
    await archive.putIfAbsent(
      await archive.prepare(parseWalFile(name) as WalFile, sourceOf(walContent(name, { systemIdentifier }))),
    );
  };
  /** As a new process asks: how many requests did it take? */
  const check = async (systemIdentifier: bigint, error?: Error): Promise<number> => {
    const asked = new FaultStore(store, error && { atCall: 1, when: "before", error });
    const archive = openWalArchive(asked, async () => zstd);
    const memory = openHostMemory(directory.path, userId);
    const identity = openClusterIdentity({ archive, location: store.location, remembered: store.location, memory });
    await Promise.all([identity.check(systemIdentifier), identity.check(systemIdentifier)]);
    return asked.calls.length;
  };
  return {
    store,
    put,
    check,
    directory: directory.path,
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

test("an empty archive is anybody's, and nothing is remembered of it", async () => {
  await using site = await setUp();
  expect(await site.check(SYSTEM_IDENTIFIER)).toBe(1);
  expect(await readdir(site.directory)).toEqual([]);
});

test("this cluster's archive is remembered on this host, so that it is looked into once", async () => {
  await using site = await setUp();
  await site.put(SEGMENT, SYSTEM_IDENTIFIER);
  expect(await site.check(SYSTEM_IDENTIFIER)).toBe(2);
  expect(await site.check(SYSTEM_IDENTIFIER)).toBe(0);
});

test("another cluster's archive is refused with both identifiers, every time", async () => {
  await using site = await setUp();
  await site.put(SEGMENT, SYSTEM_IDENTIFIER);
  await site.check(SYSTEM_IDENTIFIER);
  for (let n = 0; n < 2; n++) {
    const refused = await site.check(8n).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(IntegrityError);
    expect((refused as IntegrityError).message).toBe("the archive at memory://test belongs to another cluster");
    expect((refused as IntegrityError).detail).toBe(
      `It holds "${SEGMENT}" of the cluster with system identifier ${SYSTEM_IDENTIFIER}; this one has 8.`,
    );
  }
});

test("a segment that cannot be read says nothing of the owner; the next one does", async () => {
  await using site = await setUp();
  await site.store.putIfAbsent(walKey("000000010000000000000001"), Buffer.from("damaged"));
  await site.put(SEGMENT, SYSTEM_IDENTIFIER);
  await expect(site.check(8n)).rejects.toThrow("belongs to another cluster");
  await site.check(SYSTEM_IDENTIFIER);
});

test("a failure of the store is passed on, and remembered by nobody", async () => {
  await using site = await setUp();
  await site.put(SEGMENT, SYSTEM_IDENTIFIER);
  const error = new StorageError("time-out");
  await expect(site.check(SYSTEM_IDENTIFIER, error)).rejects.toBe(error);
  expect(await site.check(SYSTEM_IDENTIFIER)).toBe(2);
});

test("a memory that others may write is not believed, nor a link to one", async () => {
  await using site = await setUp();
  await site.put(SEGMENT, SYSTEM_IDENTIFIER);
  await site.check(SYSTEM_IDENTIFIER);
  await chmod(join(site.directory, `wal-b-${userId}`), 0o777);
  expect(await site.check(SYSTEM_IDENTIFIER)).toBe(2);

  await using other = await setUp();
  await using elsewhere = await temporaryDirectory();
  await symlink(elsewhere.path, join(other.directory, `wal-b-${userId}`));
  await other.put(SEGMENT, SYSTEM_IDENTIFIER);
  for (let n = 0; n < 2; n++) expect(await other.check(SYSTEM_IDENTIFIER)).toBe(2);
  expect(await readdir(elsewhere.path)).toEqual([]);
});
