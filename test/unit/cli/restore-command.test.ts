import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type RestoreCommandSource, restoreCommandOf } from "../../../src/cli/restore-command.ts";
import { UsageError } from "../../../src/errors.ts";

let directory: string;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "walb-restore-command-"));
  await writeFile(join(directory, "WALB_S3_PREFIX"), "s3://bucket/in-envdir\n");
  await writeFile(join(directory, "AWS_SECRET_ACCESS_KEY"), "secret in a file\n");
});
afterAll(async () => await rm(directory, { recursive: true, force: true }));

const commandOf = (source: Partial<RestoreCommandSource>) =>
  restoreCommandOf({
    program: "/usr/local/bin/wal-b",
    globalFlags: [],
    settings: { s3Prefix: undefined, filePrefix: undefined },
    env: {},
    workingDirectory: "/",
    ...source,
  });

describe("restoreCommandOf()", () => {
  test("needs nothing but an envdir that has the prefix, and says it with its whole path", () => {
    const env = { WALB_S3_PREFIX: "s3://bucket/in-envdir", AWS_SECRET_ACCESS_KEY: "secret in a file", PATH: "/bin" };
    const settings = { s3Prefix: "s3://bucket/in-envdir", filePrefix: undefined };
    const workingDirectory = join(directory, "..");
    const envdir = directory.slice(workingDirectory.length + 1);
    expect(commandOf({ globalFlags: [`--envdir=${envdir}`], env, settings, workingDirectory })).toEqual({
      command: `/usr/local/bin/wal-b --envdir ${directory} wal-fetch %f "%p"`,
      variables: [],
    });
  });

  test("writes a prefix from the environment out, and names what else the server's must have, without values", () => {
    const env = {
      WALB_S3_PREFIX: "s3://bucket/main",
      AWS_SECRET_ACCESS_KEY: "secret",
      AWS_PROFILE: "backup",
      AWS_REGION: "",
      HOME: "/root",
    };
    const found = commandOf({ env, settings: { s3Prefix: "s3://bucket/main", filePrefix: undefined } });
    expect(found).toEqual({
      command: '/usr/local/bin/wal-b --s3-prefix=s3://bucket/main wal-fetch %f "%p"',
      variables: ["AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"],
    });
  });

  test("asks for nothing of S3's where the repository is a directory", () => {
    const env = { AWS_CA_BUNDLE: "/ca.pem", WALB_S3_REGION: "eu-west-1", WALB_RECOVERY_RETRY_DEADLINE: "1h" };
    const { variables } = commandOf({ env, settings: { s3Prefix: undefined, filePrefix: "/repository" } });
    expect(variables).toEqual(["WALB_RECOVERY_RETRY_DEADLINE"]);
  });

  test("writes a flag that beats the envdir once, and leaves out what is for this run", () => {
    const globalFlags = [`--envdir=${directory}`, "--s3-prefix=s3://bucket/flag", "--verbose", "--log-format=json"];
    const settings = { s3Prefix: "s3://bucket/flag", filePrefix: undefined };
    expect(commandOf({ globalFlags, settings }).command).toBe(
      `/usr/local/bin/wal-b --envdir ${directory} --s3-prefix=s3://bucket/flag wal-fetch %f "%p"`,
    );
  });

  test("quotes for the shell, and for what PostgreSQL replaces", () => {
    const settings = { s3Prefix: undefined, filePrefix: "/it's 100%" };
    expect(commandOf({ program: "/opt/my tools/wal-b", settings }).command).toBe(
      `'/opt/my tools/wal-b' '--file-prefix=/it'\\''s 100%%' wal-fetch %f "%p"`,
    );
  });

  test("refuses a line's end", () => {
    expect(() => commandOf({ settings: { s3Prefix: undefined, filePrefix: "/a\nb" } })).toThrow(UsageError);
  });
});
