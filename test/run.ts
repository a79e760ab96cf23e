/**
 * Runs the tests: `bun test/run.ts all|quick [paths…]`. Every file runs in a process of its own, so that one that
 * crashes, hangs, exits early or has no tests is a failure and not a gap. The last line is "N passed, N failed".
 *
 * "quick" leaves out what needs servers (test/integration, test/contract, test/soak) and what takes long (test/guards). "all" starts the S3 servers once and hands
 * them to the test files in WALB_TEST_S3_SERVERS, as JSON.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { availableParallelism, tmpdir } from "node:os";
import { join, relative, resolve } from "node:path";
import { serverAccount } from "./support/account.ts";
import { COMPLETE_MAJORS, completePostgres } from "./support/complete-postgres.ts";
import { POSTGRES_MAJORS, postgresBinaries, systemPostgres } from "./support/postgres-binaries.ts";

interface Outcome {
  readonly file: string;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: readonly string[];
  /** What failed and how, to be said once more at the end, where it is found. */
  readonly failures: readonly string[];
}

interface Servers {
  /** For WALB_TEST_S3_SERVERS. */
  readonly description: string;
  stop(): Promise<void>;
}

const MINUTE = 60_000;
const LIMITS = {
  all: { testMs: 2 * MINUTE, fileMs: 10 * MINUTE, runMs: 60 * MINUTE },
  quick: { testMs: MINUTE, fileMs: 2 * MINUTE, runMs: 5 * MINUTE },
  /** Of "all", when it was asked for every fault at every request. */
  sweep: { testMs: 2 * MINUTE, fileMs: 4 * 60 * MINUTE, runMs: 12 * 60 * MINUTE },
};
/** What tests themselves are told by. */
const FOR_TESTS = ["WALB_TEST_SEED", "WALB_TEST_CASES", "WALB_TEST_SOAK_MINUTES", "WALB_TEST_SWEEP"];
const NEEDS_SERVERS = ["test/integration/", "test/contract/", "test/soak/"];
/** Too long for "quick". */
const SLOW = [...NEEDS_SERVERS, "test/guards/"];

/** Of what a failure says, in characters: at the end of the output of all files it must be found at a glance. */
const EXCERPT = 1_500;

const root = resolve(import.meta.dir, "..");
const running = new Set<ChildProcess>();
const [mode, ...wanted] = process.argv.slice(2);
if (mode !== "all" && mode !== "quick") {
  console.error("usage: bun test/run.ts all|quick [paths…]");
  process.exit(64);
}
process.chdir(root);
const limits = LIMITS[mode === "all" && process.env["WALB_TEST_SWEEP"] === "full" ? "sweep" : mode];
/** How many random cases a property is tried with; WALB_TEST_CASES asks for another number. */
const randomCases = { all: "500", quick: "50" }[mode];
const deadline = performance.now() + limits.runMs;

const files = await testFiles();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => void interrupted());
let servers: Servers | undefined;
try {
  const outcomes: Outcome[] = [];
  if (mode === "all" && files.some(needsServers)) {
    // Without servers the other tests still have something to say.
    servers = await startServers().catch(async (error: unknown) => {
      outcomes.push(await broken("the servers for the tests", "could not be started", String(error)));
      return undefined;
    });
  }
  outcomes.push(...(await runAll(files, servers?.description)));
  await report(outcomes);
} finally {
  await servers?.stop();
}
process.exit();

async function testFiles(): Promise<string[]> {
  const found = [...new Bun.Glob("test/**/*.test.ts").scanSync({ cwd: root })].sort();
  const inMode = mode === "all" ? found : found.filter((file) => !SLOW.some((directory) => file.startsWith(directory)));
  if (wanted.length === 0) return inMode;

  const names = wanted.map((path) => relative(root, resolve(path)));
  // A path that is named explicitly is run in either mode.
  const chosen = found.filter((file) => names.some((name) => file === name || file.startsWith(`${name}/`)));
  if (chosen.length === 0) throw new Error(`no test files in ${wanted.join(", ")}`);
  return chosen;
}

