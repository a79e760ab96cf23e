import { describe, expect, test } from "bun:test";
import { parseCustomerKey, parseEndpoint, parsePrefix } from "../../../src/cli/prefix.ts";
import { textOf, UsageError } from "../../../src/errors.ts";

const s3 = (text: string) => parsePrefix({ s3Prefix: text, filePrefix: undefined });
const file = (text: string) => parsePrefix({ s3Prefix: undefined, filePrefix: text });

describe("parsePrefix()", () => {
  test.each([
    ["s3://bucket/path", "bucket", "path"],
    ["s3://bucket", "bucket", ""],
    ["s3://bucket/", "bucket", ""],
    ["s3://bucket/a/b/", "bucket", "a/b"],
    ["s3://bucket//a//b//", "bucket", "a/b"],
    ["s3://My_Old.Bucket-1/päth", "My_Old.Bucket-1", "päth"],
  ])("%s", (text, bucket, prefix) => expect(s3(text)).toEqual({ kind: "s3", bucket, prefix }));

  test.each([
    "bucket/path",
    "s3:/bucket",
    "s3://",
    "s3:///path",
    "S3://bucket",
    "s3://bucket/../other",
    "s3://b/./c",
    "https://bucket",
    "",
  ])("refuses %p as an S3 prefix", (text) => expect(() => s3(text)).toThrow(UsageError));

  test.each([
    ["file://localhost/srv/backup", "/srv/backup"], // WAL-E's form
    ["file:///srv/backup/", "/srv/backup"],
    ["/srv/backup", "/srv/backup"],
    ["/srv//x/../backup/", "/srv/backup"],
    ["/", "/"],
  ])("%s is the directory %s", (text, directory) => expect(file(text)).toEqual({ kind: "directory", directory }));

  test.each([
    ["another host", "file://elsewhere/srv"],
    ["a name that only begins like localhost", "file://localhosts/srv"],
    ["a relative path: the working directory of archive_command is PGDATA", "backup"],
    ["nothing", ""],
  ])("refuses %s as a file prefix", (_, text) => expect(() => file(text)).toThrow("is not a file prefix"));

  test("refuses both, and neither", () => {
    expect(() => parsePrefix({ s3Prefix: "s3://b", filePrefix: "/f" })).toThrow("two repositories are set");
    expect(() => parsePrefix({ s3Prefix: undefined, filePrefix: undefined })).toThrow("no repository is set");
  });
});

test.each(["s3://KEY:S3CR3T@bucket/path", "s3://KEY:S3C/R3T@bucket"])("refuses %s and shows no secret", (s3Prefix) => {
  const thrownBy = (filePrefix?: string) => {
    try {
      return parsePrefix({ s3Prefix, filePrefix });
    } catch (error) {
      return error;
    }
  };
  expect(thrownBy()).toMatchObject({ message: expect.stringContaining('"s3://…@bucket') });
  expect(thrownBy("/directory")).toMatchObject({ detail: expect.stringContaining('"s3://…@bucket') });
});

describe("parseEndpoint()", () => {
  test.each([
    [undefined, undefined, undefined, undefined],
    ["https://minio:9000", undefined, "https://minio:9000", undefined],
    ["http://minio:9000/", undefined, "http://minio:9000", undefined],
    ["https+path://minio:9000", undefined, "https://minio:9000", true],
    ["http+virtualhost://s3.local", undefined, "http://s3.local", false],
    ["https+subdomain://s3.local", undefined, "https://s3.local", false],
    ["https+path://minio", "false", "https://minio", false], // the setting is more explicit
    ["https://[::1]:9000", "true", "https://[::1]:9000", true],
    [undefined, "true", undefined, true],
  ] as const)("%p with path style %p", (endpoint, forcePathStyle, expected, style) => {
    expect(parseEndpoint({ endpoint, forcePathStyle })).toEqual({ endpoint: expected, forcePathStyle: style });
  });

  test.each([
    "minio:9000",
    "ftp://minio",
    "https://minio/path",
    "https+weird://minio",
    "https://",
    "https://a b",
    "https://minio:99999",
    "https://key:S3CR3T@minio",
    "https://key:S3C/R3T@minio",
    "https://S3CR3T@mi/nio",
  ])("refuses %s and shows no secret", (endpoint) => {
    const message = messageOf(() => parseEndpoint({ endpoint, forcePathStyle: undefined }));
    expect(message).toContain("is not an S3 endpoint");
    expect(message).not.toMatch(/S3C|R3T/);
  });
});

describe("parseCustomerKey()", () => {
  const key = Buffer.from("0123456789abcdef0123456789abcdef");

  test("takes 32 bytes, as they are or in base64", () => {
    expect(parseCustomerKey(undefined)).toBeUndefined();
    expect(parseCustomerKey(key.toString())).toEqual(key);
    expect(parseCustomerKey(key.toString("base64"))).toEqual(key);
  });

  test("refuses any other size and does not show it", () => {
    for (const text of ["S3CR3T", "", key.subarray(1).toString("base64")]) {
      const message = messageOf(() => parseCustomerKey(text));
      expect(message).toContain("the key in S3_SSE_C cannot be used");
      if (text !== "") expect(message).not.toContain(text);
    }
  });
});

function messageOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    return textOf(error);
  }
  throw new Error("nothing was thrown");
}
