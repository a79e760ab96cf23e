/** What is seen behind a call is what kill -9 would leave: threads that make calls at the same time are all stopped. */
import { expect, test } from "bun:test";
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { runInSteps, StraceGaveUp } from "../support/system-calls.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const DIRECTORIES = 200;
const ROUNDS = 4;

const makesThemAtOnce = (andThen: string) => `
  import { mkdir } from "node:fs/promises";
  const all = Promise.all(Array.from({ length: ${DIRECTORIES} }, (_, n) => mkdir(\`made/\${n}\`)));
  ${andThen};
`;

async function placeFor(program: string) {
  const directory = await temporaryDirectory();
  await mkdir(join(directory.path, "made"));
  await writeFile(join(directory.path, "program.ts"), program);
  return directory;
}

const command = [process.execPath, "program.ts"];

test("while one looks nothing changes, and every call is told of when it is done", async () => {
  for (let round = 0; round < ROUNDS; round++) {
    await using directory = await placeFor(makesThemAtOnce("await all"));
    const made = join(directory.path, "made");
    let told = 0;
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

test("a program that ends while it is being stopped has its own exit code, or none is told", async () => {
  let [told, untold] = [0, 0];
  while (told < 4 * ROUNDS) {
    await using directory = await placeFor(makesThemAtOnce("await Bun.sleep(0); process.exit(7)"));
    try {
      const { exitCode } = await runInSteps(command, { cwd: directory.path, calls: ["mkdir"] }, async () => "go on");
      expect(exitCode).toBe(7);
      told++;
    } catch (error) {
      if (!(error instanceof StraceGaveUp)) throw error;
      expect(++untold).toBeLessThan(ROUNDS);
    }
  }
}, 120_000);

test("a program that starts another which makes such calls is refused", async () => {
  await using directory = await placeFor(`
    import { mkdirSync } from "node:fs";
    mkdirSync("made/one");
    await Bun.spawn(["mkdir", "made/another"]).exited;
  `);
  const run = runInSteps(command, { cwd: directory.path, calls: ["mkdir"] }, async () => "go on");
  await expect(run).rejects.toThrow("more than one process makes the calls");
});
