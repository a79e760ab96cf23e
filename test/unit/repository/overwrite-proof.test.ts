import { expect, test } from "bun:test";
import { openOverwriteProof, recallConditionalWrites } from "../../../src/repository/overwrite-proof.ts";
import { openHostMemory } from "../../../src/system/host-memory.ts";
import { recordingLog } from "../../support/expect-log.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

async function setUp() {
  const directory = await temporaryDirectory();
  const { log, expectLog } = recordingLog();
  const about = { question: "q", memory: openHostMemory(directory.path, process.geteuid?.() ?? 0) };
  const proof = openOverwriteProof({ location: "s3://bucket/prefix", log, ...about });
  return { proof, about, expectLog, [Symbol.asyncDispose]: () => directory[Symbol.asyncDispose]() };
}

test("a store that refuses the second write is trusted from then on", async () => {
  await using site = await setUp();
  await site.proof.prove(async () => "exists");
  expect(await recallConditionalWrites(site.about)).toBe("require");
  site.expectLog();
});

test("a store that takes the second write is asked first from then on, and the user is told", async () => {
  await using site = await setUp();
  await site.proof.prove(async () => "created");
  expect(await recallConditionalWrites(site.about)).toBe("emulate");
  site.expectLog(
    expect.stringContaining("WARNING: the store at s3://bucket/prefix overwrites objects that must not be overwritten"),
  );
});

test("one process tries it once, however many files it archives", async () => {
  await using site = await setUp();
  let writes = 0;
  const write = async () => {
    writes++;
    return "exists" as const;
  };
  await Promise.all([site.proof.prove(write), site.proof.prove(write)]);
  await site.proof.prove(write);
  expect(writes).toBe(1);
});
