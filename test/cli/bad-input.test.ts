/** Words, settings and files that are wrong: one clear message, the right exit code, and nothing changed. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdir, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ordinaryAccount } from "../support/account.ts";
import { runProgram } from "../support/run-program.ts";
import { scriptedS3Environment } from "../support/scripted-s3.ts";
import { Site } from "../support/site.ts";
import { MiB, walContent } from "../support/wal-content.ts";

const A = "000000010000000000000001";
const B = "000000010000000000000002";
const HELP = 'Run "wal-b --help", or "wal-b COMMAND --help".';

interface Refusal {
  /** Why it is refused: the name of the test. */
  readonly what: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
  readonly exitCode: number;
  readonly error: string;
  readonly detail?: string;
  readonly hint?: string;
}

/** What stands on stderr for one failure. DIR is the site's directory. */
function text({ error, detail, hint }: Pick<Refusal, "error" | "detail" | "hint">): string {
  return `${[`wal-b: ERROR: ${error}`, detail && `  DETAIL: ${detail}`, hint && `  HINT: ${hint}`].filter(Boolean).join("\n")}\n`;
}

let site: Site;
beforeAll(async () => {
  site = await Site.create();
  await site.segment(A);
  expect(await site.walb(["wal-push", `pg_wal/${A}`])).toMatchObject({ exitCode: 0, stdout: "" });
});
afterAll(async () => await site[Symbol.asyncDispose]());

async function expectRefused({ args, env, exitCode, ...message }: Omit<Refusal, "what">): Promise<void> {
  const before = await site.listing();
  const result = await site.walb(args, { env });
  expect(result.stderr.replaceAll(site.directory, "DIR")).toBe(text(message));
  expect(result).toMatchObject({ exitCode, stdout: "", timedOut: false });
  expect(await site.listing()).toEqual(before);
}

const PUSH = ["wal-push", `pg_wal/${A}`] as const;
const ELSEWHERE = { WALB_FILE_PREFIX: undefined };