function needsServers(file: string): boolean {
  return NEEDS_SERVERS.some((directory) => file.startsWith(directory));
}

/** Brings what has to be downloaded before the first test's clock starts. */
async function startServers(): Promise<Servers> {
  const account = serverAccount();
  for (const major of POSTGRES_MAJORS) await postgresBinaries(major, account);
  for (const major of COMPLETE_MAJORS) await completePostgres(major, account);
  const majors = [POSTGRES_MAJORS, COMPLETE_MAJORS].map((each) => each.join(", ") || "none");
  await say(
    `PostgreSQL ${majors[0]}; with client programs: ${majors[1]}; the system's own: ${systemPostgres()?.major ?? "none"}`,
  );

  // Only here, because it loads the AWS SDK.
  const { startS3Servers } = await import("./support/s3-server.ts");
  const { servers: started, stop } = await startS3Servers();
  await say(`S3 servers: ${started.map(({ name }) => name).join(", ")}`);
  return { description: JSON.stringify(started), stop };
}

/** Several files at once, but no more than there are processors: timing in tests should mean something. */
async function runAll(all: readonly string[], s3Servers: string | undefined): Promise<Outcome[]> {
  const reports = await mkdtemp(join(tmpdir(), "walb-test-reports-"));
  const outcomes: Outcome[] = [];
  const queue = [...all];
  const worker = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      outcomes.push(await runFile(file, { reports, s3Servers }));
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, worker));
    return outcomes;
  } finally {
    await rm(reports, { recursive: true, force: true });
  }
}

async function runFile(
  file: string,
  { reports, s3Servers }: { readonly reports: string; readonly s3Servers: string | undefined },
): Promise<Outcome> {
  const limitMs = Math.min(limits.fileMs, deadline - performance.now());
  if (limitMs <= 0) return await broken(file, "not run: the time for the whole run is up", "");

  const junit = join(reports, `${file.replaceAll("/", "-")}.xml`);
  const before = performance.now();
  const args = ["test", `--timeout=${limits.testMs}`, "--reporter=junit", `--reporter-outfile=${junit}`, `./${file}`];
  const child = spawn(process.execPath, args, {
    env: { WALB_TEST_CASES: randomCases, ...cleanEnvironment(), ...(s3Servers && { WALB_TEST_S3_SERVERS: s3Servers }) },
    stdio: ["ignore", "pipe", "pipe"],
    detached: true,
  });
  const output: Buffer[] = [];
  for (const stream of [child.stdout, child.stderr]) stream.on("data", (chunk: Buffer) => output.push(chunk));
  const { how, isLate } = await ended(child, limitMs);
  const seconds = ((performance.now() - before) / 1000).toFixed(1);
  const text = Buffer.concat(output).toString("utf8").trimEnd();

  if (isLate) return await broken(file, `hung: killed after ${seconds} s`, text);
  const counted = existsSync(junit) ? parseJunit(await readFile(junit, "utf8")) : undefined;
  if (!counted) return await broken(file, `ended with ${how} before its tests were counted, or has none`, text);
  // An error outside of any test fails the process and no test.
  const failed = counted.failed || (how === "exit code 0" ? 0 : 1);
  await say(`\n── ${file}: ${counted.passed} passed, ${failed} failed, ${seconds} s, ${how}\n${text}`);
  const failures = failed > counted.failed ? [`ended with ${how}\n${text.slice(-EXCERPT)}`] : counted.failures;
  return { file, passed: counted.passed, failed, skipped: counted.skipped.map((name) => `${file}: ${name}`), failures };
}

