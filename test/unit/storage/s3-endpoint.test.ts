/** Whether a bucket's name goes into the host or the path. */
import { expect, test } from "bun:test";
import { needsPathStyle } from "../../../src/storage/s3-endpoint.ts";

test.each([
  // bucket, endpoint, style
  ["bucket", undefined, "host"],
  ["my.bucket", undefined, "path"], // *.s3.amazonaws.com does not cover my.bucket.s3.amazonaws.com
  ["My_Bucket", undefined, "path"], // from before the rules for names
  ["bucket", "https://s3.example.com", "host"],
  ["bucket", "https://minio.example.com:9000", "host"],
  ["bucket", "http://127.0.0.1:9000", "path"],
  ["bucket", "http://[::1]:9000", "path"],
  ["bucket", "http://localhost:9000", "path"],
  ["bucket", "http://minio:9000", "path"], // a container's name
])("bucket %p at %p: %s style", (bucket, endpoint, style) => {
  expect(needsPathStyle(bucket, endpoint) ? "path" : "host").toBe(style as "path" | "host");
});
