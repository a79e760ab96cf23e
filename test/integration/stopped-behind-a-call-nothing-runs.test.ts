/** What is seen behind a call is what kill -9 would leave: threads that make calls at the same time are all stopped. */
import { expect, test } from "bun:test";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runInSteps } from "../support/system-calls.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const DIRECTORIES = 200;
const ROUNDS = 4;

const MAKES_THEM_AT_ONCE = `
  import { mkdir } from "node:fs/promises";
  await Promise.all(Array.from({ length: ${DIRECTORIES} }, (_, n) => mkdir(\`made/\${n}\`)));
`;

test("while one looks nothing changes, and every call is told of when it is done", async () => {
  for (let round = 0; round < ROUNDS; round++) {
    await using directory = await temporaryDirectory();
    const made = join(directory.path, "made");
    await mkdir(made);
    await writeFile(join(directory.path, "program.ts"), MAKES_THEM_AT_ONCE);
    let told = 0;
    const command = [process.execPath, "program.ts"];
    const ended = await runInSteps(command, { cwd: directory.path, calls: ["mkdir"] }, async ({ calls }) => {
      told += calls.length;
      expect(await readdir(made)).toHaveLength(told);
      await Bun.sleep(3);
      expect(await readdir(made)).toHaveLength(told);
      return "go on";
    });
    expect(ended).toMatchObject({ exitCode: 0, stderr: "" });
    expect(told).toBe(DIRECTORIES);
  }
}, 120_000);
