import { describe, expect, test } from "bun:test";
import {
  initialTextOf,
  loadSettings,
  SETTING_NAMES,
  SETTINGS,
  type SettingName,
  variablesOf,
} from "../../../src/config/settings.ts";
import { type Failure, textOf, UsageError } from "../../../src/errors.ts";

const MiB = 2 ** 20;

describe("loadSettings()", () => {
  test.each([
    [
      "a flag beats every variable",
      { s3Prefix: "s3://flag" },
      { WALB_S3_PREFIX: "s3://b", WALE_S3_PREFIX: "s3://e" },
      "s3://flag",
    ],
    [
      "WALB_ beats WALG_ and WALE_",
      {},
      { WALB_S3_PREFIX: "s3://b", WALG_S3_PREFIX: "s3://g", WALE_S3_PREFIX: "s3://e" },
      "s3://b",
    ],
    ["WALG_ beats WALE_", {}, { WALG_S3_PREFIX: "s3://g", WALE_S3_PREFIX: "s3://e" }, "s3://g"],
    ["WALE_ is enough", {}, { WALE_S3_PREFIX: "s3://e" }, "s3://e"],
    ["an empty variable is none", {}, { WALB_S3_PREFIX: "", WALE_S3_PREFIX: "s3://e" }, "s3://e"],
    ["nothing is nothing", {}, {}, undefined],
  ])("%s", (_, flags, env, expected) => {
    expect(loadSettings(flags, env).s3Prefix).toBe(expected as string);
  });

  test.each([
    ["region", { AWS_REGION: "eu-west-1", AWS_DEFAULT_REGION: "us-east-1" }, "eu-west-1"],
    ["region", { WALE_S3_REGION: "mine", AWS_REGION: "eu-west-1" }, "mine"],
    ["endpoint", { AWS_ENDPOINT_URL_S3: "https://s3", AWS_ENDPOINT_URL: "https://all" }, "https://s3"],
    ["endpoint", { AWS_ENDPOINT: "https://walg" }, "https://walg"],
    ["sessionToken", { AWS_SECURITY_TOKEN: "old name" }, "old name"],
    ["forcePathStyle", { AWS_S3_FORCE_PATH_STYLE: "true" }, "true"],
  ] as const)("%s comes from AWS's own names after ours", (name, env, expected) => {
    expect(loadSettings({}, env)[name]).toBe(expected);
  });

  test.each([
    ["WALB_UPLOAD_CONCURRENCY", "uploadConcurrency", "8", 8],
    ["WALB_COMPRESSION_LEVEL", "compressionLevel", "19", 19],
    ["WALB_TAR_SIZE_THRESHOLD", "tarSizeThresholdBytes", "1073741823", 1_073_741_823], // WAL-G's default
    ["WALB_TAR_SIZE_THRESHOLD", "tarSizeThresholdBytes", "64MB", 64 * MiB],
    ["WALB_TAR_SIZE_THRESHOLD", "tarSizeThresholdBytes", "1 GB", 1024 * MiB],
    ["WALB_TAR_SIZE_THRESHOLD", "tarSizeThresholdBytes", " 2048kB ", 2 * MiB],
    ["WALB_RETRY_DEADLINE", "retryDeadlineMs", "90", 90_000], // a bare number is seconds
    ["WALB_RETRY_DEADLINE", "retryDeadlineMs", "0", 0],
    ["WALB_RETRY_DEADLINE", "retryDeadlineMs", "1500ms", 1500],
    ["WALB_RETRY_DEADLINE", "retryDeadlineMs", "2min", 120_000],
    ["WALB_RETRY_DEADLINE", "retryDeadlineMs", "24h", 86_400_000],
    ["WALB_LOG_FORMAT", "logFormat", "json", "json"],
  ] as const)("%s: %s is taken from %p", (variable, name, text, expected) => {
    expect(loadSettings({}, { [variable]: text })[name]).toBe(expected);
  });

  test.each([
    ["WALB_UPLOAD_CONCURRENCY", "0", "Allowed: a whole number, from 1 to 64."],
    ["WALB_UPLOAD_CONCURRENCY", "65", "Allowed: a whole number, from 1 to 64."],
    ["WALB_UPLOAD_CONCURRENCY", "four", "Allowed: a whole number, from 1 to 64."],
    ["WALB_UPLOAD_CONCURRENCY", "1e1", "Allowed: a whole number, from 1 to 64."],
    ["WALB_UPLOAD_CONCURRENCY", "-1", "Allowed: a whole number, from 1 to 64."],
    ["WALB_UPLOAD_CONCURRENCY", `1${"0".repeat(400)}`, "Allowed: a whole number, from 1 to 64."],
    ["WALB_TAR_SIZE_THRESHOLD", "1023kB", "Allowed: a size in bytes, or with kB, MB, GB, from 1MB to 64GB."],
    ["WALB_TAR_SIZE_THRESHOLD", "8 mb", "Allowed: a size in bytes, or with kB, MB, GB, from 1MB to 64GB."],
    ["WALB_RETRY_DEADLINE", "25h", "Allowed: a time in seconds, or with ms, s, min, h, from 0 to 24h."],
    ["WALB_RETRY_DEADLINE", "1.5", "Allowed: a time in seconds, or with ms, s, min, h, from 0 to 24h."],
    ["WALB_LOG_FORMAT", "xml", "Allowed: text, json."],
    ["WALE_COMPRESSION_METHOD", "lz4", "Allowed: zstd."],
  ])("%s=%s is refused with what is allowed", (variable, text, hint) => {
    const error = failureOf(() => loadSettings({}, { [variable]: text }));
    expect(error.message).toBe(`${variable} is "${text}"`);
    expect(error.hint).toBe(hint);
  });

  test("a value that came as a flag is refused by the flag's own name", () => {
    const names: readonly SettingName[] = ["walPushPoolSize", "uploadConcurrency", "downloadConcurrency"];
    for (const name of names) {
      expect(failureOf(() => loadSettings({ [name]: "x" }, {})).message).toBe('--pool-size is "x"');
    }
  });

  test("an unknown WALB_ variable is an error, those of other tools are not", () => {
    // The second is AWS's own name behind our prefix.
    for (const variable of ["WALB_S3_PREFX", "WALB_AWS_REGION"])
      expect(failureOf(() => loadSettings({}, { [variable]: "typo" })).message).toBe(`unknown setting ${variable}`);
    loadSettings(
      {},
      {
        WALG_S3_PREFX: "x",
        WALE_UNKNOWN: "x",
        AWS_UNKNOWN: "x",
        WALB_INSTALL_URL: "https://x",
        WALB_EMPTY: "",
        PATH: "/bin",
      },
    );
  });

  test.each([
    ["WALE_GPG_KEY_ID"],
    ["WALG_PGP_KEY"],
    ["WALB_LIBSODIUM_KEY_PATH"],
    ["WALG_LIBSODIUM_KEY"],
    ["WALG_CSE_KMS_ID"],
    ["YC_CSE_KMS_KEY_ID"],
    ["WALG_GS_PREFIX"],
    ["WALE_WABS_PREFIX"],
  ])("%s is refused, because going on without it would be worse, and its value is not shown", (variable) => {
    const error = failureOf(() => loadSettings({}, { [variable]: "S3CR3T" }));
    expect(error.message).toBe(`cannot honour ${variable}`);
    expect(textOf(error)).not.toContain("S3CR3T");
  });

  test("no message shows the value of a secret setting", () => {
    for (const name of SETTING_NAMES) {
      if (SETTINGS[name].secret !== true) continue;
      for (const variable of variablesOf(name)) {
        try {
          loadSettings({}, { [variable]: "S3CR3T\n" });
        } catch (error) {
          expect(textOf(error), name).not.toContain("S3CR3T");
        }
      }
    }
    expect(Object.values(SETTINGS).filter((row) => row.secret).length).toBeGreaterThanOrEqual(3);
  });
});

test("every initial value is one that could be given", () => {
  const initially = (isLong: boolean) => loadSettings({}, {}, { isLong });
  for (const name of SETTING_NAMES) {
    for (const isLong of [false, true]) {
      const text = initialTextOf(name, { isLong });
      if (text !== undefined) expect([name, SETTINGS[name].parse(text)]).toEqual([name, initially(isLong)[name]]);
    }
  }
});

test("no variable belongs to two settings", () => {
  const all = SETTING_NAMES.flatMap(variablesOf);
  expect(new Set(all).size).toBe(all.length);
});

function failureOf(act: () => unknown): Failure {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return error as Failure;
  }
  throw new Error("nothing was thrown");
}
