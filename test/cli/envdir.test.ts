/** Where settings come from: --envdir, daemontools' envdir, the environment, WAL-E's flags in WAL-E's order. */
import { beforeAll, describe, expect, test } from "bun:test";
import { chmod, mkdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { answer, EMPTY_LIST, s3Error, startScriptedS3 } from "../support/scripted-s3.ts";
import { Site } from "../support/site.ts";
import { ensureProgram } from "../support/system-packages.ts";

const A = "000000010000000000000001";
const B = "000000010000000000000002";
const C = "000000010000000000000003";

beforeAll(async () => await ensureProgram("envdir", "daemontools"), 10 * 60_000);

/** A directory of variables as a user would make it; files are for the owner and the group alone unless told. */
async function envdir(site: Site, files: Readonly<Record<string, string>>, mode = 0o640): Promise<string> {
  const directory = join(site.directory, "env");
  await mkdir(directory, { mode: 0o755 });
  for (const [name, value] of Object.entries(files)) {
    await writeFile(join(directory, name), value);
    await chmod(join(directory, name), mode);
    await giveTo(site.account, join(directory, name));
  }
  return directory;
}

const NOTHING = { WALB_FILE_PREFIX: undefined };

/** The two ways to use one directory. */
const WAYS: readonly { way: string; words: (site: Site, directory: string) => readonly string[] }[] = [
  { way: "--envdir DIR", words: (site, directory) => [site.program, "--envdir", directory] },
  { way: "envdir DIR wal-b", words: (site, directory) => ["envdir", directory, site.program] },
];

describe.each(WAYS)("$way", ({ words }) => {
  test("names the repository", async () => {
    await using site = await Site.create();
    const content = await site.segment(A);
    const directory = await envdir(site, { WALE_FILE_PREFIX: `file://localhost${site.repository}\n` });
    const result = await site.run([...words(site, directory), "wal-push", `pg_wal/${A}`], { env: NOTHING });
    expect(result).toMatchObject({ exitCode: 0, stdout: "", stderr: `wal-b: INFO: archived "${A}"\n` });
    expect(Buffer.compare((await site.archived(A)) as Buffer, content)).toBe(0);
  });

  test.each([
    // what the file holds, what the variable then is, seen in the message about it
    ["trailing blanks, tabs and a line end are cut", "s3 \t \n", "s3"],
    ["only the first line counts", "s3\nsecond\n", "s3"],
    ["a line end is not needed", "s3", "s3"],
    ["leading blanks stay", " s3", " s3"],
    ["NUL means a line end", "s3\0x", "s3\nx"],
    ["bytes that are not ASCII stay", "s3ü", "s3ü"],
  ])("%s", async (_, file, value) => {
    await using site = await Site.create();
    const directory = await envdir(site, { WALB_S3_PREFIX: file });
    const result = await site.run([...words(site, directory), "backup-list"], { env: NOTHING });
    expect(result).toMatchObject({
      exitCode: 64,
      stderr: `wal-b: ERROR: "${value}" is not an S3 prefix\n  HINT: It must look like s3://bucket/path.\n`,
    });
  });

  test("an empty file takes a variable away, names with a dot are passed over", async () => {
    await using site = await Site.create();
    const directory = await envdir(site, { WALB_S3_PREFIX: "", ".WALB_NONSENSE": "1" });
    const env = { WALB_S3_PREFIX: "s3://bucket/path" };
    const result = await site.run([...words(site, directory), "backup-list"], { env });
    expect(result).toMatchObject({ exitCode: 0, stderr: "" });
  });

  test("a variable in the directory beats the environment, a flag beats both", async () => {
    await using site = await Site.create();
    const directory = await envdir(site, { WALB_S3_PREFIX: "from-envdir" });
    const env = { ...NOTHING, WALB_S3_PREFIX: "from-environment" };
    const byEnvdir = await site.run([...words(site, directory), "backup-list"], { env });
    expect(byEnvdir.stderr).toStartWith('wal-b: ERROR: "from-envdir" is not');
    const byFlag = await site.run([...words(site, directory), "backup-list", "--s3-prefix", "from-flag"], { env });
    expect(byFlag.stderr).toStartWith('wal-b: ERROR: "from-flag" is not');
  });

  test("an unknown WALB_ variable in it is refused", async () => {
    await using site = await Site.create();
    const directory = await envdir(site, { WALB_S3_REGIO: "x" });
    const result = await site.run([...words(site, directory), "backup-list"]);
    expect(result).toMatchObject({ exitCode: 64 });
    expect(result.stderr).toStartWith("wal-b: ERROR: unknown setting WALB_S3_REGIO\n");
  });

  test("AWS_PROFILE and other variables of the AWS SDK count", async () => {
    await using site = await Site.create();
    await using s3 = await startScriptedS3(() => EMPTY_LIST);
    await writeFile(
      join(site.directory, "credentials"),
      "[default]\naws_access_key_id = DEFAULTKEY\naws_secret_access_key = a\n[archiver]\naws_access_key_id = ARCHIVERKEY\naws_secret_access_key = b\n",
    );
    const directory = await envdir(site, {
      WALE_S3_PREFIX: "s3://bucket/path",
      AWS_ENDPOINT_URL: s3.endpoint,
      AWS_REGION: "us-east-1",
      AWS_PROFILE: "archiver",
      AWS_SHARED_CREDENTIALS_FILE: join(site.directory, "credentials"),
    });
    const result = await site.run([...words(site, directory), "backup-list"], { env: NOTHING });
    expect(result).toMatchObject({ exitCode: 0, stderr: "" });
    expect(s3.requests).not.toBeEmpty();
    for (const { headers } of s3.requests) expect(headers["authorization"]).toContain("Credential=ARCHIVERKEY/");
  });
});

describe("--envdir", () => {
  test("a secret that every account can read is a warning that names the file and not the secret", async () => {
    await using site = await Site.create();
    await site.segment(A);
    const files = { WALB_FILE_PREFIX: site.repository, AWS_SECRET_ACCESS_KEY: "hunter2hunter2", AWS_REGION: "x" };
    const directory = await envdir(site, files, 0o644);
    const result = await site.walb(["--envdir", directory, "--terse", "wal-push", `pg_wal/${A}`], { env: NOTHING });
    expect(result).toMatchObject({
      exitCode: 0,
      stdout: "",
      stderr: `wal-b: WARNING: "${directory}/AWS_SECRET_ACCESS_KEY" holds a secret and can be read by every account\n  HINT: Run "chmod 640 ${directory}/AWS_SECRET_ACCESS_KEY", with the group of the account that runs wal-b.\n`,
    });
    await chmod(join(directory, "AWS_SECRET_ACCESS_KEY"), 0o640);
    const again = await site.walb(["--envdir", directory, "--terse", "wal-push", `pg_wal/${A}`], { env: NOTHING });
    expect(again).toMatchObject({ exitCode: 0, stderr: "" });
  });

  test("a name that can be no variable is refused", async () => {
    await using site = await Site.create();
    const directory = await envdir(site, { "A=B": "x" });
    const result = await site.walb(["backup-list", "--envdir", directory]);
    expect(result).toMatchObject({
      exitCode: 64,
      stderr: `wal-b: ERROR: "${directory}/A=B" cannot be a variable\n  HINT: Rename the file; a name must not hold "=".\n`,
    });
  });
});

describe("as WAL-E", () => {
  test("flags come before the command, in WAL-E's order", async () => {
    await using site = await Site.create();
    for (const name of [A, B, C]) await site.waiting(name);
    const stored = new Set<string>();
    await using s3 = await startScriptedS3(({ method, target, headers }) => {
      const [key = "", query = ""] = target.split("?");
      if (query.includes("list-type")) return EMPTY_LIST;
      // An answer to HEAD has no body.
      if (method === "HEAD") return answer(404);
      if (method !== "PUT") return s3Error(404, "NoSuchKey");
      if (stored.has(key) && headers["if-none-match"] === "*") return s3Error(412, "PreconditionFailed");
      stored.add(key);
      return answer(200, "", { etag: '"x"' });
    });
    await symlink(site.program, join(site.directory, "wal-e"));
    const env = {
      ...NOTHING,
      AWS_SECRET_ACCESS_KEY: "secret",
      AWS_REGION: "us-east-1",
      WALE_S3_ENDPOINT: s3.endpoint.replace("http://", "http+path://"),
    };
    const words = ["--s3-prefix", "s3://bucket/some/prefix", "-k", "ACCESSKEY", "wal-push", "-p", "2", `pg_wal/${A}`];
    const result = await site.run([join(site.directory, "wal-e"), ...words], { env });
    expect(result).toMatchObject({ exitCode: 0, stdout: "" });
    const puts = s3.requests.filter(({ method }) => method === "PUT");
    expect([...stored].sort()).toEqual([A, B].map((name) => `/bucket/some/prefix/wal_005/${name}.zst`));
    for (const { headers } of s3.requests) expect(headers["authorization"]).toContain("Credential=ACCESSKEY/");
    for (const { headers } of puts) expect(headers["if-none-match"]).toBe("*");
    expect(await site.marks()).toEqual([`${A}.ready`, `${B}.done`, `${C}.ready`]);
  });

  test("--terse says nothing of what went well", async () => {
    await using site = await Site.create();
    await site.segment(A);
    const words = ["--terse", "wal-push", `pg_wal/${A}`];
    expect(await site.walb(words)).toMatchObject({ exitCode: 0, stdout: "", stderr: "" });
    await site.segment(A, { fill: 9 });
    const refused = await site.walb(words);
    expect(refused.exitCode).toBe(65);
    expect(refused.stderr).toStartWith(`wal-b: ERROR: "${A}" is already archived with different content\n`);
  });

  test("--terse says nothing of a file that is absent", async () => {
    await using site = await Site.create();
    await site.segment(A);
    expect(await site.walb(["wal-push", `pg_wal/${A}`])).toMatchObject({ exitCode: 0 });
    expect(await site.walb(["--terse", "wal-fetch", C, "absent"])).toMatchObject({ exitCode: 74, stderr: "" });
  });

  test.each(["WALB", "WALG", "WALE"])("%s_LOG_FORMAT is that of the last message, too", async (prefix) => {
    await using site = await Site.create();
    const { stderr } = await site.walb(["wal-push", "missing"], { env: { [`${prefix}_LOG_FORMAT`]: "json" } });
    expect(JSON.parse(stderr)).toMatchObject({ level: "error" });
  });

  test("wal-fetch takes WAL-E's -p and --prefetch, before and after the names", async () => {
    await using site = await Site.create();
    const content = await site.segment(A);
    await site.walb(["wal-push", `pg_wal/${A}`]);
    for (const words of [
      ["wal-fetch", "-p", "0", A, "pg_wal/RECOVERYXLOG"],
      ["wal-fetch", "--prefetch", "4", A, "pg_wal/RECOVERYXLOG"],
      ["wal-fetch", A, "pg_wal/RECOVERYXLOG", "--prefetch=8"],
    ]) {
      expect(await site.walb(words)).toMatchObject({ exitCode: 0 });
      const file = Bun.file(join(site.data, "pg_wal/RECOVERYXLOG"));
      expect(Buffer.compare(Buffer.from(await file.bytes()), content)).toBe(0);
      await file.delete();
    }
  });
});
