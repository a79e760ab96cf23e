import { describe, expect, test } from "bun:test";
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UsageError } from "../../../src/errors.ts";
import { parseServiceFile, readService } from "../../../src/postgres/service-file.ts";

const TEXT = `
# servers
[main]
  host = db1
port=5433
options=-c geqo=off
port=9999

[other]
host=db2
nonsense
`;

describe("parseServiceFile()", () => {
  test("takes the section's lines, of two the first, blanks and all but the first = left alone", () => {
    expect([...(parseServiceFile(TEXT, "main", "f") ?? [])]).toEqual([
      ["host", "db1"],
      ["port", "5433"],
      ["options", "-c geqo=off"],
    ]);
  });

  test("finds nothing when there is no such section", () => {
    expect(parseServiceFile(TEXT, "third", "f")).toBeUndefined();
  });

  test("refuses a line that is no parameter, and does not quote it: it may hold a password", () => {
    expect(() => parseServiceFile(TEXT, "other", "f")).toThrow('syntax error in service file "f", line 11');
    expect(() => parseServiceFile("[x]\npasword=secret", "x", "f")).toThrow(UsageError);
    try {
      parseServiceFile("[x]\nsecret", "x", "f");
    } catch (error) {
      expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toContain("secret");
    }
  });
});

describe("readService()", () => {
  test("looks in PGSERVICEFILE, then in PGSYSCONFDIR", async () => {
    const directory = await mkdtemp(join(tmpdir(), "walb-service-"));
    try {
      await writeFile(join(directory, "mine"), "[a]\nhost=mine\n");
      await writeFile(join(directory, "pg_service.conf"), "[a]\nhost=system\n[b]\nhost=system\n");
      const env = { PGSERVICEFILE: join(directory, "mine"), PGSYSCONFDIR: directory };
      const hostOf = (name: string) => readService(name, { env, homeDirectory: undefined }).get("host");
      expect(hostOf("a")).toBe("mine");
      expect(hostOf("b")).toBe("system");
      expect(() => hostOf("c")).toThrow('definition of service "c" not found');
      const missing = { ...env, PGSERVICEFILE: join(directory, "none") };
      expect(() => readService("b", { env: missing, homeDirectory: undefined })).toThrow("not found");
      await writeFile(join(directory, ".pg_service.conf"), "[b]\nhost=home\n");
      const { PGSYSCONFDIR } = env;
      expect(readService("b", { env: { PGSYSCONFDIR }, homeDirectory: directory }).get("host")).toBe("home");
      // Where nobody can look, as in another account's HOME.
      const circle = join(directory, "circle");
      await symlink("circle", circle);
      expect(readService("b", { env: { PGSYSCONFDIR }, homeDirectory: circle }).get("host")).toBe("system");
      const named = { PGSYSCONFDIR, PGSERVICEFILE: join(circle, "mine") };
      expect(() => readService("b", { env: named, homeDirectory: undefined })).toThrow("could not read service file");
    } finally {
      await rm(directory, { recursive: true });
    }
  });
});
