import { expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { mkdir, readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DestinationError, type Failure } from "../../../src/errors.ts";
import { writeFileAtomically } from "../../../src/system/atomic-file.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

async function failureOf(promise: Promise<unknown>): Promise<Failure> {
  const failure = await promise.catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(DestinationError);
  return failure as Failure;
}

test.each(["durable", "left to PostgreSQL"] as const)(
  "writeFileAtomically() puts a file in place, %s",
  async (durability) => {
    await using directory = await temporaryDirectory();
    const path = join(directory.path, "RECOVERYXLOG");
    await writeFile(path, "the old content, which is longer");
    await writeFileAtomically(path, Buffer.from("new"), { mode: 0o640, durability });
    expect(await readFile(path, "utf8")).toBe("new");
    expect((await stat(path)).mode & 0o777).toBe(0o640);
    expect(await readdir(directory.path)).toEqual(["RECOVERYXLOG"]);
  },
);

test("writeFileAtomically() names what it could not write, and leaves nothing behind", async () => {
  await using directory = await temporaryDirectory();
  const missing = join(directory.path, "none", "file");
  const failure = await failureOf(writeFileAtomically(missing, Buffer.from("x")));
  expect(failure.message).toBe(`could not write "${missing}"`);
  expect(failure.hint).toBe("Create the directory first.");

  // The rename fails, after the content was written.
  const taken = join(directory.path, "taken");
  await mkdir(join(taken, "inside"), { recursive: true });
  await failureOf(writeFileAtomically(taken, Buffer.from("x")));
  expect(await readdir(directory.path)).toEqual(["taken"]);
});

/** Only root may mount; elsewhere the same promise is kept by the test above. */
if (process.geteuid?.() === 0) {
  test("writeFileAtomically() on a full file system keeps the old content and says what to do", async () => {
    await using directory = await temporaryDirectory();
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", directory.path]);
    try {
      const path = join(directory.path, "file");
      await writeFileAtomically(path, Buffer.from("old"));
      const failure = await failureOf(writeFileAtomically(path, new Uint8Array(200_000)));
      expect(failure.detail).toContain("ENOSPC");
      expect(failure.hint).toContain("The file system is full");
      expect(await readFile(path, "utf8")).toBe("old");
      expect(await readdir(directory.path)).toEqual(["file"]);
    } finally {
      execFileSync("umount", [directory.path]);
    }
  });
}
