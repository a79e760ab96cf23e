/** `bun build.ts --all`: one binary per platform, each with its own addon, and checksums that install.sh can use. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { runProgram } from "../support/run-program.ts";

const root = resolve(import.meta.dir, "../..");
const X64 = 62;
const ARM64 = 183;
const RELEASE = [
  { name: "wal-b-linux-arm64", machine: ARM64, loader: "/lib/ld-linux-aarch64.so.1" },
  { name: "wal-b-linux-arm64-musl", machine: ARM64, loader: "/lib/ld-musl-aarch64.so.1" },
  { name: "wal-b-linux-x64", machine: X64, loader: "/lib64/ld-linux-x86-64.so.2" },
  { name: "wal-b-linux-x64-musl", machine: X64, loader: "/lib/ld-musl-x86_64.so.1" },
];

let directory: string;
beforeAll(async () => {
  await mkdir(join(root, ".cache"), { recursive: true });
  directory = await mkdtemp(join(root, ".cache", "release-test-"));
  const command = [process.execPath, "build.ts", "--all", "--outdir", directory];
  const { exitCode, stdout, stderr } = await runProgram(command, { cwd: root, env: process.env, timeoutMs: 400_000 });
  if (exitCode !== 0) throw new Error(`build.ts ended with ${exitCode}:\n${stdout}${stderr}`);
}, 420_000);
afterAll(async () => await rm(directory, { recursive: true, force: true }));

test("the release is the four binaries and their checksums", async () => {
  expect((await readdir(directory)).sort()).toEqual(["SHA256SUMS", ...RELEASE.map(({ name }) => name)]);

  const { exitCode, stdout } = await runProgram(["sha256sum", "-c", "SHA256SUMS"], { cwd: directory });
  expect(exitCode).toBe(0);
  expect(new Set(stdout.trim().split("\n"))).toEqual(new Set(RELEASE.map(({ name }) => `${name}: OK`)));
});

for (const { name, machine, loader } of RELEASE) {
  test(`${name} is for its platform, with the addon of that platform and no other`, async () => {
    const bytes = Buffer.from(await Bun.file(join(directory, name)).arrayBuffer());
    expect(bytes.readUInt16LE(18)).toBe(machine);
    expect(bytes.subarray(0, 4096).includes(loader)).toBe(true);

    const addons = ["linux-x64-gnu", "linux-x64-musl", "linux-arm64-gnu", "linux-arm64-musl"];
    const found = addons.filter((addon) => bytes.includes(`root/zstd.${addon}-`));
    const libc = name.endsWith("-musl") ? "musl" : "gnu";
    expect(found).toEqual([`${name.replace("wal-b-", "").replace("-musl", "")}-${libc}`]);
    expect(bytes.includes(root)).toBe(false);

    const arch = { x64: X64, arm64: ARM64 }[process.arch as string];
    if (arch !== machine || !existsSync(loader)) return;
    expect(await runProgram([join(directory, name), "--version"])).toMatchObject({ exitCode: 0, stderr: "" });
  });
}
