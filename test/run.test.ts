/** The test runner notices what a test run must not hide. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { type ProgramResult, runProgram } from "./support/run-program.ts";

const root = resolve(import.meta.dir, "..");
const TEST = `import { expect, test } from "bun:test";\n`;
const CASES: readonly { file: string; text: string; lastLine: string; exitCode: number }[] = [
  { file: "passes", text: `${TEST}test("a", () => {});`, lastLine: "1 passed, 0 failed", exitCode: 0 },
  {
    file: "fails",
    text: `${TEST}test("a", () => {}); test("b", () => { expect(1).toBe(2); });`,
    lastLine: "1 passed, 1 failed",
    exitCode: 1,
  },
  {
    file: "skips",
    text: `${TEST}test("a", () => {}); test.skip("b", () => {});`,
    lastLine: "1 passed, 0 failed, 1 skipped",
    exitCode: 0,
  },
  {
    file: "only-skips",
    text: `${TEST}test.skip("b", () => {});`,
    lastLine: "0 passed, 0 failed, 1 skipped",
    exitCode: 1,
  },
  { file: "is-empty", text: "", lastLine: "0 passed, 1 failed", exitCode: 1 },
  { file: "throws-outside", text: "throw new Error('outside');", lastLine: "0 passed, 1 failed", exitCode: 1 },
  {
    file: "exits-early",
    text: `${TEST}test("a", () => process.exit(0)); test("b", () => {});`,
    lastLine: "0 passed, 1 failed",
    exitCode: 1,
  },
  {
    file: "is-killed",
    text: `${TEST}test("a", () => { process.kill(process.pid, "SIGKILL"); });`,
    lastLine: "0 passed, 1 failed",
    exitCode: 1,
  },
  {
    file: "throws-afterwards",
    text: `import { afterAll, test } from "bun:test"; afterAll(() => { throw new Error("x"); }); test("a", () => {});`,
    lastLine: "1 passed, 1 failed",
    exitCode: 1,
  },
];

let project: string;
beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), "walb-runner-"));
  await mkdir(join(project, "test/unit"), { recursive: true });
  await cp(join(root, "test/run.ts"), join(project, "test/run.ts"));
  await symlink(join(root, "test/support"), join(project, "test/support"));
  await symlink(join(root, "node_modules"), join(project, "node_modules"));
  for (const { file, text } of CASES) await writeFile(join(project, `test/unit/${file}.test.ts`), text);
});
afterAll(async () => await rm(project, { recursive: true, force: true }));

async function run(...args: string[]): Promise<ProgramResult> {
  return await runWith({}, ...args);
}

async function runWith(env: Readonly<Record<string, string>>, ...args: string[]): Promise<ProgramResult> {
  const options = { cwd: project, env: { TMPDIR: tmpdir(), ...env } };
  return await runProgram([process.execPath, "test/run.ts", ...args], options);
}

for (const { file, lastLine, exitCode } of CASES) {
  test(`test/run.ts says "${lastLine}" of a file that ${file.replace("-", " ")}`, async () => {
    const result = await run("quick", `test/unit/${file}.test.ts`);
    expect(result.stdout.trimEnd().split("\n").at(-1)).toBe(lastLine);
    expect(result.exitCode).toBe(exitCode);
  });
}

test("test/run.ts adds up all files and names those that failed", async () => {
  const { stdout, exitCode } = await run("quick");
  expect(stdout).toEndWith("\n4 passed, 6 failed, 2 skipped\n");
  const atTheEnd = stdout.slice(stdout.lastIndexOf(" files in "));
  expect(atTheEnd).toMatch(
    /\nFAILED test\/unit\/fails\.test\.ts: b\n.*expect\(received\)\.toBe\(expected\)\n\nExpected: 2\n/,
  );
  expect(atTheEnd).toContain(
    "\nFAILED test/unit/is-killed.test.ts: ended with signal SIGKILL before its tests were counted",
  );
  expect(atTheEnd).toMatch(/\nFAILED test\/unit\/throws-outside\.test\.ts: .*outside/s);
  expect(stdout).toContain("\nSKIPPED test/unit/skips.test.ts: b\n");
  expect(exitCode).toBe(1);
});

test("test/run.ts refuses paths without tests and unknown words", async () => {
  expect((await run("quick", "test/unit/no-such.test.ts")).exitCode).not.toBe(0);
  expect((await run("some")).exitCode).toBe(64);
});

test("test/run.ts hands on what tests are told by, and nothing of the developer's own servers", async () => {
  const told = ["WALB_TEST_SEED", "WALB_TEST_CASES", "WALB_TEST_SOAK_MINUTES", "WALB_TEST_SWEEP"];
  const kept = ["AWS_ACCESS_KEY_ID", "PGHOST", "WALB_S3_PREFIX", "WALE_S3_PREFIX", "WALG_S3_PREFIX"];
  const file = "test/told/prints.test.ts";
  await mkdir(join(project, "test/told"));
  const text = `${TEST}test("a", () => console.log(Object.entries(process.env).filter(([, v]) => v === "7").map(([k]) => k).sort().join()));`;
  await writeFile(join(project, file), text);
  const { stdout } = await runWith(Object.fromEntries([...told, ...kept].map((name) => [name, "7"])), "quick", file);
  await rm(join(project, "test/told"), { recursive: true });
  expect(stdout).toContain(`\n${told.sort().join()}\n`);
});
