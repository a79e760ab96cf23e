/** Whose a restore is, by its marker: of processes that go on with it, the first that runs. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { type ChildProcess, spawn } from "node:child_process";
import { appendFile, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { MARKER, RestoreMarker, readInterruptedRestore } from "../../../src/backup/restore-marker.ts";
import { canEnter, inOwnNamespace } from "../../support/mounts.ts";
import { runProgram } from "../../support/run-program.ts";

const IDENTITY = { backup: "base_000000010000000000000002", manifestSha256: "00", repository: "", tablespaces: [] };
const FIRST = { formatVersion: 1, beganAt: new Date(0), ...IDENTITY };

let target: string;
let other: ChildProcess;

beforeEach(async () => {
  target = await mkdtemp(join(tmpdir(), "walb-marker-"));
  other = spawn("sleep", ["60"], { stdio: "ignore" });
});
afterEach(async () => {
  other.kill("SIGKILL");
  await rm(target, { recursive: true, force: true });
});

/** @param started  as the kernel counts it, for a number that was used again: another than that of the process */
const runBy = (processId: number | undefined, started?: string, host = hostname()) => ({
  runBy: { hostname: host, processId, started },
});
const linesOf = (...lines: readonly object[]) => lines.map((line) => `${JSON.stringify(line)}\n`).join("");

async function markWith(...lines: readonly object[]): Promise<void> {
  await mkdir(join(target, ".wal-b"), { recursive: true });
  await writeFile(join(target, MARKER), linesOf(...lines));
}

const textOfMarker = async () => await readFile(join(target, MARKER), "utf8");
const isRunning = () => ({
  message: `a restore into "${target}" is running`,
  detail: `Its process is ${other.pid}.`,
  exitCode: 73,
});

describe("RestoreMarker.takeOver()", () => {
  test("finds nothing where no restore was interrupted, and makes nothing", async () => {
    expect(await RestoreMarker.takeOver(target)).toBeUndefined();
    expect(await textOfMarker().catch(() => "none")).toBe("none");
  });

  test("adds this process behind what was there, also behind half a line", async () => {
    await markWith(FIRST, runBy(other.pid, "another start"));
    await appendFile(join(target, MARKER), '{"part":"part_001.tar.zst","direc');
    const before = await textOfMarker();
    expect((await RestoreMarker.takeOver(target))?.identity).toEqual(IDENTITY);
    const text = await textOfMarker();
    expect(text).toStartWith(`${before}\n{"runBy":`);
    expect(JSON.parse(text.slice(before.length))).toMatchObject({
      runBy: { hostname: hostname(), processId: process.pid },
    });
    await (await RestoreMarker.resume(target))[Symbol.asyncDispose]();
  });

  test("refuses while another runs, also when one that yielded to it stands behind it, and adds nothing", async () => {
    await markWith(FIRST, runBy(other.pid), runBy(2 ** 22 + 1));
    const before = await textOfMarker();
    await expect(RestoreMarker.takeOver(target)).rejects.toMatchObject(isRunning());
    expect(await textOfMarker()).toBe(before);
  });
});

test("readInterruptedRestore() leaves the marker as it is", async () => {
  await markWith(FIRST);
  expect((await readInterruptedRestore(target))?.identity).toEqual(IDENTITY);
  expect(await textOfMarker()).toBe(linesOf(FIRST));
});

describe("RestoreMarker.resume() refuses", () => {
  beforeEach(async () => {
    await markWith(FIRST);
    await RestoreMarker.takeOver(target);
  });

  test("when another that runs was added before this process", async () => {
    const ours = (await textOfMarker()).slice(linesOf(FIRST).length);
    await writeFile(join(target, MARKER), linesOf(FIRST, runBy(other.pid)) + ours);
    await expect(RestoreMarker.resume(target)).rejects.toMatchObject(isRunning());
  });

  test("not when another was added behind it, for that one yields", async () => {
    await appendFile(join(target, MARKER), linesOf(runBy(other.pid)));
    await (await RestoreMarker.resume(target))[Symbol.asyncDispose]();
  });

  test("when one of another host was added behind it, which knew nothing of this one", async () => {
    await appendFile(join(target, MARKER), linesOf(runBy(7, "1", "elsewhere")));
    await expect(RestoreMarker.resume(target)).rejects.toMatchObject({ detail: 'Its process is 7 on "elsewhere".' });
  });

  test("when the marker is gone, or is another's", async () => {
    const refusal = { message: `the restore into "${target}" is not this process's any more`, exitCode: 73 };
    await markWith(FIRST, runBy(other.pid));
    await expect(RestoreMarker.resume(target)).rejects.toMatchObject(refusal);
    await rm(join(target, ".wal-b"), { recursive: true });
    await expect(RestoreMarker.resume(target)).rejects.toMatchObject(refusal);
  });
});

test("remove() tells whose the restore is no more, when the marker is gone", async () => {
  await using marker = await RestoreMarker.begin(target, IDENTITY, { now: new Date(), owner: undefined });
  await rm(join(target, ".wal-b"), { recursive: true });
  const message = `the restore into "${target}" is not this process's any more`;
  await expect(marker.remove()).rejects.toMatchObject({ message, exitCode: 73 });
});

test("RestoreMarker.begin() refuses where another has begun, and names it", async () => {
  await markWith(FIRST, runBy(other.pid));
  const begun = RestoreMarker.begin(target, IDENTITY, { now: new Date(), owner: undefined });
  await expect(begun).rejects.toMatchObject(isRunning());
});

test.skipIf(!(await canEnter("uts")))("a restore stays its process's when the host gets another name", async () => {
  const script = `
    import { spawnSync } from "node:child_process";
    import { hostname } from "node:os";
    import { RestoreMarker } from ${JSON.stringify(require.resolve("../../../src/backup/restore-marker.ts"))};
    const [target, identity] = ${JSON.stringify([target, IDENTITY])};
    await using marker = await RestoreMarker.begin(target, identity, { now: new Date(), owner: undefined });
    if (spawnSync("hostname", ["renamed"]).status !== 0) throw new Error("the host cannot be renamed");
    await marker.checkOurs();
    console.log(hostname());
  `;
  const command = [...inOwnNamespace("uts"), process.execPath, "--eval", script];
  expect(await runProgram(command)).toMatchObject({ exitCode: 0, stdout: "renamed\n" });
  expect(hostname()).not.toBe("renamed");
});
