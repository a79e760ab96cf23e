import { expect, test } from "bun:test";
import { constants } from "node:fs";
import { open, readFile, stat, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { createNewFile } from "../../../src/system/new-file.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

const MiB = 2 ** 20;
/** In memory of its own, as a frame's content is. */
const piece = (bytes: number, fill: number) => new Uint8Array(bytes).fill(fill);

/** What the file system of the tests can do. */
async function modeHere(directory: string): Promise<number> {
  const path = join(directory, "probe");
  const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_DIRECT).catch(() => undefined);
  const isDone = await file?.write(piece(MiB, 1)).then(
    () => true,
    () => false,
  );
  await file?.close();
  return isDone ? constants.O_DIRECT : 0;
}

async function flagsOf(descriptor: number): Promise<number> {
  const info = await readFile(`/proc/self/fdinfo/${descriptor}`, "utf8");
  return Number.parseInt(/^flags:\s*([0-7]+)$/m.exec(info)?.[1] ?? "", 8) & constants.O_DIRECT;
}

test.each([
  ["whole sectors", [2 * MiB, 512, 2 * MiB - 512]],
  ["an odd end", [2 * MiB, MiB + 13]],
  ["an odd beginning", [13, 2 * MiB, MiB]],
  ["nothing", [0]],
])("a direct file of %s has what was written, in order", async (_, sizes) => {
  await using directory = await temporaryDirectory();
  const path = join(directory.path, "16384");
  const pieces = sizes.map((bytes, n) => piece(bytes, n + 1));
  {
    await using file = await createNewFile(path, "direct");
    for (const bytes of pieces) await file.write(bytes);
    await file.handle.sync();
  }
  expect(Buffer.concat(pieces).equals(await readFile(path))).toBe(true);
  expect((await stat(path)).mode & 0o777).toBe(0o600);
});

test("a direct file passes the page cache until a piece is not at whole sectors, where the file system can", async () => {
  await using directory = await temporaryDirectory();
  const direct = await modeHere(directory.path);
  await using file = await createNewFile(join(directory.path, "16384"), "direct");
  await file.write(piece(MiB, 1));
  expect(await flagsOf(file.handle.fd)).toBe(direct);
  await file.write(piece(100, 1));
  await file.write(piece(MiB, 1));
  expect((await file.handle.stat()).size).toBe(2 * MiB + 100);
});

test("a cached file is one", async () => {
  await using directory = await temporaryDirectory();
  await using file = await createNewFile(join(directory.path, "16384"), "cached");
  await file.write(piece(MiB, 1));
  expect(await flagsOf(file.handle.fd)).toBe(0);
});

test.each(["direct", "cached"] as const)("what is there is not written over: %s", async (mode) => {
  await using directory = await temporaryDirectory();
  const [there, link] = [join(directory.path, "there"), join(directory.path, "link")];
  await writeFile(there, "content");
  await symlink(join(directory.path, "elsewhere"), link);
  await expect(createNewFile(there, mode)).rejects.toThrow("EEXIST");
  await expect(createNewFile(link, mode)).rejects.toThrow("EEXIST");
  await expect(createNewFile(join(directory.path, "none", "file"), mode)).rejects.toThrow("ENOENT");
  expect(await readFile(there, "utf8")).toBe("content");
});

test("a write that fails for another reason is told", async () => {
  await using directory = await temporaryDirectory();
  const file = await createNewFile(join(directory.path, "16384"), "direct");
  await file.handle.close();
  await expect(file.write(piece(MiB, 1))).rejects.toThrow();
});
