/** How long each command asks a store that fails: seen by a store that asks to be left alone for longer, or for less. */
import { describe, expect, test } from "bun:test";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runProgram } from "../../../src/cli/program.ts";
import { InterruptedError, StorageError } from "../../../src/errors.ts";
import { answer, s3Error, startScriptedS3 } from "../../support/scripted-s3.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { walContent } from "../../support/wal-content.ts";
import { controlFile } from "../postgres/control-file.ts";

const MINUTE = 60;
const SEGMENT = "000000010000000000000001";

const LONG: readonly string[][] = [
  ["backup-push", "--while-offline", "data"],
  ["backup-fetch", "target", "LATEST"],
  ["restore", "target"],
  ["verify"],
  ["verify", "--drill", "--scratch", "."],
  ["delete", "retain", "7", "--confirm"],
  ["delete", "garbage"],
];
const SHORT: readonly string[][] = [
  ["wal-push", `SITE/${SEGMENT}`],
  ["wal-fetch", SEGMENT, "RECOVERYXLOG"],
  ["backup-list"],
  ["backup-mark", `base_${SEGMENT}`],
];

/** @returns the failure: an InterruptedError when the store was about to be asked again, as it had asked for */
async function run(argv: readonly string[], retryAfter: number, own: Readonly<Record<string, string>> = {}) {
  await using site = await temporaryDirectory();
  await mkdir(join(site.path, "data", "global"), { recursive: true });
  await writeFile(join(site.path, "data", "global", "pg_control"), controlFile({ state: 1 }));
  await writeFile(join(site.path, "data", "PG_VERSION"), "15\n");
  await writeFile(join(site.path, SEGMENT), walContent(SEGMENT));
  const headers = { "retry-after": String(retryAfter) };
  await using s3 = await startScriptedS3(({ method }) =>
    method === "HEAD" ? answer(503, "", headers) : s3Error(503, "SlowDown", headers),
  );
  const stop = new AbortController();
  return await runProgram(["--verbose", ...argv.map((word) => word.replace("SITE", site.path))], {
    env: {
      WALB_S3_PREFIX: "s3://bucket/path",
      AWS_ENDPOINT_URL: s3.endpoint,
      AWS_ACCESS_KEY_ID: "key",
      AWS_SECRET_ACCESS_KEY: "secret",
      ...own,
    },
    workingDirectory: site.path,
    signal: stop.signal,
    now: () => new Date(0),
    adoptVariables: () => {},
    output: { isTerminal: false, write: () => {} },
    writeLog: (record) => {
      if (record.includes(" again in ")) stop.abort(new InterruptedError("SIGTERM", 15));
    },
    statusLine: undefined,
  }).catch((error: unknown) => error);
}

describe.each(LONG.map((argv) => [argv.join(" "), argv] as const))("%s", (_, argv) => {
  test("outlasts an outage of a few minutes, which would cost hours of work", async () => {
    expect(await run(argv, 9 * MINUTE)).toBeInstanceOf(InterruptedError);
    expect(await run(argv, 11 * MINUTE)).toBeInstanceOf(StorageError);
  });

  test("gives up when WALB_RETRY_DEADLINE says so", async () => {
    expect(await run(argv, MINUTE, { WALB_RETRY_DEADLINE: "1min" })).toBeInstanceOf(StorageError);
    expect(await run(argv, MINUTE, { WALG_RETRY_DEADLINE: "0" })).toBeInstanceOf(StorageError);
  });
});

describe.each(SHORT.map((argv) => [argv.join(" "), argv] as const))("%s", (_, argv) => {
  test("gives up after a minute: it is asked for again, or somebody waits for it", async () => {
    expect(await run(argv, MINUTE / 2)).toBeInstanceOf(InterruptedError);
    expect(await run(argv, MINUTE)).toBeInstanceOf(StorageError);
  });
});