describe("the words of the command line", () => {
  const refusals: readonly Refusal[] = [
    { what: "no command", args: [], exitCode: 64, error: "no command was given", hint: HELP },
    {
      what: "an unknown command",
      args: ["wal-pusch", "x"],
      exitCode: 64,
      error: 'there is no such command; did you mean "wal-push"?',
      hint: HELP,
    },
    {
      what: "a command that resembles none",
      args: ["frobnicate"],
      exitCode: 64,
      error: "unknown word: frobnicate",
      hint: HELP,
    },
    {
      what: "an unknown flag, which does not swallow the word after it",
      args: ["wal-push", "--pol-size", "4", `pg_wal/${A}`],
      exitCode: 64,
      error: "unknown flag: --pol-size",
      hint: HELP,
    },
    {
      what: "the value of an unknown flag, which may be a secret, and is not shown",
      args: ["wal-push", "--aws-secret-access-key=hunter2hunter2", `pg_wal/${A}`],
      exitCode: 64,
      error: "unknown flag: --aws-secret-access-key",
      hint: HELP,
    },
    {
      what: "a flag of another command",
      args: ["backup-list", "--confirm"],
      exitCode: 64,
      error: "unknown word: confirm",
      hint: HELP,
    },
    {
      what: "a flag without its value",
      args: ["backup-list", "--envdir"],
      exitCode: 64,
      error: "--envdir needs a value",
      hint: HELP,
    },
    {
      what: "a value that is none of the choices",
      args: ["--log-format", "xml", "backup-list"],
      exitCode: 64,
      error: "invalid values",
      detail: 'Argument: log-format, Given: "xml", Choices: "text", "json".',
      hint: HELP,
    },
    {
      what: "wal-push without a path",
      args: ["wal-push"],
      exitCode: 64,
      error: "too few words: got 0, need at least 1",
      hint: HELP,
    },
    {
      what: "wal-fetch without a destination",
      args: ["wal-fetch", A],
      exitCode: 64,
      error: "too few words: got 1, need at least 2",
      hint: HELP,
    },
    {
      what: "too many words",
      args: ["wal-push", `pg_wal/${A}`, `pg_wal/${B}`],
      exitCode: 64,
      error: `unknown word: pg_wal/${B}`,
      hint: HELP,
    },
    { what: "an empty path", args: ["wal-push", ""], exitCode: 64, error: "no path was given", hint: HELP },
    {
      what: "a pool size below its bound",
      args: ["wal-push", "-p", "0", `pg_wal/${A}`],
      exitCode: 64,
      error: '--pool-size is "0"',
      hint: "Allowed: a whole number, from 1 to 256.",
    },
    {
      what: "delete without what",
      args: ["delete", "--confirm"],
      exitCode: 64,
      error: "too few words: got 0, need at least 1",
      hint: HELP,
    },
    {
      what: "delete of nothing that can be deleted",
      args: ["delete", "all", "--confirm"],
      exitCode: 64,
      error: '"all" is nothing that can be deleted',
      hint: 'Run "wal-b delete --help".',
    },
    {
      what: "delete retain without a number",
      args: ["delete", "retain", "--confirm"],
      exitCode: 64,
      error: '"delete retain" needs how many backups to keep, 1 or more',
      hint: 'Run "wal-b delete --help".',
    },
    ...["0", "-1", "1.5", "all"].map((count) => ({
      what: `delete retain ${count}`,
      args: ["delete", "retain", count, "--confirm"],
      exitCode: 64,
      error: `"delete retain" needs how many backups to keep, 1 or more, not "${count}"`,
      hint: 'Run "wal-b delete --help".',
    })),
    {
      what: "delete before without a name",
      args: ["delete", "before", "--confirm"],
      exitCode: 64,
      error: '"delete before" needs the name of a backup',
      hint: 'Run "wal-b delete --help".',
    },
    {
      what: "delete everything with anything but FORCE",
      args: ["delete", "everything", "force", "--confirm"],
      exitCode: 64,
      error: '"delete everything" takes FORCE and nothing else, not "force"',
      hint: 'Run "wal-b delete --help".',
    },
    {
      what: "delete garbage with a name",
      args: ["delete", "garbage", "archives", "--confirm"],
      exitCode: 64,
      error: '"delete garbage" takes no "archives"',
      hint: 'Run "wal-b delete --help".',
    },
    {
      what: "an age that is no time",
      args: ["delete", "garbage", "--min-age", "soon", "--confirm"],
      exitCode: 64,
      error: '--min-age is "soon"',
      hint: "It must be a time such as 90s, 30min, 24h or 2d.",
    },
  ];
  test.each(refusals)("$what", async (refusal) => await expectRefused(refusal));

  test("messages are English whatever the locale is", async () => {
    const env = { LC_ALL: "de_DE.UTF-8", LANG: "de_DE.UTF-8", LANGUAGE: "de" };
    expect((await site.walb(["wal-push"], { env })).stderr).toBe(
      text({ error: "too few words: got 0, need at least 1", hint: HELP }),
    );
  });

  test("--log-format json gives one line of JSON, for an error in the words too", async () => {
    const { stderr } = await site.walb(["wal-push", "--log-format", "json", "--nonsense"]);
    expect(stderr).toEndWith("}\n");
    const record = JSON.parse(stderr) as Record<string, string>;
    expect(Object.keys(record)).toEqual(["time", "level", "message", "hint"]);
    expect(record).toMatchObject({ level: "error", message: "unknown flag: --nonsense" });
  });
});

