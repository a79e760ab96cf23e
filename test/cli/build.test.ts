/** dist/wal-b as a file on somebody's machine: it starts, says which it is, and nothing around it changes that. */
import { expect, test } from "bun:test";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runProgram } from "../support/run-program.ts";
import { walbBinary } from "../support/walb.ts";

const { version } = (await Bun.file(join(import.meta.dir, "../../package.json")).json()) as { version: string };

test("wal-b --version prints the version of package.json and nothing on stderr", async () => {
  const { exitCode, stdout, stderr } = await runProgram([await walbBinary(), "--version"]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  expect(stdout).toContain("wal-b");
  expect(stdout).toContain(version);
});

test("wal-b may be run by everybody and written by its owner only", async () => {
  expect((await stat(await walbBinary())).mode & 0o777).toBe(0o755);
});

test("wal-b takes nothing from .env, bunfig.toml, package.json or tsconfig.json in its working directory", async () => {
  const directory = await mkdtemp(join(tmpdir(), "walb-planted-"));
  try {
    const planted = join(directory, "planted");
    await writeFile(join(directory, ".env"), "WALB_NO_SUCH_SETTING=1\nBUN_OPTIONS=--preload=./preload.ts\n");
    await writeFile(join(directory, "bunfig.toml"), 'preload = ["./preload.ts"]\n[run]\npreload = ["./preload.ts"]\n');
    await writeFile(
      join(directory, "preload.ts"),
      `await Bun.write(${JSON.stringify(planted)}, "ran"); process.exit(99);`,
    );
    await writeFile(join(directory, "package.json"), "{ this is not JSON");
    await writeFile(join(directory, "tsconfig.json"), "{ neither is this");

    // A setting that does not exist is a usage error, so that a .env that is read would show in backup-list.
    const store = join(directory, "store");
    for (const args of [["--version"], ["backup-list", "--file-prefix", store]]) {
      const inside = await runProgram([await walbBinary(), ...args], { cwd: directory });
      const outside = await runProgram([await walbBinary(), ...args], { cwd: "/" });
      expect({ args, exitCode: inside.exitCode, stdout: inside.stdout }).toEqual({
        args,
        exitCode: outside.exitCode,
        stdout: outside.stdout,
      });
      expect(inside.stderr).not.toContain("WALB_NO_SUCH_SETTING");
    }
    expect(await Bun.file(planted).exists()).toBe(false);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
});

test("wal-b has no path of the machine that built it inside", async () => {
  const bytes = Buffer.from(await Bun.file(await walbBinary()).arrayBuffer());
  expect(bytes.includes(join(import.meta.dir, "../.."))).toBe(false);
});