function ended(child: ChildProcess, limitMs: number): Promise<{ readonly how: string; readonly isLate: boolean }> {
  running.add(child);
  return new Promise((resolveEnd) => {
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      killGroup(child);
    }, limitMs);
    const end = (how: string) => {
      clearTimeout(timer);
      running.delete(child);
      resolveEnd({ how, isLate });
    };
    child.once("error", (error) => end(error.message));
    child.once("exit", (code, signal) => {
      const how = signal ? `signal ${signal}` : `exit code ${code}`;
      child.once("close", () => end(how));
      // Something that a test left behind may hold the pipe open for ever.
      setTimeout(() => end(how), 2_000).unref();
    });
  });
}

async function broken(file: string, why: string, text: string): Promise<Outcome> {
  await say(`\n── ${file}: ${why}\n${text}`);
  return { file, passed: 0, failed: 1, skipped: [], failures: [`${why}\n${text.slice(-EXCERPT)}`] };
}

/** @returns undefined when there was not a single test */
function parseJunit(
  xml: string,
): { passed: number; failed: number; skipped: string[]; failures: string[] } | undefined {
  const totals = /<testsuites ([^>]*)>/.exec(xml)?.[1] ?? "";
  const count = (attribute: string) => Number(new RegExp(`\\b${attribute}="(\\d+)"`).exec(totals)?.[1] ?? 0);
  const failed = count("failures") + count("errors");
  const skipped = [...xml.matchAll(/<testcase name="([^"]*)"[^>]*>\s*<skipped/g)].map(([, name]) => name ?? "");
  const passed = count("tests") - failed - count("skipped");
  const failures = [...xml.matchAll(/<testcase name="([^"]*)"[^>]*>\s*<failure[^>]*>([^<]*)/g)].map(
    ([, name = "", text = ""]) => unescaped(`${name}\n${text}`).slice(0, EXCERPT),
  );
  return count("tests") === 0 ? undefined : { passed, failed, skipped, failures };
}

function unescaped(xml: string): string {
  const meant: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", "#10": "\n", amp: "&" };
  return xml.replace(/&(\w+|#10);/g, (all, name: string) => meant[name] ?? all);
}

/** Nothing of the developer's own accounts and servers reaches a test by accident. */
function cleanEnvironment(): Record<string, string | undefined> {
  const isOurs = (name: string) => /^(AWS_|PG|WAL[BEG]_|S3_|MINIO_)/.test(name) && !FOR_TESTS.includes(name);
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !isOurs(name)));
}

async function report(outcomes: readonly Outcome[]): Promise<void> {
  const skipped = outcomes.flatMap((outcome) => outcome.skipped);
  const passed = outcomes.reduce((sum, outcome) => sum + outcome.passed, 0);
  const failed = outcomes.reduce((sum, outcome) => sum + outcome.failed, 0);
  const failing = outcomes.filter((outcome) => outcome.failed > 0);

  await say(`\n${outcomes.length} files in ${((performance.now() - deadline + limits.runMs) / 1000).toFixed(0)} s`);
  for (const each of skipped) await say(`SKIPPED ${each}`);
  for (const { file, failures } of failing) {
    for (const each of failures) await say(`FAILED ${file}: ${each.trimEnd()}`);
  }
  await say(`${passed} passed, ${failed} failed${skipped.length > 0 ? `, ${skipped.length} skipped` : ""}`);
  process.exitCode = failed > 0 || passed === 0 ? 1 : 0;
}

async function interrupted(): Promise<never> {
  for (const child of running) killGroup(child);
  await servers?.stop();
  await say("interrupted");
  process.exit(130);
}

function killGroup({ pid }: ChildProcess): void {
  try {
    if (pid !== undefined) process.kill(-pid, "SIGKILL");
  } catch {
    // It ended by itself in the meantime.
  }
}

/** Waits until the text is written, so that process.exit() loses none of it on a slow pipe. */
async function say(text: string): Promise<void> {
  await new Promise<void>((written) => process.stdout.write(`${text}\n`, () => written()));
}
