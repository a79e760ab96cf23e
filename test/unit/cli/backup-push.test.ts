import { expect, test } from "bun:test";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runProgram } from "../../../src/cli/program.ts";
import { AccessError } from "../../../src/errors.ts";
import { answer, EMPTY_LIST, s3Error, startScriptedS3 } from "../../support/scripted-s3.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { controlFile } from "../postgres/control-file.ts";

test("a backup of which one part fails does not go on trying to write another one", async () => {
  await using site = await temporaryDirectory();
  await mkdir(join(site.path, "global"));
  await mkdir(join(site.path, "base"));
  await writeFile(join(site.path, "global", "pg_control"), controlFile({ state: 1 }));
  await writeFile(join(site.path, "PG_VERSION"), "15\n");
  for (const name of ["1", "2", "3"]) await writeFile(join(site.path, "base", name), new Uint8Array(2 ** 20));

  const removed: string[] = [];
  const tried = Promise.withResolvers<void>();
  await using s3 = await startScriptedS3(({ method, target, body }, socket) => {
    if (method === "GET") return EMPTY_LIST;
    if (method === "POST") {
      const keys = [...body.toString().matchAll(/<Key>(.*?)<\/Key>/g)].map(([, key = ""]) => key);
      removed.push(...keys);
      return answer(
        200,
        `<DeleteResult>${keys.map((key) => `<Deleted><Key>${key}</Key></Deleted>`).join("")}</DeleteResult>`,
      );
    }
    if (target.includes("part_001")) {
      tried.resolve();
      return s3Error(503, "SlowDown", { "retry-after": "60" });
    }
    if (!target.includes("part_002")) return answer(200);
    // When the other one waits already.
    void tried.promise.then(() => setTimeout(() => socket.write(s3Error(403, "AccessDenied")), 200));
    return undefined;
  });
  const failure = await runProgram(["backup-push", "--while-offline", site.path], {
    env: {
      WALB_S3_PREFIX: "s3://bucket/path",
      WALB_S3_CONDITIONAL_WRITES: "require",
      WALB_TAR_SIZE_THRESHOLD: "1MB",
      WALB_VERIFY_PAGE_CHECKSUMS: "false",
      AWS_ENDPOINT_URL: s3.endpoint,
      AWS_ACCESS_KEY_ID: "key",
      AWS_SECRET_ACCESS_KEY: "secret",
    },
    workingDirectory: site.path,
    signal: new AbortController().signal,
    now: () => new Date(0),
    adoptVariables: () => {},
    output: { isTerminal: false, write: () => {} },
    writeLog: () => {},
    statusLine: undefined,
  }).catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(AccessError);
  // Taking back is not given up.
  expect(removed.join()).toContain("part_001");
  expect(removed.at(-1)).toEndWith("/walb_claim.json");
}, 30_000);