describe("settings", () => {
  const refusals: readonly Refusal[] = [
    {
      what: "no prefix",
      args: PUSH,
      env: ELSEWHERE,
      exitCode: 64,
      error: "no repository is set",
      hint: 'Set WALB_S3_PREFIX=s3://bucket/path (or WALE_S3_PREFIX), or pass --s3-prefix. To keep it in a file of that name in a directory, say "wal-b --envdir DIR".',
    },
    {
      what: "an empty prefix, which is none",
      args: PUSH,
      env: { WALB_FILE_PREFIX: "" },
      exitCode: 64,
      error: "no repository is set",
      hint: 'Set WALB_S3_PREFIX=s3://bucket/path (or WALE_S3_PREFIX), or pass --s3-prefix. To keep it in a file of that name in a directory, say "wal-b --envdir DIR".',
    },
    {
      what: "two prefixes",
      args: PUSH,
      env: { WALE_S3_PREFIX: "s3://bucket/path" },
      exitCode: 64,
      error: "two repositories are set",
      detail:
        'WALB_S3_PREFIX is "s3://bucket/path" and WALB_FILE_PREFIX is "DIR/repository", or names of the same meaning.',
      hint: "Keep the one that is meant.",
    },
    ...["bucket/path", "s3:/bucket", "s3://", "s3:///path", "http://bucket/path", "s3://bucket/a/../b"].map(
      (prefix) => ({
        what: `the S3 prefix ${prefix}`,
        args: PUSH,
        env: { ...ELSEWHERE, WALB_S3_PREFIX: prefix },
        exitCode: 64,
        error: `"${prefix}" is not an S3 prefix`,
        hint: "It must look like s3://bucket/path.",
      }),
    ),
    ...["relative/path", "file://otherhost/path", "file://"].map((prefix) => ({
      what: `the file prefix ${prefix}`,
      args: ["--file-prefix", prefix, ...PUSH],
      exitCode: 64,
      error: `"${prefix}" is not a file prefix`,
      hint: "It must look like file://localhost/directory or /directory.",
    })),
    {
      what: "a repository directory that is not there, which is not made",
      args: PUSH,
      env: { WALB_FILE_PREFIX: "/nonexistent/repository" },
      exitCode: 64,
      error: 'cannot use directory "/nonexistent/repository" as a repository',
      detail: "ENOENT: no such file or directory, stat '/nonexistent/repository'.",
      hint: "Mount it, correct the prefix, or create the directory; it is never created by itself.",
    },
    {
      what: "a repository that is a file",
      args: ["--file-prefix", "/etc/passwd", ...PUSH],
      exitCode: 64,
      error: 'cannot use directory "/etc/passwd" as a repository',
      detail: "It is not a directory.",
      hint: "Mount it, correct the prefix, or create the directory; it is never created by itself.",
    },
    {
      what: "a WALB_ variable that is unknown",
      args: PUSH,
      env: { WALB_S3_REGIO: "eu-central-1" },
      exitCode: 64,
      error: "unknown setting WALB_S3_REGIO",
      hint: 'See "wal-b --help" and docs/settings.md for those there are.',
    },
    ...(
      [
        ["WALB_COMPRESSION_LEVEL", "20", "a whole number, from 1 to 19"],
        ["WALG_COMPRESSION_METHOD", "lz4", "zstd"],
        ["WALE_WAL_PUSH_CONCURRENCY", "many", "a whole number, from 1 to 256"],
        ["WALB_RETRY_DEADLINE", "2d", "a time in seconds, or with ms, s, min, h, from 0 to 24h"],
        ["WALB_CONNECT_TIMEOUT", "0", "a time in seconds, or with ms, s, min, h, from 100ms to 10min"],
        ["WALB_TAR_SIZE_THRESHOLD", "1kB", "a size in bytes, or with kB, MB, GB, from 1MB to 64GB"],
        ["WALB_S3_MAX_PART_SIZE", "1e9", "a size in bytes, or with kB, MB, GB, from 5MB to 5GB"],
        ["AWS_S3_FORCE_PATH_STYLE", "yes", "true, false"],
        ["WALB_S3_CONDITIONAL_WRITES", "never", "detect, require, emulate"],
        ["WALB_LOG_FORMAT", "xml", "text, json"],
      ] as const
    ).map(([variable, value, allowed]) => ({
      what: `${variable}=${value}`,
      args: PUSH,
      env: { [variable]: value },
      exitCode: 64,
      error: `${variable} is "${value}"`,
      hint: `Allowed: ${allowed}.`,
    })),
    ...["WALE_GPG_KEY_ID", "WALG_PGP_KEY_PATH", "WALB_LIBSODIUM_KEY", "WALG_CSE_KMS_ID"].map((variable) => ({
      what: `${variable}, which asks for encryption`,
      args: PUSH,
      env: { [variable]: "0123456789abcdef0123456789abcdef" },
      exitCode: 64,
      error: `cannot honour ${variable}`,
      hint: "Client-side encryption is not supported yet, and nothing is ever stored in plain text instead. Unset it, and see WALB_S3_SSE for encryption by the server.",
    })),
    {
      what: "--gpg-key-id",
      args: ["--gpg-key-id", "ABCD", ...PUSH],
      exitCode: 64,
      error: "cannot honour WALE_GPG_KEY_ID",
      hint: "Client-side encryption is not supported yet, and nothing is ever stored in plain text instead. Unset it, and see WALB_S3_SSE for encryption by the server.",
    },
    {
      what: "a store of another kind",
      args: PUSH,
      env: { WALE_SWIFT_PREFIX: "swift://container" },
      exitCode: 64,
      error: "cannot honour WALE_SWIFT_PREFIX",
      hint: "Only S3 (WALB_S3_PREFIX) and local directories (WALB_FILE_PREFIX) are supported.",
    },
    {
      what: "half a pair of credentials",
      args: PUSH,
      env: { ...ELSEWHERE, WALB_S3_PREFIX: "s3://bucket/path", AWS_ACCESS_KEY_ID: "AKIA" },
      exitCode: 64,
      error: "an access key and its secret must be given together",
    },
    {
      what: "an endpoint that is none, whose password is not shown",
      args: PUSH,
      env: { ...ELSEWHERE, WALB_S3_PREFIX: "s3://bucket/path", AWS_ENDPOINT_URL: "https://user:hunter2@host:1" },
      exitCode: 64,
      error: '"https://…@host:1" is not an S3 endpoint',
      hint: "It must look like https://host:port, or like WAL-E's https+path://host:port.",
    },
    {
      what: "a customer key of the wrong length, which is not shown",
      args: PUSH,
      env: { ...ELSEWHERE, WALB_S3_PREFIX: "s3://bucket/path", WALB_S3_SSE_C: "hunter2" },
      exitCode: 64,
      error: "the key in S3_SSE_C cannot be used",
      hint: "It must have 32 bytes, as they are or in base64.",
    },
  ];
  test.each(refusals)("$what", async (refusal) => await expectRefused(refusal));

  const NO_KEYS = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined };
  /** What the AWS SDK refuses, and nothing was asked of the store. */
  test.each([
    ["a region with a blank behind it", { AWS_REGION: "eu-central-1 " }, 64, "Region not accepted: "],
    ["a region that is none", { AWS_REGION: "us_east_1" }, 64, "Region not accepted: "],
    ["FIPS with an endpoint", { AWS_USE_FIPS_ENDPOINT: "true" }, 64, "A custom endpoint cannot be combined with FIPS."],
    ["a mode that is none", { AWS_DEFAULTS_MODE: "x" }, 64, 'Invalid parameter for "defaultsMode"'],
    ["a token with a CR behind it", { AWS_SESSION_TOKEN: "x\r" }, 64, "ERR_INVALID_CHAR: "],
    ["credentials at no URL", { ...NO_KEYS, AWS_CONTAINER_CREDENTIALS_FULL_URI: "x" }, 64, "ERR_INVALID_URL: "],
    [
      "a token's file that is not there",
      { ...NO_KEYS, AWS_WEB_IDENTITY_TOKEN_FILE: "/none", AWS_ROLE_ARN: "arn:x" },
      77,
      "ENOENT: no such file or directory, open '/none'.",
    ],
    ["a profile that lacks half", { ...NO_KEYS, AWS_PROFILE: "half" }, 77, "http://127.0.0.1:1: "],
  ] as const)("of AWS: %s", async (_, env, exitCode, detail) => {
    const config = await site.write("config", "[profile half]\nsso_session=none\nsso_account_id=1\nsso_role_name=r\n");
    const { stderr, ...result } = await site.walb(PUSH, {
      env: {
        ...scriptedS3Environment("http://127.0.0.1:1"),
        WALB_RETRY_DEADLINE: "2s",
        AWS_CONFIG_FILE: config,
        ...env,
      },
    });
    await rm(config);
    expect({ ...result, stderr }).toMatchObject({ exitCode, stderr: expect.stringContaining(`DETAIL: ${detail}`) });
    expect(stderr).toMatch(/^wal-b: ERROR: could not \w+ "s3:\/\/bucket\/path\//);
  });

  test.if(process.getuid?.() === 0)(
    "of AWS: an account with neither a name nor a home asks the store all the same",
    async () => {
      const keys = "AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret";
      const { exitCode, stderr } = await site.shell(
        `unset HOME WALB_FILE_PREFIX; export ${keys} WALB_S3_PREFIX=s3://bucket/path WALB_RETRY_DEADLINE=1s AWS_ENDPOINT_URL=http://127.0.0.1:1
       own=$(mktemp -d /tmp/walb-XXXXXX); chmod 755 "$own"; cp "$WALB" "$own/wal-b"
       setpriv --reuid 4243 --regid 4243 --clear-groups "$own/wal-b" backup-list; code=$?; rm -r "$own"; exit $code`,
      );
      expect({ exitCode, stderr }).toEqual({ exitCode: 69, stderr: expect.stringContaining("ECONNREFUSED") });
    },
  );

  test.each([".env", "bunfig.toml", "package.json", "tsconfig.json"])(
    "a planted %s in the data directory changes nothing",
    async (name) => {
      await using other = await Site.create();
      const planted: Record<string, string> = {
        ".env": `WALB_FILE_PREFIX=${other.repository}\nWALB_NONSENSE=1\n`,
        "bunfig.toml": 'preload = ["./planted.ts"]\n',
        "package.json": "this is no JSON",
        "tsconfig.json": "this is no JSON",
      };
      const files = [await site.write(name, planted[name]), await site.write("planted.ts", "process.exit(3)")];
      try {
        const result = await site.walb(PUSH, { env: { WALB_FILE_PREFIX: site.repository } });
        expect(result).toMatchObject({
          exitCode: 0,
          stderr: `wal-b: INFO: "${A}" was already archived with the same content\n`,
        });
        // Without any prefix it must not come from the file.
        expect(await site.walb(PUSH, { env: ELSEWHERE })).toMatchObject({ exitCode: 64 });
        expect(await other.listing()).toMatchObject({ repository: "directory 755" });
        expect(Object.keys(await other.listing()).filter((path) => path.startsWith("repository/"))).toEqual([]);
      } finally {
        for (const file of files) await rm(file);
      }
    },
  );
});

