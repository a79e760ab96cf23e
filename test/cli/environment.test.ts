/**
 * Time zones, languages, umasks, odd bytes and wrong clocks: whatever surroundings wal-b is started in, it archives and restores
 * the same bytes, and what it writes reads the same.
 */
import { describe, expect, test } from "bun:test";
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";
import { canFakeClock, fakeClock } from "../support/fake-clock.ts";
import { Site } from "../support/site.ts";
import { historyContent } from "../support/wal-content.ts";

const [A, B] = ["000000010000000000000001", "000000010000000000000002"] as const;

describe("wal-push and wal-fetch do the same", () => {
  test.each([
    ["14 hours east", { TZ: "Pacific/Kiritimati" }],
    ["three and a half west", { TZ: "America/St_Johns" }],
    ["in a time zone that is none", { TZ: "Nowhere/At_All" }],
    ["in C", { LC_ALL: "C", LANG: "C" }],
    ["in Russian, not in UTF-8", { LC_ALL: "ru_RU.KOI8-R", LANG: "ru_RU.KOI8-R" }],
    ["in no language", { LC_ALL: undefined, LANG: undefined }],
    ["in a language that is none", { LC_ALL: "xx_XX.nonsense", LANG: "xx_XX.nonsense" }],
  ])("%s", async (_, env) => {
    await using site = await Site.create();
    const content = await site.segment(A);
    const pushed = await site.walb(["--log-format", "json", "wal-push", `pg_wal/${A}`], { env });
    expect(pushed).toMatchObject({ exitCode: 0, stdout: "" });
    expect(JSON.parse(pushed.stderr)).toMatchObject({
      time: expect.stringMatching(/^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/),
      message: `archived "${A}"`,
    });
    expect(Math.abs(Date.parse(JSON.parse(pushed.stderr).time) - Date.now())).toBeLessThan(3_600_000);
    expect(await site.walb(["wal-fetch", A, "fetched"], { env })).toMatchObject({ exitCode: 0 });
    expect(Buffer.compare(await Bun.file(join(site.data, "fetched")).bytes(), content)).toBe(0);
    expect(await site.walb(["wal-fetch", B, "absent"], { env })).toMatchObject({
      exitCode: 74,
      stderr: `wal-b: INFO: "${B}" is not in the archive\n`,
    });
  });

  test("with bytes in the environment that are no text", async () => {
    await using site = await Site.create();
    await site.segment(A);
    expect(await site.shell(`ODD=$'\\xff\\xfe' "$WALB" --terse wal-push pg_wal/${A}`)).toMatchObject({
      exitCode: 0,
      stderr: "",
    });
    // A path that is not UTF-8 is not found, and not another one.
    await site.write("recovery.signal");
    const fetched = await site.shell(
      `mkdir ../$'repository\\xff'; WALB_FILE_PREFIX="$PWD/../"$'repository\\xff' "$WALB" wal-fetch ${A} pg_wal/RECOVERYXLOG`,
    );
    expect(fetched).toMatchObject({ exitCode: 200, stderr: expect.stringContaining("cannot use directory") });
  });

  test("in a data directory whose name is no text: recovery does not end there", async () => {
    await using site = await Site.create();
    const content = await site.segment(A);
    const recovering = `cd ..; mv data $'d\\xe9ta'; ln -s $'d\\xe9ta' data; cd $'d\\xe9ta'; touch recovery.signal`;
    expect(await site.shell(`"$WALB" --terse wal-push pg_wal/${A} && ${recovering}`)).toMatchObject({ exitCode: 0 });
    const inIt = (line: string) => site.shell(`cd ../$'d\\xe9ta'; ${line}`);

    const fetched = await inIt(`"$WALB" wal-fetch ${A} pg_wal/RECOVERYXLOG`);
    expect(fetched).toMatchObject({ exitCode: 0, stderr: `wal-b: INFO: restored "${A}" from the archive\n` });
    expect(Buffer.compare(await Bun.file(join(site.data, "pg_wal/RECOVERYXLOG")).bytes(), content)).toBe(0);
    expect(await inIt(`"$WALB" wal-fetch ${B} pg_wal/RECOVERYXLOG`)).toMatchObject({ exitCode: 74 });
    const elsewhere = `WALB_FILE_PREFIX=/nonexistent "$WALB" wal-fetch ${A} pg_wal/RECOVERYXLOG`;
    expect(await inIt(elsewhere)).toMatchObject({ exitCode: 200 });
    expect(await inIt(`"$WALB" --nonsense wal-fetch ${A} pg_wal/RECOVERYXLOG`)).toMatchObject({ exitCode: 200 });
    // Its pg_control is found, too: that a history is another cluster's is known by that alone.
    await site.control(42n);
    await site.write("pg_wal/00000002.history", historyContent());
    expect(await inIt(`"$WALB" wal-push pg_wal/00000002.history`)).toMatchObject({ exitCode: 65 });
  });

  test.each([
    ["a target", `"$WALB" backup-fetch $'/tmp/x\\xe9' LATEST`, '"/tmp/x\uFFFD" is not UTF-8'],
    [
      "a target, from there",
      `cd $'x\\xe9' && "$WALB" backup-fetch y LATEST`,
      '"y" is relative to a directory whose name',
    ],
    ["an envdir", `"$WALB" --envdir $'x\\xe9' backup-list`, '"x\uFFFD" is not UTF-8'],
  ])("a name that is no text is not taken for another: %s", async (_, line, message) => {
    await using site = await Site.create();
    const { exitCode, stderr } = await site.shell(`mkdir $'x\\xe9'; ${line}`);
    expect({ exitCode, stderr }).toEqual({ exitCode: 64, stderr: expect.stringContaining(`ERROR: ${message}`) });
  });

  test("under every umask: what is restored is its owner's, what is archived is as the umask says", async () => {
    await using site = await Site.create();
    for (const [umask, name, mode] of [
      ["000", A, 0o666],
      ["077", B, 0o600],
    ] as const) {
      await site.segment(name);
      const line = `umask ${umask}; "$WALB" --terse wal-push pg_wal/${name} && "$WALB" --terse wal-fetch ${name} fetched-${umask}`;
      expect(await site.shell(line)).toMatchObject({ exitCode: 0, stderr: "" });
      expect((await stat(join(site.archive, `${name}.zst`))).mode & 0o777).toBe(mode);
      expect((await stat(join(site.data, `fetched-${umask}`))).mode & 0o777).toBe(0o600);
    }
    // What wal-b remembers on this host is nobody else's to write, whatever the umask was when it was made.
    const memory = (await readdir(join(site.directory, "tmp"))).find((name) => name.startsWith("wal-b-")) ?? "";
    expect((await stat(join(site.directory, "tmp", memory))).mode & 0o777).toBe(0o700);
  });
});

describe.skipIf(!canFakeClock)("a clock that is wrong", () => {
  test.each(["+2y", "-10y"])("by %s: the same bytes, and no second archive", async (offset) => {
    await using site = await Site.create();
    const content = await site.segment(A);
    const { env } = await fakeClock(site.directory, offset);
    for (const _ of [1, 2]) {
      expect(await site.walb(["--terse", "wal-push", `pg_wal/${A}`], { env })).toMatchObject({
        exitCode: 0,
        stderr: "",
      });
    }
    expect(Buffer.compare((await site.archived(A)) as Buffer, content)).toBe(0);
    expect(await readdir(site.archive)).toEqual([`${A}.zst`]);
  });
});
