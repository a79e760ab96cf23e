/**
 * wal-fetch of the compiled binary: the exit code that recovery sees for every class of failure, and what is never put in place.
 * test/integration/wal-fetch-in-recovery.test.ts shows what PostgreSQL makes of these codes.
 */
import { describe, expect, test } from "bun:test";
import { chmod, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { ordinaryAccount } from "../support/account.ts";
import { random } from "../support/random.ts";
import {
  answer,
  EMPTY_LIST,
  type Script,
  s3Error,
  scriptedS3Environment,
  startScriptedS3,
} from "../support/scripted-s3.ts";
import { compressed, onSmallDisk, Site } from "../support/site.ts";
import { historyContent, MiB, walContent } from "../support/wal-content.ts";
import { controlFile } from "../unit/postgres/control-file.ts";

const A = "000000010000000000000001";
const B = "000000010000000000000002";
const C = "000000010000000000000003";
const DESTINATION = "pg_wal/RECOVERYXLOG";

/** Giving up at once, also where wal-fetch is patient by itself. */
const IMPATIENT = { WALB_RETRY_DEADLINE: "0", WALB_RECOVERY_RETRY_DEADLINE: "0", WALB_STANDBY_RETRY_DEADLINE: "0" };

const pgWal = async (site: Site) => (await readdir(join(site.data, "pg_wal"))).sort();
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0;
const fetched = async (site: Site, destination = DESTINATION) => await Bun.file(join(site.data, destination)).bytes();

type State = "nothing" | "recovery.signal" | "standby.signal" | "both";
const STATES: readonly State[] = ["nothing", "recovery.signal", "standby.signal", "both"];

async function enter(site: Site, state: State): Promise<void> {
  for (const signal of ["recovery.signal", "standby.signal"]) {
    await rm(join(site.data, signal), { force: true });
    if (state === signal || state === "both") await site.write(signal);
  }
}

const isList = (target: string) => target.includes("list-type");
const listOf = (key: string) =>
  answer(
    200,
    `<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>${key}</Key><Size>1</Size></Contents></ListBucketResult>`,
  );

/** A bucket in which nothing is but one key under s3://bucket/path. */
const bucketWith =
  (key: string): Script =>
  ({ target }) => {
    if (!isList(target)) return s3Error(404, "NoSuchKey");
    const asked = new URLSearchParams(target.slice(target.indexOf("?"))).get("prefix") ?? "";
    return `path/${key}`.startsWith(asked) ? listOf(`path/${key}`) : EMPTY_LIST;
  };

/** A bucket that has nothing, and answers so when it is asked whether there are backups. */
const failingAtBackups =
  (failure: Script): Script =>
  (request, socket) => {
    if (!isList(request.target)) return s3Error(404, "NoSuchKey");
    return request.target.includes("basebackups_005") ? failure(request, socket) : EMPTY_LIST;
  };

interface FailureClass {
  readonly what: string;
  /** Outside of recovery, and on a standby, which both.signal files make too. */
  readonly code: number;
  readonly inRecovery: 74 | 200;
  readonly args?: readonly string[];
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Runs before, on a repository that holds A. */
  readonly given?: (site: Site) => Promise<unknown>;
  /** Instead of `args`: a shell line. */
  readonly line?: string;
  /** Answers in place of a directory. */
  readonly s3?: Script;
}

const ONE_ERROR = /^wal-b: ERROR: .+\n( {2}DETAIL: .+\n)?( {2}HINT: .+\n)?$/;
const FETCH_B = ["wal-fetch", B, DESTINATION];

const CLASSES: readonly FailureClass[] = [
  { what: "a file that is proved absent", code: 74, inRecovery: 74 },
  {
    what: "a timeline history that is proved absent",
    code: 74,
    inRecovery: 74,
    args: ["wal-fetch", "00000002.history", "pg_wal/RECOVERYHISTORY"],
  },
  {
    what: "absence from the right bucket",
    code: 74,
    inRecovery: 74,
    s3: bucketWith(`basebackups_005/base_${A}_backup_stop_sentinel.json`),
  },
  { what: "absence from a bucket without backups", code: 74, inRecovery: 74, s3: bucketWith(`wal_005/${A}.zst`) },
  {
    what: "a prefix that is misspelt, under which a bucket has nothing",
    code: 74,
    inRecovery: 200,
    s3: bucketWith("elsewhere"),
  },
  {
    what: "a bucket in which everything is beside our folders",
    code: 74,
    inRecovery: 200,
    s3: bucketWith("wal_005.old/note"),
  },
  ...(
    [
      ["refuses", () => s3Error(403, "AccessDenied")],
      ["fails", () => s3Error(500, "InternalError")],
      ["answers with a proxy's page", () => answer(200, "<html>welcome</html>")],
      ["answers with a proxy's 404", () => answer(404, "<html>not here</html>")],
      ["says that the bucket is gone", () => s3Error(404, "NoSuchBucket")],
      ["says that there is no such key", () => s3Error(404, "NoSuchKey")],
      ["lists what was not asked for", () => listOf("other/file")],
      ["closes the connection", (_, socket) => void socket.destroy()],
    ] as readonly (readonly [string, Script])[]
  ).map(([what, failure]) => ({
    what: `a bucket that proves absence and then ${what} when it is asked whether it has anything`,
    code: 74,
    inRecovery: 200 as const,
    s3: failingAtBackups(failure),
  })),
  { what: "a bucket that is not there", code: 64, inRecovery: 200, s3: () => s3Error(404, "NoSuchBucket") },
  { what: "a 404 of some proxy", code: 69, inRecovery: 200, s3: () => answer(404, "<html>not here</html>") },
  { what: "credentials that are refused", code: 77, inRecovery: 200, s3: () => s3Error(403, "InvalidAccessKeyId") },
  {
    what: "a key that is refused, which may be absent",
    code: 77,
    inRecovery: 200,
    s3: () => s3Error(403, "AccessDenied"),
  },
  { what: "another region's bucket", code: 64, inRecovery: 200, s3: () => s3Error(301, "PermanentRedirect") },
  { what: "a store that is overloaded", code: 69, inRecovery: 200, s3: () => s3Error(503, "SlowDown") },
  { what: "a store that fails", code: 69, inRecovery: 200, s3: () => s3Error(500, "InternalError") },
  {
    what: "a store that proves absence of one name and cannot list the others",
    code: 77,
    inRecovery: 200,
    s3: ({ target }) => (isList(target) ? s3Error(403, "AccessDenied") : s3Error(404, "NoSuchKey")),
  },
  {
    what: "an endpoint with the bucket's name in it, where the name behind it is taken for a key",
    code: 69,
    inRecovery: 200,
    s3: () => s3Error(404, "NoSuchKey"),
  },
  {
    what: "a store that closes the connection",
    code: 69,
    inRecovery: 200,
    s3: (_, socket) => {
      socket.destroy();
      return undefined;
    },
  },
  {
    what: "a store that nobody answers at",
    code: 69,
    inRecovery: 200,
    env: {
      ...scriptedS3Environment("http://127.0.0.1:1"),
    },
  },
  {
    what: "a repository directory that is gone",
    code: 64,
    inRecovery: 200,
    given: (site) => rename(site.repository, `${site.repository}.away`),
  },
  {
    what: "an empty repository directory: a mount point where nothing is mounted",
    code: 69,
    inRecovery: 200,
    given: (site) => rm(site.archive, { recursive: true }),
  },
  {
    what: "a damaged object",
    code: 65,
    inRecovery: 200,
    given: (site) => site.store(`${B}.zst`, compressed(walContent(B)).subarray(0, 30)),
  },
  {
    what: "an object of another cluster",
    code: 65,
    inRecovery: 200,
    given: async (site) => {
      await site.control();
      await site.store(`${B}.zst`, compressed(walContent(B, { systemIdentifier: 42n })));
    },
  },
  {
    what: "an object in a format that is not supported",
    code: 65,
    inRecovery: 200,
    given: (site) => site.store(`${B}.lz4`, new Uint8Array(100)),
  },
  {
    what: "a destination in a directory that is not there",
    code: 73,
    inRecovery: 200,
    args: ["wal-fetch", A, "pg_wal/nonexistent/RECOVERYXLOG"],
  },
  {
    what: "a destination that is a directory",
    code: 73,
    inRecovery: 200,
    args: ["wal-fetch", A, "pg_wal/archive_status"],
  },
  { what: "an unknown flag", code: 64, inRecovery: 200, args: ["wal-fetch", "--nonsense", B, DESTINATION] },
  { what: "a flag without its value", code: 64, inRecovery: 200, args: [...FETCH_B, "--envdir"] },
  { what: "no destination", code: 64, inRecovery: 200, args: ["wal-fetch", B] },
  { what: "no words", code: 64, inRecovery: 200, args: ["wal-fetch"] },
  { what: "a word too many", code: 64, inRecovery: 200, args: [...FETCH_B, "more"] },
  { what: "a name that is no WAL file", code: 64, inRecovery: 200, args: ["wal-fetch", "RECOVERYXLOG", DESTINATION] },
  {
    what: "an envdir that is not there",
    code: 64,
    inRecovery: 200,
    args: ["--envdir", "/proc/nonexistent", ...FETCH_B],
  },
  { what: "an unknown setting", code: 64, inRecovery: 200, env: { WALB_NONSENSE: "1" } },
  { what: "a setting out of bounds", code: 64, inRecovery: 200, env: { WALB_RETRY_DEADLINE: "-1" } },
  { what: "no prefix", code: 64, inRecovery: 200, env: { WALB_FILE_PREFIX: undefined } },
  { what: "a key for decryption, which is not supported", code: 64, inRecovery: 200, env: { WALE_GPG_KEY_ID: "A" } },
];

describe.each(STATES)("with %s in the data directory", (state) => {
  // What both of them make is what standby.signal makes: some are enough to show it.
  const classes = CLASSES.filter((_, n) => state !== "both" || n % 5 === 0);
  test.each(classes)("$what", async ({ code, inRecovery, args = FETCH_B, env = {}, given, s3 }) => {
    await using site = await Site.create();
    await site.store(`${A}.zst`, compressed(walContent(A)));
    await enter(site, state);
    await given?.(site);
    await using server = s3 && (await startScriptedS3(s3));
    const s3Env = server && scriptedS3Environment(server.endpoint);
    const before = await site.listing();
    const result = await site.walb(args, { env: { ...IMPATIENT, ...s3Env, ...env } });
    const expected = state === "recovery.signal" ? inRecovery : code;
    expect(result.exitCode).toBe(expected);
    // One message, with no stack in it. That a file is proved absent is what recovery ends with, and no error.
    const message = expected === 74 ? /^wal-b: INFO: ".+" is not in the archive\n$/ : ONE_ERROR;
    expect(result.stderr).toMatch(message);
    expect(result.stdout).toBe("");
    expect(await site.listing()).toEqual(before);
  });
});

test("in recovery, absence from a bucket costs a list that shows that the prefix is the right one; on a standby it does not", async () => {
  await using site = await Site.create();
  await using server = await startScriptedS3(bucketWith("elsewhere"));
  const env = { ...IMPATIENT, ...scriptedS3Environment(server.endpoint) };
  const asked = async () => {
    const before = server.requests.length;
    const result = await site.walb(FETCH_B, { env });
    const requests = server.requests.slice(before).map(({ target }) => {
      const query = new URLSearchParams(target.slice(target.indexOf("?")));
      return isList(target) ? `LIST ${query.get("prefix")}` : "GET";
    });
    return { ...result, requests };
  };
  await enter(site, "standby.signal");
  expect(await asked()).toMatchObject({ exitCode: 74, requests: ["GET", `LIST path/wal_005/${B}`] });
  await enter(site, "recovery.signal");
  expect(await asked()).toMatchObject({
    exitCode: 200,
    requests: [
      "GET",
      `LIST path/wal_005/${B}`,
      "LIST path/wal_005/00000001",
      "LIST path/basebackups_005/",
      "LIST path/wal_005/",
    ],
    stderr: `wal-b: ERROR: the repository s3://bucket/path is empty
  DETAIL: That proves nothing about the file that was asked for.
  HINT: Check that the prefix is the one that the cluster archived to.\n`,
  });
});

test("a gap in the archive is no end of it: recovery stops, a standby asks again", async () => {
  await using site = await Site.create();
  await site.store(`${C}.zst`, compressed(walContent(C)));
  await enter(site, "recovery.signal");
  const stopped = await site.walb(FETCH_B);
  expect(stopped.exitCode).toBe(200);
  expect(stopped.stderr).toStartWith(`wal-b: ERROR: the archive has a gap: "${B}" is missing\n`);
  expect(stopped.stderr).toContain(`"${C}" of the same timeline is there`);
  await enter(site, "standby.signal");
  expect(await site.walb(FETCH_B)).toMatchObject({ exitCode: 74 });
}, 30_000);

describe("the data directory is found", () => {
  const IN_RECOVERY = { exitCode: 200 };

  async function failing(): Promise<Site> {
    const site = await Site.create();
    await site.store(`${B}.zst`, new Uint8Array(3));
    await site.write("recovery.signal");
    return site;
  }

  test.each([
    ["from an absolute destination", (site: Site) => ["wal-fetch", B, join(site.data, DESTINATION)]],
    ["behind a flag with a value", (site: Site) => ["wal-fetch", "-p", "4", B, join(site.data, DESTINATION)]],
    ["before a flag with a value", (site: Site) => ["wal-fetch", B, join(site.data, DESTINATION), "--prefetch", "4"]],
    ["in words that are wrong", (site: Site) => ["wal-fetch", "--nonsense", "4", B, join(site.data, DESTINATION)]],
    ["without the flag's value", (site: Site) => ["wal-fetch", B, join(site.data, DESTINATION), "--log-format"]],
  ])("%s, whatever the working directory is", async (_, words) => {
    await using site = await failing();
    expect(await site.walb(words(site), { cwd: "/" })).toMatchObject(IN_RECOVERY);
  });

  test("by the working directory, where the destination is elsewhere", async () => {
    await using site = await failing();
    expect(await site.walb(["wal-fetch", B, join(site.directory, "tmp/x")])).toMatchObject(IN_RECOVERY);
  });
});

describe("a crash in recovery is not taken for the end of WAL", () => {
  test.each([
    // No code for it, but never 1 to 125: what the shell sees is 0 (it was put in place), 200, or a signal's.
    ["few descriptors", "ulimit -n 8"],
    ["fewer descriptors", "ulimit -n 6"],
    ["too few descriptors to load what is needed", "ulimit -n 5"],
    ["little memory", "ulimit -v 300000"],
    ["less memory", "ulimit -v 120000"],
    ["no file size", "ulimit -f 0"],
    ["no temporary directory", "export TMPDIR=/proc/nonexistent"],
    ["a temporary directory that is a file", "export TMPDIR=/etc/passwd"],
    ["a temporary directory with a name that is no path", "export TMPDIR=$'\\xff\\xfe'"],
    ["no home", "unset HOME"],
    [
      "no environment at all",
      'exec env -i WALB_FILE_PREFIX="$WALB_FILE_PREFIX" "$WALB" wal-fetch NAME pg_wal/RECOVERYXLOG',
    ],
  ])("%s", async (_, limit) => {
    await using site = await Site.create();
    await site.write("recovery.signal");
    await site.store(`${A}.zst`, compressed(walContent(A)));
    const line = `${limit.replace("NAME", A)}; "$WALB" wal-fetch ${A} ${DESTINATION}`;
    const { exitCode, signal } = await site.shell(line);
    const seenByPostgres = exitCode ?? 128;
    expect(seenByPostgres >= 1 && seenByPostgres <= 125, `${limit}: exit code ${exitCode}, signal ${signal}`).toBe(
      false,
    );
    const names = await pgWal(site);
    if (seenByPostgres === 0) expect(same(await fetched(site), walContent(A))).toBe(true);
    else expect(names).not.toContain("RECOVERYXLOG");
  });
});

describe("a file that is there", () => {
  test.each([
    ["a segment", A, walContent(A)],
    ["a segment of 16 MiB", A, walContent(A, { sizeBytes: 16 * MiB })],
    ["a partial segment", `${A}.partial`, walContent(A)],
    ["a timeline history", "00000002.history", historyContent()],
    [
      "a backup history",
      `${A}.00000028.backup`,
      new TextEncoder().encode(`START WAL LOCATION: 0/100028 (file ${A})\n`),
    ],
  ])("%s: put in place whole, for its owner alone, with nothing beside it", async (_, name, content) => {
    await using site = await Site.create();
    await site.control();
    await site.store(`${name}.zst`, compressed(content));
    const result = await site.walb(["wal-fetch", name, DESTINATION]);
    expect(result).toMatchObject({
      exitCode: 0,
      stdout: "",
      stderr: `wal-b: INFO: restored "${name}" from the archive\n`,
    });
    expect(same(await fetched(site), content)).toBe(true);
    expect(await pgWal(site)).toEqual(["RECOVERYXLOG", "archive_status"]);
    expect((await site.listing())[`data/${DESTINATION}`]).toStartWith("file 600 ");
  });

  test("an object that is not compressed, as WAL-G writes it when told to", async () => {
    await using site = await Site.create();
    await site.store(A, walContent(A));
    expect(await site.walb(["wal-fetch", A, DESTINATION])).toMatchObject({ exitCode: 0 });
    expect(same(await fetched(site), walContent(A))).toBe(true);
  });

  test("the archived form wins over one that is not compressed", async () => {
    await using site = await Site.create();
    await site.store(A, walContent(A, { fill: 1 }));
    await site.store(`${A}.zst`, compressed(walContent(A, { fill: 2 })));
    expect(await site.walb(["wal-fetch", A, DESTINATION])).toMatchObject({ exitCode: 0 });
    expect(same(await fetched(site), walContent(A, { fill: 2 }))).toBe(true);
  });

  test("a file that is under the destination's name already is replaced in one step", async () => {
    await using site = await Site.create();
    await site.store(`${A}.zst`, compressed(walContent(A)));
    await site.write(DESTINATION, "old");
    expect(await site.walb(["wal-fetch", A, DESTINATION])).toMatchObject({ exitCode: 0 });
    expect(same(await fetched(site), walContent(A))).toBe(true);
  });

  test("nothing but the whole file is ever seen under the destination's name", async () => {
    await using site = await Site.create();
    const content = walContent(A, { sizeBytes: 64 * MiB });
    await site.store(`${A}.zst`, compressed(content));
    let running = true;
    const sizes = new Set<number>();
    const looking = (async () => {
      while (running) {
        const file = Bun.file(join(site.data, DESTINATION));
        if (await file.exists()) sizes.add((await file.stat()).size);
        await Bun.sleep(0);
      }
    })();
    expect(await site.walb(["wal-fetch", A, DESTINATION])).toMatchObject({ exitCode: 0 });
    running = false;
    await looking;
    expect([...sizes].filter((size) => size !== 64 * MiB)).toEqual([]);
    expect(await pgWal(site)).toEqual(["RECOVERYXLOG", "archive_status"]);
  });
});

describe("an archived object that is damaged is never put in place", () => {
  const SEED = 20260101;
  const content = Uint8Array.from([...walContent(B).subarray(0, 8192), ...random(SEED).bytes(MiB - 8192)]);
  const good = compressed(content);

  async function expectRefused(
    stored: string,
    body: Uint8Array,
    options: { control?: Uint8Array } = {},
  ): Promise<string> {
    await using site = await Site.create();
    await site.write("recovery.signal");
    if (options.control) await site.write("global/pg_control", options.control);
    const path = await site.store(stored, body);
    const before = await site.listing();
    const result = await site.walb(["wal-fetch", B, DESTINATION]);
    expect(result.exitCode).toBe(200);
    expect(result.stderr).toContain(`file://${path}`);
    expect(await site.listing()).toEqual(before);
    return result.stderr;
  }

  test.each([0, 1, 4, 12, 100, good.byteLength >> 1, good.byteLength - 1])("cut off after %i bytes", async (length) => {
    expect(await expectRefused(`${B}.zst`, good.subarray(0, length))).toStartWith(
      `wal-b: ERROR: archived "${B}" is damaged\n`,
    );
  });

  test("a bit that is flipped, at places that the seed gives", async () => {
    await using site = await Site.create();
    // As wal-b writes it: frames with a checksum.
    await site.write(`pg_wal/${B}`, content);
    expect(await site.walb(["wal-push", `pg_wal/${B}`])).toMatchObject({ exitCode: 0 });
    const path = join(site.archive, `${B}.zst`);
    const archived = await Bun.file(path).bytes();
    const { below } = random(SEED + 1);
    for (let round = 0; round < 12; round++) {
      const [at, bit] = [round < 4 ? below(20) : below(archived.byteLength), below(8)];
      const flipped = Uint8Array.from(archived);
      flipped[at] = (flipped[at] ?? 0) ^ (1 << bit);
      await writeFile(path, flipped);
      const result = await site.walb(["wal-fetch", B, DESTINATION]);
      // A bit that changes nothing of the content may pass; then the content is right.
      if (result.exitCode === 0) expect(same(await fetched(site), content), `byte ${at}, bit ${bit}`).toBe(true);
      else expect(result.exitCode, `byte ${at}, bit ${bit}: ${result.stderr}`).toBe(65);
      if (result.exitCode !== 0) expect(await pgWal(site), `byte ${at}, bit ${bit}`).not.toContain("RECOVERYXLOG");
      await rm(join(site.data, DESTINATION), { force: true });
    }
  });

  test.each([
    ["an empty object", new Uint8Array(), "DIR: the object is empty. Even no content is a zstd frame."],
    [
      "half of a segment",
      compressed(walContent(B).subarray(0, MiB / 2)),
      `DIR: "${B}" is not a valid WAL segment. It has ${MiB / 2} bytes, its header states ${MiB}.`,
    ],
    [
      "a segment with bytes after it",
      compressed(Buffer.concat([walContent(B), new Uint8Array(8192)])),
      `DIR: "${B}" is not a valid WAL segment. It has ${MiB + 8192} bytes, its header states ${MiB}.`,
    ],
    [
      "another segment",
      compressed(walContent(A)),
      `DIR: "${B}" is not a valid WAL segment. Its first page is at 0/100000, the name stands for 0/200000.`,
    ],
    [
      "zeros",
      compressed(new Uint8Array(MiB)),
      `DIR: "${B}" is not a valid WAL segment. Its first page has the magic number 0x0000, which no release of PostgreSQL wrote.`,
    ],
    ["a segment that is not compressed under the name of one that is", walContent(B), "DIR: "],
  ])("%s", async (_, body, detail) => {
    const stderr = await expectRefused(`${B}.zst`, body);
    expect(stderr.replace(/file:\/\/\S+\.zst/, "DIR")).toContain(`\n  DETAIL: ${detail}`);
  });

  test.each([
    ["of this release", controlFile()],
    ["of a release that is not known yet", controlFile({ controlVersion: 9900 })],
  ])("another cluster's segment: both system identifiers are named, with a pg_control %s", async (_, control) => {
    const stderr = await expectRefused(`${B}.zst`, compressed(walContent(B, { systemIdentifier: 42n })), { control });
    expect(stderr).toStartWith(`wal-b: ERROR: archived "${B}" is of another cluster\n`);
    expect(stderr).toContain("is of the cluster with system identifier 42; this one has 7420325342344323423.\n");
  });

  test("a timeline history that is none", async () => {
    await using site = await Site.create();
    await site.write("recovery.signal");
    await site.store("00000002.history.zst", compressed(new TextEncoder().encode("nonsense")));
    const result = await site.walb(["wal-fetch", "00000002.history", "pg_wal/RECOVERYHISTORY"]);
    expect(result.exitCode).toBe(200);
    expect(await pgWal(site)).toEqual(["archive_status"]);
  });

  test.each(["lz4", "lzo", "lzma", "br", "gz"])("one that is compressed with %s is refused by name", async (suffix) => {
    const stderr = await expectRefused(`${B}.${suffix}`, new Uint8Array(100));
    expect(stderr).toStartWith(`wal-b: ERROR: archived "${B}" is in a format that is not supported\n`);
    expect(stderr).toContain(`is compressed with ${suffix}.\n`);
  });
});

describe("a destination that cannot be written to", () => {
  test("a directory without the right to write: told, nothing changed", async () => {
    await using site = await Site.create(ordinaryAccount());
    await site.store(`${A}.zst`, compressed(walContent(A)));
    await chmod(join(site.data, "pg_wal"), 0o555);
    const before = await site.listing();
    const result = await site.walb(["wal-fetch", A, DESTINATION]);
    expect(result.exitCode).toBe(73);
    expect(result.stderr).toMatch(
      /^wal-b: ERROR: could not write ".*\/pg_wal\/RECOVERYXLOG"\n {2}DETAIL: EACCES: permission denied, open '.*'\.\n {2}HINT: Run the command as the account that owns the directory, usually postgres\.\n$/,
    );
    expect(await site.listing()).toEqual(before);
    await chmod(join(site.data, "pg_wal"), 0o755);
  });

  test("a full disk: told, in recovery with 200, and nothing is left on it", async () => {
    await using site = await Site.create();
    await site.write("recovery.signal");
    await mkdir(join(site.data, "disk"));
    await site.store(`${A}.zst`, compressed(walContent(A, { sizeBytes: 16 * MiB })));
    const result = await onSmallDisk(
      site,
      join(site.data, "disk"),
      `"$WALB" wal-fetch ${A} disk/RECOVERYXLOG; echo "exit code $?"; ls -A "$DISK"`,
    );
    expect(result).toMatchObject({
      stdout: "exit code 200\ntaken\n",
      stderr: `wal-b: ERROR: could not write "${site.data}/disk/RECOVERYXLOG"\n  DETAIL: ENOSPC: no space left on device, write.\n  HINT: The file system is full: free some space, or use another one, and run the command again.\n`,
    });
  });
});
