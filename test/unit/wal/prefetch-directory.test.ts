import { describe, expect, test } from "bun:test";
import { chmod, mkdir, readdir, readFile, rename, stat, symlink, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DestinationError } from "../../../src/errors.ts";
import { PrefetchDirectory } from "../../../src/wal/prefetch-directory.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { waitFor } from "../../support/wait-for.ts";
import { MiB, piecesOf, walContent } from "../../support/wal-content.ts";

const A = "000000010000000000000001";
const B = "000000010000000000000002";

/** Above the kernel's limit: nobody's. */
const DEAD = String(2 ** 22 + 1);
/** Somebody else, who lives as long as the test. */
const OTHER = String(process.ppid);

async function setUp() {
  const temporary = await temporaryDirectory();
  const path = join(temporary.path, "kept");
  const directory = new PrefetchDirectory(path, "source");
  return {
    path,
    directory,
    destination: join(temporary.path, "RECOVERYXLOG"),
    [Symbol.asyncDispose]: () => temporary[Symbol.asyncDispose](),
  };
}

const namesIn = async (path: string) => (await readdir(path)).sort();
const onlyReady = async (path: string) =>
  (await namesIn(path)).find((name) => /^[0-9A-F]{24}\.[0-9a-f]{16}$/.test(name)) as string;

describe("take()", () => {
  test("puts the very content in place that was put", async () => {
    await using site = await setUp();
    site.directory.create(A);
    await site.directory.put(A, piecesOf(walContent(A)));
    expect(await site.directory.take(A, site.destination, 0)).toBe("taken");
    expect(Buffer.compare(await readFile(site.destination), walContent(A))).toBe(0);
    expect(site.directory.ready()).toEqual(new Set());
  });

  test("finds nothing where there is no directory, and makes none", async () => {
    await using site = await setUp();
    expect(await site.directory.take(A, site.destination, 1_000)).toBe("not ready");
    expect(await Bun.file(site.path).exists()).toBe(false);
  });

  test.each([
    ["a flipped bit", (bytes: Uint8Array) => bytes.with(700_000, (bytes[700_000] ?? 0) ^ 1)],
    ["a flipped bit behind the first MiB", (bytes: Uint8Array) => bytes.with(2 * MiB, (bytes[2 * MiB] ?? 0) ^ 1)],
    ["a flipped bit in the last byte", (bytes: Uint8Array) => bytes.with(-1, (bytes.at(-1) ?? 0) ^ 1)],
    ["a missing end", (bytes: Uint8Array) => bytes.subarray(0, -1)],
    ["a missing half, as after a crash", (bytes: Uint8Array) => bytes.subarray(0, bytes.byteLength / 2)],
    ["nothing", () => new Uint8Array()],
    ["more at its end", (bytes: Uint8Array) => Buffer.concat([bytes, bytes])],
    ["pieces in another order", (bytes: Uint8Array) => Buffer.concat([bytes.subarray(MiB), bytes.subarray(0, MiB)])],
  ])("discards a file with %s", async (_, damage) => {
    await using site = await setUp();
    site.directory.create(A);
    // Hashed in several pieces, of which only the first differs.
    await site.directory.put(A, piecesOf(walContent(A, { sizeBytes: 4 * MiB })));
    const path = join(site.path, await onlyReady(site.path));
    await writeFile(path, damage(new Uint8Array(await readFile(path))));
    expect(await site.directory.take(A, site.destination, 0)).toBe("damaged");
    expect(await Bun.file(site.destination).exists()).toBe(false);
    expect(await namesIn(site.path)).toEqual([`${A}.loading`, "position"]);
  });

  test("discards a file of another source, and one under another segment's name", async () => {
    await using site = await setUp();
    site.directory.create(A);
    await new PrefetchDirectory(site.path, "another").put(A, piecesOf(walContent(A)));
    expect(await site.directory.take(A, site.destination, 0)).toBe("damaged");
    await site.directory.put(A, piecesOf(walContent(A)));
    const name = await onlyReady(site.path);
    await rename(join(site.path, name), join(site.path, name.replace(A, B)));
    expect(await site.directory.take(B, site.destination, 0)).toBe("damaged");
  });

  test("waits for a segment that somebody is loading", async () => {
    await using site = await setUp();
    site.directory.create(A);
    await writeFile(join(site.path, `${A}.loading`), OTHER);
    const taking = site.directory.take(A, site.destination, 10_000);
    await Bun.sleep(30);
    await site.directory.put(A, piecesOf(walContent(A)));
    site.directory.endLoading(A);
    expect(await taking).toBe("taken");
  });

  test("does not wait when loading has failed, and loads it itself from then on", async () => {
    await using site = await setUp();
    site.directory.create(A);
    await writeFile(join(site.path, `${A}.loading`), OTHER);
    const taking = site.directory.take(A, site.destination, 10_000);
    await Bun.sleep(30);
    site.directory.endLoading(A);
    expect(await taking).toBe("not ready");
    expect(await readFile(join(site.path, `${A}.loading`), "utf8")).toBe(String(process.pid));
  });

  test("does not wait for the dead, nor for ever", async () => {
    await using site = await setUp();
    site.directory.create(A);
    await writeFile(join(site.path, `${A}.loading`), DEAD);
    expect(await site.directory.take(A, site.destination, 10_000)).toBe("not ready");
    await writeFile(join(site.path, `${B}.loading`), OTHER);
    expect(await site.directory.take(B, site.destination, 50)).toBe("not ready");
  });

  test("refuses a directory that others can write to, and a link to one", async () => {
    await using site = await setUp();
    await mkdir(site.path);
    await chmod(site.path, 0o777);
    await expect(site.directory.take(A, site.destination, 0)).rejects.toThrow(DestinationError);
    const link = `${site.path}.link`;
    await symlink(site.path, link);
    await expect(new PrefetchDirectory(link, "").take(A, site.destination, 0)).rejects.toThrow(DestinationError);
  });
});