describe("an envdir that cannot be read", () => {
  test("one that is not there", async () => {
    await expectRefused({
      args: ["--envdir", "/nonexistent/env", ...PUSH],
      exitCode: 64,
      error: 'could not read the envdir "/nonexistent/env"',
      detail: "ENOENT: no such file or directory, scandir '/nonexistent/env'.",
      hint: "Check that the path is right and that this account may read it.",
    });
  });

  test("one that is a file", async () => {
    await expectRefused({
      args: ["--envdir", "/etc/passwd", ...PUSH],
      exitCode: 64,
      error: 'could not read the envdir "/etc/passwd"',
      detail: "ENOTDIR: not a directory, scandir '/etc/passwd'.",
      hint: "Check that the path is right and that this account may read it.",
    });
  });

  test("one with a directory among its files", async () => {
    const envdir = join(site.directory, "env-with-directory");
    await mkdir(join(envdir, "AWS_REGION"), { recursive: true });
    await expectRefused({
      args: ["--envdir", envdir, ...PUSH],
      exitCode: 64,
      error: '"DIR/env-with-directory/AWS_REGION" is a directory, not a variable',
      hint: "Remove it, or pass another --envdir.",
    });
  });

  test("one with a file whose target is gone", async () => {
    const envdir = join(site.directory, "env-with-link");
    await mkdir(envdir);
    await symlink("/nonexistent/secret", join(envdir, "AWS_SECRET_ACCESS_KEY"));
    await expectRefused({
      args: ["--envdir", envdir, ...PUSH],
      exitCode: 64,
      error: 'could not read "DIR/env-with-link/AWS_SECRET_ACCESS_KEY"',
      detail: "ENOENT: no such file or directory, stat 'DIR/env-with-link/AWS_SECRET_ACCESS_KEY'.",
      hint: "Check that the path is right and that this account may read it.",
    });
  });

  test("an ordinary user: a file that only another account may read", async () => {
    // Root may read everything; then nobody's site and root's file. An ordinary user takes its own right away.
    await using own = await Site.create(ordinaryAccount());
    const envdir = join(own.directory, "env");
    await mkdir(envdir, { mode: 0o755 });
    const secret = join(envdir, "AWS_SECRET_ACCESS_KEY");
    await writeFile(secret, "hunter2hunter2");
    await chmod(secret, own.account ? 0o600 : 0o000);
    await own.segment(A);
    const before = await own.listing();
    const result = await own.walb(["--envdir", envdir, ...PUSH]);
    expect(result).toMatchObject({
      exitCode: 64,
      stdout: "",
      stderr: text({
        error: `could not read "${secret}"`,
        detail: `EACCES: permission denied, open '${secret}'.`,
        hint: "Check that the path is right and that this account may read it.",
      }),
    });
    expect(await own.listing()).toEqual(before);
  });
});

