import { describe, expect, test } from "bun:test";
import type { Option } from "../../../src/cli/command.ts";
import { parseWords } from "../../../src/cli/command-line.ts";
import { type ParsedWords, parsePlainWords } from "../../../src/cli/plain-words.ts";
import { allCommands, GLOBAL_OPTIONS } from "../../../src/cli/program.ts";
import { random } from "../../support/random.ts";

const COMMANDS = await allCommands();

const plain = (argv: readonly string[]) => parsePlainWords(argv, COMMANDS, GLOBAL_OPTIONS);

/** What a command can ask for, whoever has read the words. */
function asked(words: ParsedWords, options: Readonly<Record<string, Option>>, positionals: readonly string[]) {
  const names = [...positionals, ...Object.keys(options), ...Object.keys(GLOBAL_OPTIONS)];
  return Object.fromEntries(names.map((name) => [name, words[name] || undefined]));
}

async function expectAgreement(argv: readonly string[]): Promise<void> {
  const ours = plain(argv);
  const theirs = (await parseWords(argv, COMMANDS, GLOBAL_OPTIONS)).chosen;
  expect(ours?.command.name, argv.join(" ")).toBe(theirs?.command.name ?? "none");
  const { options = {}, positionals = {} } = ours?.command ?? {};
  const names = Object.keys(positionals);
  expect(asked(ours?.words ?? {}, options, names), argv.join(" ")).toEqual(asked(theirs?.words ?? {}, options, names));
}

const A = "000000010000000000000001";

describe("parsePlainWords()", () => {
  test.each([
    [["wal-push", `pg_wal/${A}`]],
    [["wal-fetch", A, "pg_wal/RECOVERYXLOG"]],
    [["--envdir", "/etc/wal-e.d/env", "wal-fetch", A, "pg_wal/RECOVERYXLOG"]],
    [["--envdir=/etc/wal-e.d/env", "wal-fetch", A, "pg_wal/RECOVERYXLOG", "--prefetch", "4"]],
    [["--terse", "wal-push", "--pool-size=8", "--log-format", "json", "7"]],
    [["backup-push"]],
    [["backup-push", "/data"]],
    [["wal-push", "--file-prefix=a=b\nc", "ä ö"]],
    [["delete", "retain", "007", "--confirm"]],
  ])("reads %j as yargs does", async (argv) => {
    expect(plain(argv)).toBeDefined();
    await expectAgreement(argv);
  });

  test.each([
    ["nothing", []],
    ["help", ["wal-fetch", "--help"]],
    ["the version", ["--version"]],
    ["an unknown command", ["wal-psuh", "x"]],
    ["an abbreviation", ["wal-fetch", "-p", "8", A, "x"]],
    ["an unknown flag", ["wal-push", "x", "--detial"]],
    ["another command's flag", ["wal-push", "x", "--confirm"]],
    ["a command's own flag before it", ["--confirm", "delete", "everything"]],
    ["a flag that comes twice", ["wal-push", "x", "--pool-size", "1", "--pool-size", "2"]],
    ["a flag that is denied", ["wal-push", "x", "--no-terse"]],
    ["a flag without its value", ["wal-push", "x", "--pool-size"]],
    ["a flag whose value is a flag", ["wal-push", "x", "--pool-size", "--terse"]],
    ["an empty value", ["wal-push", "x", "--pool-size="]],
    ["a value that is none of the choices", ["--log-format", "xml", "wal-push", "x"]],
    ["a value for a flag that takes none", ["wal-push", "--terse=false", "x"]],
    ["what might be such a value", ["wal-push", "--terse", "false"]],
    ["a value that is the name of a command", ["--s3-prefix", "wal-push", "wal-fetch", A, "x"]],
    ["too few words", ["wal-fetch", A]],
    ["too many words", ["wal-fetch", A, "x", "y"]],
    ["the end of flags", ["wal-push", "--", "x"]],
    ["a name of JavaScript's own", ["wal-push", "x", "--constructor", "y"]],
  ])("leaves %s to yargs", (_, argv) => {
    expect(plain(argv)).toBeUndefined();
  });

  test("agrees with yargs on whatever words it reads", async () => {
    const seed = Date.now() % 2 ** 31;
    const { below, pick } = random(seed);
    const flags = [GLOBAL_OPTIONS, ...COMMANDS.map(({ options }) => options)].flatMap(Object.keys);
    const words = [...COMMANDS.map(({ name }) => name), A, "x", "0", "-1", "true", "=", "a=b", "json", "--"];
    let read = 0;
    for (let turn = 0; turn < 3_000; turn++) {
      const argv = Array.from({ length: 1 + below(6) }, () =>
        below(3) === 0 ? `--${pick(flags)}${pick(["", "", "=x", "="])}` : pick(words),
      );
      if (plain(argv) === undefined) continue;
      read++;
      await expectAgreement(argv).catch((error: unknown) => {
        throw new Error(`seed ${seed}, ${JSON.stringify(argv)}: ${String(error)}`);
      });
    }
    expect(read).toBeGreaterThan(20);
  });
});
