import { describe, expect, test } from "bun:test";
import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findPassword, passwordFromFile } from "../../../src/postgres/password-file.ts";
import { recordedLog } from "./recorded-log.ts";

const KEY = { host: "db1", port: 5432, database: "app", user: "alice" };

describe("findPassword()", () => {
  test.each([
    // line, key, password
    ["db1:5432:app:alice:secret", KEY, "secret"],
    ["*:*:*:*:secret", KEY, "secret"],
    ["db2:5432:app:alice:secret", KEY, undefined],
    ["db1:5433:app:alice:secret", KEY, undefined],
    ["db1:5432:other:alice:secret", KEY, undefined],
    ["db1:5432:app:bob:secret", KEY, undefined],
    ["# db1:5432:app:alice:secret", KEY, undefined],
    ["db1:5432:app:alice", KEY, undefined], // no password
    ["db1:5432:app:alice:", KEY, undefined], // an empty one
    ["a\nb:c\n*:*:*:*:second\n*:*:*:*:third", KEY, "second"], // the first line that fits
    ["*:*:*:*:with space ", KEY, "with space "],
    ["*:*:*:*:secret\r", KEY, "secret"], // made on Windows
    ["*:*:*:*:se\\:cr\\\\et", KEY, "se:cr\\et"],
    ["*:*:*:*:ends with\\\\", KEY, "ends with\\"],
    ["*:*:*:*:secret:rest", KEY, "secret"],
    ["\\:\\:1:5432:*:*:secret", { ...KEY, host: "::1" }, "secret"],
    ["*:*:*:a\\:b:secret", { ...KEY, user: "a:b" }, "secret"],
    ["localhost:*:*:*:secret", { ...KEY, host: "/var/run/postgresql" }, "secret"],
    ["localhost:*:*:*:secret", { ...KEY, host: "/tmp" }, "secret"],
    ["localhost:*:*:*:secret", { ...KEY, host: "/srv/sockets" }, undefined],
    ["/srv/sockets:*:*:*:secret", { ...KEY, host: "/srv/sockets" }, "secret"],
  ])("of %j for %o is %j", (text, key, password) => {
    expect(findPassword(text, key)).toBe(password);
  });
});

describe("passwordFromFile()", () => {
  async function file(mode: number) {
    const directory = await mkdtemp(join(tmpdir(), "walb-pgpass-"));
    const path = join(directory, "pgpass");
    await writeFile(path, "*:*:*:*:secret\n");
    await chmod(path, mode);
    return { path, directory, [Symbol.asyncDispose]: () => rm(directory, { recursive: true }) };
  }

  test("reads a file that is its owner's alone", async () => {
    await using found = await file(0o600);
    const { log, lines } = recordedLog();
    expect(passwordFromFile(found.path, KEY, log)).toBe("secret");
    expect(lines).toEqual([]);
  });

  test.each([0o640, 0o604, 0o620])(
    "warns of mode %o, does not use the file and does not tell the password",
    async (mode) => {
      await using found = await file(mode);
      const { log, lines } = recordedLog();
      expect(passwordFromFile(found.path, KEY, log)).toBeUndefined();
      expect(lines).toEqual([
        `WARNING: password file "${found.path}" is not used\n  DETAIL: Its group or others have access to it; permissions must be u=rw (0600) or less.`,
      ]);
    },
  );

  test("warns of a directory in its place, and says nothing when there is none", async () => {
    await using found = await file(0o600);
    const { log, lines } = recordedLog();
    expect(passwordFromFile(found.directory, KEY, log)).toBeUndefined();
    expect(passwordFromFile(join(found.directory, "none"), KEY, log)).toBeUndefined();
    expect(lines).toEqual([
      `WARNING: password file "${found.directory}" is not used\n  DETAIL: It is not a plain file.`,
    ]);
  });
});