describe("files that cannot be archived", () => {
  const cases: readonly (Omit<Refusal, "args"> & { readonly name: string; readonly content?: Uint8Array })[] = [
    {
      what: "a path that is no WAL file",
      name: "RECOVERYXLOG",
      content: walContent(A),
      exitCode: 64,
      error: '"RECOVERYXLOG" is not the name of a WAL file',
      hint: "archive_command must pass %p: wal-b wal-push %p",
    },
    {
      what: "a name in lower case",
      name: "00000001000000000000000a",
      content: walContent("00000001000000000000000A"),
      exitCode: 64,
      error: '"00000001000000000000000a" is not the name of a WAL file',
      hint: "archive_command must pass %p: wal-b wal-push %p",
    },
    {
      what: "a file that is not there",
      name: B,
      exitCode: 66,
      error: `could not read "pg_wal/${B}"`,
      detail: `ENOENT: no such file or directory, open 'pg_wal/${B}'.`,
      hint: "archive_command must pass %p, and its working directory is the data directory.",
    },
    {
      what: "an empty segment",
      name: B,
      content: new Uint8Array(),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: "It has 0 bytes, fewer than the header of its first page.",
    },
    {
      what: "a truncated segment",
      name: B,
      content: walContent(B).subarray(0, MiB - 8192),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: `It has ${MiB - 8192} bytes, its header states ${MiB}.`,
    },
    {
      what: "a zeroed segment",
      name: B,
      content: new Uint8Array(MiB),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: "Its first page has the magic number 0x0000, which no release of PostgreSQL wrote.",
    },
    {
      what: "a file that is no WAL at all",
      name: B,
      content: new TextEncoder().encode("#!/bin/sh\n".repeat(1000)),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: "Its first page has the magic number 0x2123, which no release of PostgreSQL wrote.",
    },
    {
      what: "another segment's content",
      name: B,
      content: walContent(A),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: "Its first page is at 0/100000, the name stands for 0/200000.",
    },
    {
      what: "a later timeline's content",
      name: B,
      content: walContent("000000020000000000000002"),
      exitCode: 65,
      error: `"${B}" is not a valid WAL segment`,
      detail: "Its first page is of timeline 2, the name of timeline 1.",
    },
    {
      what: "another cluster's segment",
      name: B,
      content: walContent(B, { systemIdentifier: 6_000_000_000_000_000_001n }),
      exitCode: 65,
      error: "the archive at file://DIR/repository belongs to another cluster",
      detail: `It holds "${A}" of the cluster with system identifier 7420325342344323423; this one has 6000000000000000001.`,
      hint: "Give each cluster a prefix of its own. After pg_upgrade or initdb the cluster is a new one: archive it to a new prefix and take a base backup.",
    },
    {
      what: "other content under a name that is archived",
      name: A,
      content: walContent(A, { fill: 8 }),
      exitCode: 65,
      error: `"${A}" is already archived with different content`,
      detail: `file://DIR/repository/wal_005/${A}.zst was left as it is.`,
      hint: "Check that no other cluster archives to this prefix. A server that was restored and started without recovery.signal writes on the old timeline: restore it again, with recovery.signal, or give it a prefix of its own.",
    },
    {
      what: "a timeline history without a parent",
      name: "00000002.history",
      content: new TextEncoder().encode("# nothing\n"),
      exitCode: 65,
      error: '"00000002.history" is not a timeline history',
      detail: "It names no parent timeline.",
    },
    {
      what: "a backup history that is none",
      name: `${A}.00000028.backup`,
      content: new TextEncoder().encode("nothing\n"),
      exitCode: 65,
      error: `"${A}.00000028.backup" is not a backup history`,
      detail: 'It does not begin with "START WAL LOCATION".',
    },
    {
      what: "a damaged partial segment",
      name: `${B}.partial`,
      content: new Uint8Array(MiB),
      exitCode: 65,
      error: `"${B}.partial" is not a valid WAL segment`,
      detail: "Its first page has the magic number 0x0000, which no release of PostgreSQL wrote.",
    },
  ];
  test.each(cases)("$what", async ({ name, content, ...refusal }) => {
    const original = walContent(A);
    if (content) await site.write(`pg_wal/${name}`, content);
    try {
      await expectRefused({ args: ["wal-push", `pg_wal/${name}`], ...refusal });
    } finally {
      if (content) await rm(join(site.data, "pg_wal", name));
      await site.write(`pg_wal/${A}`, original);
    }
    expect(Buffer.compare((await site.archived(A)) as Buffer, original)).toBe(0);
  });

  test("a directory under a segment's name", async () => {
    await mkdir(join(site.data, "pg_wal", B));
    await expectRefused({
      args: ["wal-push", `pg_wal/${B}`],
      exitCode: 66,
      error: `could not read "pg_wal/${B}"`,
      detail: "EISDIR: illegal operation on a directory, read.",
      hint: "archive_command must pass %p, and its working directory is the data directory.",
    });
    await rm(join(site.data, "pg_wal", B), { recursive: true });
  });
});

