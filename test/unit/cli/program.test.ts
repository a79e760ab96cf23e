import { describe, expect, test } from "bun:test";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { allCommands, type ProgramEdge, runProgram } from "../../../src/cli/program.ts";
import { type Failure, textOf, UsageError } from "../../../src/errors.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { walContent } from "../../support/wal-content.ts";

const SEGMENT = "000000010000000000000001";

/** The program with nothing around it but what is given. */
async function run(argv: readonly string[], env: ProgramEdge["env"] = {}, workingDirectory = "/") {
  const [output, records]: [string[], string[]] = [[], []];
  const failure = await runProgram(argv, {
    env,
    workingDirectory,
    signal: new AbortController().signal,
    now: () => new Date(0),
    adoptVariables: () => {},
    output: { isTerminal: false, write: (text) => output.push(text) },
    writeLog: (record) => records.push(record),
    statusLine: undefined,
  }).catch((error: unknown) => error);
  return { failure, output: output.join(""), records };
}

async function refused(argv: readonly string[], env: ProgramEdge["env"] = {}): Promise<Failure> {
  const { failure, output } = await run(argv, env);
  expect(failure, argv.join(" ")).toBeInstanceOf(UsageError);
  expect(output).toBe("");
  return failure as Failure;
}

test("every command is found by its own name", async () => {
  for (const { name } of await allCommands()) {
    const { output } = await run([name, "--help"]);
    expect(output).toStartWith(`Usage: wal-b ${name}`);
  }
});

describe("runProgram() refuses", () => {
  test.each([
    ["no command", [], "no command was given"],
    ["an unknown command", ["wal-psuh", "x"], 'there is no such command; did you mean "wal-push"?'],
    ["an unknown flag", ["backup-list", "--detial"], "unknown flag: --detial"],
    ["a letter that would replace yargs' own words", ["wal-push", "-C_x", "a"], "unknown flag: -C_x"],
    ["a missing argument", ["wal-push"], "too few words: got 0, need at least 1"],
    ["one argument too many", ["wal-push", "a", "b"], "unknown word: b"],
    ["a flag without its value", ["--s3-prefix"], "--s3-prefix needs a value"],
    ["an empty argument", ["--file-prefix", "/tmp", "wal-push", ""], "no path was given"],
    ["a log format that there is not", ["--log-format", "xml", "backup-list"], "invalid values"],
    ["a pool size of words", ["wal-push", "-p", "many", SEGMENT], '--pool-size is "many"'],
    ["a pool size of nothing", ["wal-push", "--pool-size", "0", SEGMENT], '--pool-size is "0"'],
    ["no repository", ["backup-list"], "no repository is set"],
    ["deleting nothing in particular", ["delete"], "too few words: got 0, need at least 1"],
    ["deleting what cannot be deleted", ["delete", "all"], '"all" is nothing that can be deleted'],
    [
      "retaining a word",
      ["delete", "retain", "x"],
      '"delete retain" needs how many backups to keep, 1 or more, not "x"',
    ],
    ["retaining none", ["delete", "retain", "0"], '"delete retain" needs how many backups to keep, 1 or more, not "0"'],
    ["retaining a fraction", ["delete", "retain", "1.5"], '1 or more, not "1.5"'],
    [
      "retaining nobody knows how many",
      ["delete", "retain"],
      '"delete retain" needs how many backups to keep, 1 or more',
    ],
    ["deleting before nothing", ["delete", "before"], '"delete before" needs the name of a backup'],
    ["deleting everything but a word", ["delete", "everything", "force"], '"delete everything" takes FORCE'],
    ["deleting garbage with a word", ["delete", "garbage", "now"], '"delete garbage" takes no "now"'],
    [
      "three ways for tablespaces",
      ["--file-prefix", "/x", "backup-fetch", "/d", "LATEST", "--blind-restore", "--restore-spec", "SOURCE"],
      "exclude each other",
    ],
    [
      "a mapping that is none",
      ["--file-prefix", "/x", "backup-fetch", "/d", "LATEST", "--tablespace-mapping", "16388"],
      '"16388" is not a tablespace mapping',
    ],
  ])("%s, and says what is wrong", async (_, argv, message) => {
    const { message: told } = await refused(argv);
    expect(told.toLowerCase()).toContain(message.toLowerCase());
    expect(told).toMatch(/^[^A-Z]/);
    expect(told).not.toMatch(/\.$/);
  });

  test.each([["a key"], [""]])("--gpg-key-id with %p, so that nothing is stored in plain text", async (key) => {
    const argv = [`--gpg-key-id=${key}`, "--file-prefix", "/nowhere", "wal-push", SEGMENT];
    expect((await refused(argv)).message).toBe("cannot honour WALE_GPG_KEY_ID");
  });

  test("a mistyped variable, also one from an envdir", async () => {
    expect((await refused(["backup-list"], { WALB_S3_PREFX: "x" })).message).toBe("unknown setting WALB_S3_PREFX");
    await using envdir = await temporaryDirectory();
    await writeFile(join(envdir.path, "WALB_POOL"), "8\n");
    expect((await refused(["--envdir", envdir.path, "backup-list"])).message).toBe("unknown setting WALB_POOL");
  });
});

