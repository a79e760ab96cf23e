/** Standard output and standard error that are full, closed, or read by nobody: what was promised must still be true. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { rm, symlink } from "node:fs/promises";
import { join } from "node:path";
import { openZstd } from "../../src/codec/zstd.ts";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { Site } from "../support/site.ts";
import { putBackup, putWal } from "../support/stored-backup.ts";

const [A, B] = ["000000010000000000000001", "000000010000000000000002"];
const NO_SPACE = `wal-b: ERROR: could not write to standard output
  DETAIL: ENOSPC: no space left on device, write.
`;

let site: Site;
beforeAll(async () => {
  site = await Site.create();
  await site.segment(A);
});
afterAll(async () => await site[Symbol.asyncDispose]());

describe("standard output on a full disk", () => {
  test.each([
    "backup-list", // an empty list that did not arrive is no empty list
    "backup-list --json",
    "--help",
    "wal-push --help",
    "--version",
  ])("%s fails", async (words) => {
    const result = await site.shell(`"$WALB" ${words} > /dev/full`);
    expect(result).toMatchObject({ exitCode: 73, stderr: NO_SPACE });
  });

  test("delete removes nothing that it could not show", async () => {
    await site.store(`${A}.zst`, new Uint8Array(1));
    const before = await site.listing();
    const result = await site.shell('"$WALB" delete everything FORCE --confirm > /dev/full');
    expect(result).toMatchObject({ exitCode: 73, stderr: NO_SPACE });
    expect(await site.listing()).toEqual(before);

    // The same command with somewhere to write to is not without effect.
    expect(await site.walb(["delete", "everything", "FORCE", "--confirm"])).toMatchObject({ exitCode: 0 });
    expect(Object.keys(await site.listing())).not.toContain(`repository/wal_005/${A}.zst`);
  });

  test("what writes nothing there does not care", async () => {
    expect(await site.shell(`"$WALB" wal-push pg_wal/${A} > /dev/full`)).toMatchObject({ exitCode: 0 });
  });
});

describe("standard output that is closed", () => {
  const CLOSED = `wal-b: ERROR: could not write to standard output
  DETAIL: It is closed.
`;

  test.each(["backup-list", "backup-list --json", "--help", "--version"])(
    "%s fails, whichever others are closed",
    async (words) => {
      expect(await site.shell(`"$WALB" ${words} >&-`)).toMatchObject({ exitCode: 73, stderr: CLOSED });
      expect(await site.shell(`"$WALB" ${words} <&- >&-`)).toMatchObject({ exitCode: 73, stderr: CLOSED });
      expect(await site.shell(`"$WALB" ${words} <&- >&- 2>&-`)).toMatchObject({ exitCode: 73 });
    },
  );

  test("verify --json fails, although nothing is wrong", async () => {
    await using own = await Site.create();
    await using store = await openDirectoryStore({ directory: own.repository, signal: new AbortController().signal });
    const zstd = await openZstd(3);
    const parts = { "pg_control.tar.zst": { "global/pg_control": new Uint8Array(8192) } };
    await putBackup(store, zstd, { startSegment: A, parts });
    await putWal(store, zstd, [A, B]);
    expect(await own.shell('"$WALB" --terse verify --json >/dev/null')).toMatchObject({ exitCode: 0, stderr: "" });
    expect(await own.shell('"$WALB" --terse verify --json >&-')).toMatchObject({ exitCode: 73, stderr: CLOSED });
  });

  test("delete removes nothing that it could not show", async () => {
    await site.store(`${A}.zst`, new Uint8Array(1));
    const before = await site.listing();
    const result = await site.shell('"$WALB" delete everything FORCE --confirm >&-');
    expect(result).toMatchObject({ exitCode: 73, stderr: CLOSED });
    expect(await site.listing()).toEqual(before);
    await rm(join(site.archive, `${A}.zst`));
  });

  // systemd's StandardOutput=null and Python's DEVNULL open it to read too, as Bun does in the place of what is closed.
  test.each([">/dev/null", "1<>/dev/null", "1<>/dev/null <&- 2>&-"])(
    "is not one that goes to %s",
    async (redirection) => {
      expect(await site.shell(`"$WALB" backup-list ${redirection}`)).toMatchObject({ exitCode: 0, stdout: "" });
    },
  );
});

test.each(["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])(
  "with %s, WAL is pushed and fetched, and nothing that was said gets into a file",
  async (redirection) => {
    const left = async (how: string) => {
      await using own = await Site.create();
      for (const name of [A, B]) await own.waiting(name);
      for (const words of [`wal-push pg_wal/${A}`, `wal-push pg_wal/${A}`, `wal-fetch ${A} pg_wal/RECOVERYXLOG`])
        expect(await own.shell(`"$WALB" --verbose ${words} ${how}`)).toMatchObject({ exitCode: 0, stdout: "" });
      return await own.listing();
    };
    expect(await left(redirection)).toEqual(await left(""));
  },
);

describe("standard error that nobody gets", () => {
  test.each([
    ["closed", "2>&-"],
    ["a full disk", "2>/dev/full"],
    ["both closed", ">&- 2>&- <&-"],
  ])("%s: archiving succeeds, and nothing of a message gets into the archive", async (_, redirection) => {
    await using own = await Site.create();
    const content = await own.segment(A);
    expect(await own.shell(`"$WALB" wal-push pg_wal/${A} ${redirection}`)).toMatchObject({ exitCode: 0, stderr: "" });
    expect(Buffer.compare((await own.archived(A)) as Buffer, content)).toBe(0);
    // And what fails keeps its exit code.
    expect(await own.shell(`"$WALB" wal-push pg_wal/nonsense ${redirection}`)).toMatchObject({ exitCode: 64 });
    expect(await own.shell(`"$WALB" wal-fetch 0000000100000000000000FF x ${redirection}`)).toMatchObject({
      exitCode: 74,
    });
    await own.write("recovery.signal");
    expect(await own.shell(`"$WALB" wal-fetch nonsense pg_wal/RECOVERYXLOG ${redirection}`)).toMatchObject({
      exitCode: 200,
    });
  });
});

describe("a reader that is gone", () => {
  test("of standard output: the list ends quietly", async () => {
    const result = await site.shell('"$WALB" backup-list | true; echo $PIPESTATUS');
    expect(result).toMatchObject({ stdout: "0\n", stderr: "" });
  });

  test("of standard error: the exit code is that of what was asked for", async () => {
    const into = (words: string) => `{ sleep 0.2; "$WALB" ${words}; echo $? >&3; } 3>&1 2> >(true)`;
    expect((await site.shell(into(`wal-push pg_wal/${A}`))).stdout).toBe("0\n");
    expect((await site.shell(into("wal-push pg_wal/nonsense"))).stdout).toBe("64\n");
  });

  test("a slow reader gets everything", async () => {
    const result = await site.shell('"$WALB" --help | (sleep 0.5; cat)');
    expect(result.stdout).toEndWith("delete retain 7 --confirm\n");
  });
});

test("under the name wal-e it is the same program", async () => {
  await symlink(site.program, join(site.directory, "wal-e"));
  const result = await site.run([join(site.directory, "wal-e"), "wal-push", `pg_wal/${A}`]);
  expect(result).toMatchObject({
    exitCode: 0,
    stderr: `wal-b: INFO: "${A}" was already archived with the same content\n`,
  });
});
