import { expect, test } from "bun:test";
import { chmod, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { readEnvdir } from "../../../src/config/envdir.ts";
import { UsageError } from "../../../src/errors.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

test.each([
  ["one line", "value\n", "value"],
  ["no line end", "value", "value"],
  ["only the first line", "first\nsecond\n", "first"],
  ["trailing blanks and tabs are cut", "value \t \n", "value"],
  ["leading ones are not", "  value\n", "  value"],
  ["NUL means newline", "one\0two\n", "one\ntwo"],
  ["a carriage return stays, as daemontools leaves it", "value\r\n", "value\r"],
  ["an empty line is an empty value", "\n", ""],
  ["UTF-8", "grün\n", "grün"],
  ["an empty file unsets the variable", "", undefined],
])("readEnvdir() reads a file as envdir does: %s", async (_, content, expected) => {
  await using directory = await temporaryDirectory();
  await writeFile(join(directory.path, "NAME"), content);
  const { variables } = readEnvdir(directory.path);
  expect(Object.entries(variables)).toEqual([["NAME", expected]]);
});

test("readEnvdir() passes over names that begin with a dot", async () => {
  await using directory = await temporaryDirectory();
  await writeFile(join(directory.path, ".hidden"), "x");
  expect(readEnvdir(directory.path).variables).toEqual({});
});

test("readEnvdir() tells which files every account can read", async () => {
  await using directory = await temporaryDirectory();
  for (const [name, mode] of [
    ["OPEN", 0o644],
    ["GROUP", 0o640],
    ["OWN", 0o600],
  ] as const) {
    await writeFile(join(directory.path, name), "x");
    await chmod(join(directory.path, name), mode);
  }
  expect(readEnvdir(directory.path).readableByOthers).toEqual([join(directory.path, "OPEN")]);
});

test("readEnvdir() names what it cannot use", async () => {
  await using directory = await temporaryDirectory();
  expect(() => readEnvdir(join(directory.path, "none"))).toThrow(`could not read the envdir "${directory.path}/none"`);
  await writeFile(join(directory.path, "A=B"), "x");
  expect(() => readEnvdir(directory.path)).toThrow('A=B" cannot be a variable');
  await using other = await temporaryDirectory();
  await mkdir(join(other.path, "SUB"));
  expect(() => readEnvdir(other.path)).toThrow('SUB" is a directory, not a variable');
  expect(() => readEnvdir(other.path)).toThrow(UsageError);
});