test("a segment is loaded by one at a time", async () => {
  await using site = await setUp();
  site.directory.create(A);
  expect(site.directory.beginLoading(A)).toBe(true);
  await writeFile(join(site.path, `${A}.loading`), OTHER);
  expect(site.directory.beginLoading(A)).toBe(false);
  await writeFile(join(site.path, `${A}.loading`), DEAD);
  expect(site.directory.beginLoading(A)).toBe(true);
});

test("keepOnly() removes what is not wanted and what the dead left, and nothing else", async () => {
  await using site = await setUp();
  site.directory.create(A);
  for (const name of [A, B]) await site.directory.put(name, piecesOf(walContent(name)));
  const old = new Date(Date.now() - 60_000);
  for (const name of [`${A}.loading`, `${B}.loading`, "xlogtemp.walb.new", "xlogtemp.walb.old", "prefetcher"])
    await writeFile(join(site.path, name), "");
  await utimes(join(site.path, "xlogtemp.walb.old"), old, old);
  site.directory.keepOnly(new Set([A]));
  expect(site.directory.ready()).toEqual(new Set([A]));
  expect((await namesIn(site.path)).filter((name) => !name.startsWith(`${A}.`))).toEqual([
    "position",
    "prefetcher",
    "xlogtemp.walb.new",
  ]);
});

describe("position()", () => {
  test("is what was told last, and nothing when that is no segment", async () => {
    await using site = await setUp();
    expect(site.directory.position()).toBeUndefined();
    site.directory.create(A);
    site.directory.setPosition(B);
    expect(site.directory.position()?.name).toBe(B);
    site.directory.setPosition("");
    expect(site.directory.position()).toBeUndefined();
  });

  test("is told to nobody when the directory has gone", async () => {
    await using site = await setUp();
    site.directory.setPosition(A);
    expect(await Bun.file(site.path).exists()).toBe(false);
  });
});

describe("claim()", () => {
  test("is given to one, who removes everything in the end", async () => {
    await using site = await setUp();
    {
      using claim = site.directory.claim();
      expect(claim?.isHeld()).toBe(true);
      expect(site.directory.prefetcher()).toBe("alive");
      expect(site.directory.claim()).toBeUndefined();
      expect((await stat(site.path)).mode & 0o777).toBe(0o700);
    }
    expect(site.directory.prefetcher()).toBe("none");
  });

  test.each([
    ["that was killed", async (file: string) => await writeFile(file, DEAD)],
    ["that has written nothing", async (file: string) => await writeFile(file, "")],
    ["that has not been heard of for long", async (file: string) => await utimes(file, 0, 0)],
  ])("passes on from one %s; that one removes nothing any more", async (_, die) => {
    await using site = await setUp();
    const first = site.directory.claim();
    await die(join(site.path, "prefetcher"));
    expect(site.directory.prefetcher()).toBe("dead");
    using second = site.directory.claim();
    expect(second?.isHeld()).toBe(true);
    await writeFile(join(site.path, "prefetcher"), OTHER);
    expect(first?.isHeld()).toBe(false);
    first?.[Symbol.dispose]();
    expect(await namesIn(site.path)).toEqual(["prefetcher"]);
  });
});

test.if(process.platform === "linux")("a killed process that nobody has asked for is dead", async () => {
  await using site = await setUp();
  site.directory.create(A);
  // A shell asks for children that end while it is one: so it becomes another program first, which never asks.
  const parent = Bun.spawn(["/bin/sh", "-c", "sleep 60 & echo $!; exec sleep 60"], { stdout: "pipe" });
  const { value } = await parent.stdout.getReader().read();
  const zombie = new TextDecoder().decode(value).trim();
  await waitFor(async () => (await readFile(`/proc/${parent.pid}/comm`, "utf8")) === "sleep\n");
  process.kill(Number(zombie), "SIGKILL");
  await waitFor(async () => (await readFile(`/proc/${zombie}/stat`, "utf8")).includes(") Z "));
  await writeFile(join(site.path, "prefetcher"), zombie);
  expect(site.directory.prefetcher()).toBe("dead");
  parent.kill("SIGKILL");
  await parent.exited;
});

test("what is on another file system is put in place too", async () => {
  const other = new PrefetchDirectory(join("/dev/shm", `walb-test-${crypto.randomUUID()}`), "source");
  await using site = await setUp();
  other.create(A);
  using _ = { [Symbol.dispose]: () => other.remove() };
  await other.put(A, piecesOf(walContent(A)));
  expect((await stat(other.path)).dev).not.toBe((await stat(join(site.destination, ".."))).dev);
  expect(await other.take(A, site.destination, 0)).toBe("taken");
  expect(Buffer.compare(await readFile(site.destination), walContent(A))).toBe(0);
  expect(await namesIn(other.path)).toEqual([`${A}.loading`, "position"]);
});