describe("backups that are not there", () => {
  const NAME = "base_0000000100000000000000FF";
  const notThere = (name: string) => ({
    exitCode: 74,
    error: `there is no backup "${name}"`,
    detail: "Looked in file://DIR/repository.",
    hint: 'Run "wal-b backup-list" for those there are.',
  });
  const refusals: readonly Refusal[] = [
    { what: "backup-fetch of an unknown name", args: ["backup-fetch", "../restored", NAME], ...notThere(NAME) },
    {
      what: "backup-fetch of no name at all",
      args: ["backup-fetch", "../restored", "yesterday"],
      ...notThere("yesterday"),
    },
    { what: "backup-mark of an unknown name", args: ["backup-mark", NAME], ...notThere(NAME) },
    { what: "backup-list of an unknown name", args: ["backup-list", NAME], ...notThere(NAME) },
    {
      what: "delete before an unknown name",
      args: ["delete", "before", NAME, "--confirm"],
      ...notThere(NAME),
    },
    {
      what: "delete before a segment after all backups",
      args: ["delete", "before", "0000000100000000000000FF", "--confirm"],
      exitCode: 64,
      error: 'no backup starts at "0000000100000000000000FF" or later',
      hint: "Deleting what is before it would leave nothing to restore.",
    },
  ];
  test.each(refusals)("$what", async (refusal) => await expectRefused(refusal));

  test("nothing is made at the destination", async () => {
    expect((await runProgram(["ls", join(site.directory, "restored")])).exitCode).not.toBe(0);
  });
});