describe("runProgram()", () => {
  test("tells its version and nothing else", async () => {
    const { output, failure } = await run(["--version"]);
    expect(failure).toBeUndefined();
    expect(output).toMatch(/^wal-b \S.*\n$/);
  });

  test.each([
    [["--file-prefix", "/nowhere", "wal-push", "--", SEGMENT]],
    [["--file-prefix", "/nowhere", "wal-push", "-p", "8", "--", SEGMENT]],
    [["--file-prefix", "/nowhere", "--", "wal-push", SEGMENT]],
  ])("takes -- for the end of the flags: %j", async (argv) => {
    expect((await refused(argv)).message).toBe('cannot use directory "/nowhere" as a repository');
  });

  test("takes nothing behind -- for a flag", async () => {
    expect((await refused(["wal-push", "--", "--version"])).message).toStartWith("too few words");
  });

  test("knows every command by its name, wherever the flags for all of them stand", async () => {
    await using directory = await temporaryDirectory();
    for (const argv of [
      ["--file-prefix", directory.path, "backup-list"],
      ["backup-list", "--file-prefix", directory.path],
      ["backup-list", `--file-prefix=${directory.path}`, "--terse"],
    ]) {
      const { failure, output } = await run(argv);
      expect(failure).toBeUndefined();
      expect(output).toStartWith("name\tlast_modified\t");
    }
  });

  test("archives and restores with WAL-E's words, from an envdir as WAL-E had it", async () => {
    await using site = await temporaryDirectory();
    const [envdir, data] = [join(site.path, "env"), join(site.path, "data")];
    await mkdir(join(data, "pg_wal"), { recursive: true });
    await mkdir(envdir);
    await mkdir(join(site.path, "repository"));
    await writeFile(join(envdir, "WALE_FILE_PREFIX"), `file://localhost${site.path}/repository\n`, { mode: 0o640 });
    await writeFile(join(data, "pg_wal", SEGMENT), walContent(SEGMENT));
    const path = join(data, "pg_wal", SEGMENT);

    const pushed = await run(["--envdir", envdir, "wal-push", path, "-p", "8"], {}, data);
    expect([pushed.failure, pushed.records]).toEqual([undefined, [`wal-b: INFO: archived "${SEGMENT}"`]]);
    const destination = join(data, "pg_wal", "RECOVERYXLOG");
    const fetched = await run(["--terse", "wal-fetch", "-p", "0", "--envdir", envdir, SEGMENT, destination], {}, data);
    expect([fetched.failure, fetched.records]).toEqual([undefined, []]);
    expect(Buffer.compare(await Bun.file(destination).bytes(), walContent(SEGMENT))).toBe(0);
  });

  test("a flag beats the envdir, and the envdir the environment; what the envdir unsets is unset", async () => {
    await using envdir = await temporaryDirectory();
    await writeFile(join(envdir.path, "WALB_FILE_PREFIX"), "not absolute\n");
    const env = { WALB_FILE_PREFIX: "nor this" };
    expect((await refused(["--envdir", envdir.path, "backup-list"], env)).message).toContain('"not absolute"');
    expect((await refused(["--envdir", envdir.path, "--file-prefix", "flag", "backup-list"], env)).message).toContain(
      '"flag"',
    );
    await writeFile(join(envdir.path, "WALB_FILE_PREFIX"), "");
    expect((await refused(["--envdir", envdir.path, "backup-list"], env)).message).toBe("no repository is set");
  });

  test("warns of a secret that every account can read, and shows it nowhere", async () => {
    await using site = await temporaryDirectory();
    const envdir = join(site.path, "env");
    await mkdir(envdir);
    await writeFile(join(envdir, "AWS_SECRET_ACCESS_KEY"), "S3CR3T\n", { mode: 0o644 });
    await writeFile(join(envdir, "WALB_FILE_PREFIX"), `${site.path}\n`, { mode: 0o644 });
    const { failure, records } = await run(["--envdir", envdir, "backup-list"]);
    expect(failure).toBeUndefined();
    expect(records).toEqual([
      `wal-b: WARNING: "${envdir}/AWS_SECRET_ACCESS_KEY" holds a secret and can be read by every account\n  HINT: Run "chmod 640 ${envdir}/AWS_SECRET_ACCESS_KEY", with the group of the account that runs wal-b.`,
    ]);
    const wrong = await run(["--envdir", envdir, "wal-push", "-p", "x", SEGMENT]);
    expect([textOf(wrong.failure), ...wrong.records].join()).not.toContain("S3CR3T");
  });

  test("delete garbage checks --min-age before it removes anything", async () => {
    await using site = await temporaryDirectory();
    const { failure, output } = await run([
      "--file-prefix",
      site.path,
      "delete",
      "garbage",
      "--min-age",
      "soon",
      "--confirm",
    ]);
    expect((failure as Failure).message).toBe('--min-age is "soon"');
    expect(output).toBe("");
  });
});
