import { expect, test } from "bun:test";
import { StorageError } from "../../../src/errors.ts";
import { openOverwriteProof, recallConditionalWrites } from "../../../src/repository/overwrite-proof.ts";
import { openHostMemory } from "../../../src/system/host-memory.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

const question = "conditional writes in bucket";

const CREATED = { key: "wal_005/1.zst", body: new Uint8Array(1), metadata: {} };

async function setUp(answer: () => Promise<"created" | "exists">) {
  const directory = await temporaryDirectory();
  const memory = openHostMemory(directory.path, process.geteuid?.() ?? 0);
  const { log, expectLog } = recordingLog();
  return {
    expectLog,
    proof: openOverwriteProof({ location: "s3://bucket", question, memory, putIfAbsent: answer, log }),
    recalled: () => recallConditionalWrites({ memory, question }),
    [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose](),
  };
}

test("a store that refuses the second write is known to refuse by itself, and is asked once", async () => {
  let asked = 0;
  await using site = await setUp(async () => {
    asked++;
    return "exists";
  });
  expect(await site.recalled()).toBeUndefined();
  await Promise.all([site.proof.prove(CREATED), site.proof.prove(CREATED)]);
  expect([asked, await site.recalled()]).toEqual([1, "require"]);
  site.expectLog();
});

test("a store that writes again has to be asked first from then on, and the user is told", async () => {
  await using site = await setUp(async () => "created");
  await site.proof.prove(CREATED);
  expect(await site.recalled()).toBe("emulate");
  site.expectLog(
    "WARNING: the store at s3://bucket overwrites objects that must not be overwritten\n  DETAIL: It takes the condition If-None-Match and ignores it. From now on wal-b looks before it writes, which leaves a moment for a second writer.\n  HINT: Set WALB_S3_CONDITIONAL_WRITES=emulate to say so for good, or use a store that honours the condition.",
  );
});

test("a failure proves nothing and is remembered by nobody", async () => {
  const error = new StorageError("time-out");
  await using site = await setUp(() => Promise.reject(error));
  await expect(site.proof.prove(CREATED)).rejects.toBe(error);
  expect(await site.recalled()).toBeUndefined();
});
