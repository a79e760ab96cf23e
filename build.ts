/**
 * Compiles wal-b into one executable.
 *
 *   bun build.ts        dist/wal-b for this machine
 *   bun build.ts --all  dist/wal-b-linux-<cpu>[-musl] and dist/SHA256SUMS, which install.sh downloads
 *
 * A build counts only when its binary has started: Bun can end with 0 and leave one that dies at its first line.
 * The same commit and the same Bun give the same bytes.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";

/** A sentence for whoever builds; its stack says nothing. */
class BuildFailure extends Error {}

interface Target {
  /** Of the file in dist/. */
  readonly name: string;
  /** Bun's word for it; undefined is this machine. */
  readonly bun: Bun.Build.CompileTarget | undefined;
  /** Names after "@mongodb-js/zstd-" of the addon packages that fit, best first. */
  readonly addons: readonly string[];
}

/** Bun's one x64 runtime starts on processors without AVX2 too: `qemu-x86_64 -cpu Nehalem wal-b --version`. */
const RELEASE_TARGETS: readonly Target[] = [
  { name: "wal-b-linux-x64", bun: "bun-linux-x64", addons: ["linux-x64-gnu"] },
  { name: "wal-b-linux-x64-musl", bun: "bun-linux-x64-musl", addons: ["linux-x64-musl"] },
  { name: "wal-b-linux-arm64", bun: "bun-linux-arm64", addons: ["linux-arm64-gnu"] },
  { name: "wal-b-linux-arm64-musl", bun: "bun-linux-arm64-musl", addons: ["linux-arm64-musl"] },
];

const platform = `${process.platform}-${process.arch}`;
const HOST: Target = { name: "wal-b", bun: undefined, addons: [`${platform}-gnu`, `${platform}-musl`, platform] };

process.chdir(import.meta.dir);
const version = versionOfPackage();
// Asked once: all binaries of a release say the same.
const commit = commitOfCheckout();
const outputDirectory = optionValue("--outdir") ?? "dist";
try {
  if (process.argv.includes("--all")) {
    const packages = installAddonsOfAllPlatforms();
    for (const target of RELEASE_TARGETS) await build(target, packages);
    writeChecksums(RELEASE_TARGETS.map(({ name }) => name));
  } else {
    await build(HOST, "node_modules");
  }
} catch (error) {
  // Bun.build throws one error with all of the compiler's complaints in it.
  const reasons = error instanceof AggregateError ? error.errors : [error];
  for (const reason of reasons) console.error(reason instanceof BuildFailure ? reason.message : reason);
  process.exit(1);
}

async function build(target: Target, packages: string): Promise<void> {
  mkdirSync(outputDirectory, { recursive: true });
  const work = mkdtempSync(join(outputDirectory, ".building-"));
  try {
    const outfile = join(work, "wal-b");
    const { success, logs } = await Bun.build({
      entrypoints: ["src/main.ts"],
      target: "bun",
      format: "esm",
      minify: true,
      bytecode: true,
      splitting: true,
      env: "disable",
      define: {
        WALB_VERSION: JSON.stringify(version),
        WALB_COMMIT: JSON.stringify(commit) ?? "undefined",
        WALB_ZSTD_ADDON: JSON.stringify(addonOf(target, packages)),
      },
      compile: {
        ...(target.bun && { target: target.bun }),
        outfile,
        // The working directory of archive_command is PGDATA: what lies there must not change what wal-b does.
        autoloadDotenv: false,
        autoloadBunfig: false,
        autoloadTsconfig: false,
        autoloadPackageJson: false,
      },
    });
    if (!success || !existsSync(outfile)) fail(`could not compile ${target.name}:\n${logs.join("\n")}`);
    chmodSync(outfile, 0o755);

    const start = startOf(outfile, target);
    renameSync(outfile, join(outputDirectory, target.name));
    const size = (statSync(join(outputDirectory, target.name)).size / 2 ** 20).toFixed(0);
    console.log(`${join(outputDirectory, target.name)}: ${version} (${commit ?? "no commit"}), ${size} MiB, ${start}`);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The addon's file, as an absolute path that the bundler embeds. */
function addonOf(target: Target, packages: string): string {
  for (const name of target.addons) {
    const directory = join(packages, "@mongodb-js", `zstd-${name}`);
    const file = existsSync(directory) && readdirSync(directory).find((found) => found.endsWith(".node"));
    if (file) return join(import.meta.dir, directory, file);
  }
  return fail(`there is no zstd addon for ${target.name} in ${packages}; is \`bun install\` complete?`);
}

/** Runs the binary where it can run; elsewhere only its name and size are known. */
function startOf(binary: string, { name, bun }: Target): string {
  const isForeign = bun !== undefined && !runsHere(binary);
  if (isForeign) return "not started: it is not for this machine";

  const times: number[] = [];
  for (let run = 0; run < 5; run++) {
    const before = performance.now();
    const { status, signal, stdout, stderr } = spawnSync(binary, ["--version"], { encoding: "utf8", timeout: 20_000 });
    times.push(performance.now() - before);
    if (status !== 0) fail(`${name} was built but --version ended with ${signal ?? status}:\n${stderr}`);
    if (!stdout.includes(version)) fail(`${name} --version printed ${JSON.stringify(stdout)}, not ${version}`);
  }
  return `starts in ${times.sort((a, b) => a - b)[2]?.toFixed(0)} ms`;
}

/** Whether an ELF file is for this processor and its loader exists here. */
function runsHere(binary: string): boolean {
  const head = readFileSync(binary).subarray(0, 4096).toString("latin1");
  const loader = /\/lib(?:64)?\/ld-[\w.-]+/.exec(head)?.[0];
  const machine = { x64: 62, arm64: 183 }[process.arch as string];
  return process.platform === "linux" && head.charCodeAt(18) === machine && loader !== undefined && existsSync(loader);
}

/**
 * `bun install` keeps to this machine's platform, so the others are installed beside it, from the same lock file,
 * which has their checksums.
 */
function installAddonsOfAllPlatforms(): string {
  const directory = ".cache/release-packages";
  mkdirSync(directory, { recursive: true });
  for (const file of ["package.json", "bun.lock"]) cpSync(file, join(directory, file));
  const everywhere = ["--os=linux", "--cpu=*", "--libc=*"];
  const options = ["--frozen-lockfile", "--production", "--ignore-scripts", "--backend=copyfile", ...everywhere];
  const { status, stderr } = spawnSync(process.execPath, ["install", ...options], {
    cwd: directory,
    encoding: "utf8",
    timeout: 300_000,
  });
  if (status !== 0) fail(`could not install the addons of all platforms:\n${stderr}`);
  return join(directory, "node_modules");
}

/** In the format that `sha256sum -c` reads. */
function writeChecksums(names: readonly string[]): void {
  const lines = names.map((name) => {
    const digest = createHash("sha256").update(readFileSync(join(outputDirectory, name)));
    return `${digest.digest("hex")}  ${name}\n`;
  });
  writeFileSync(join(outputDirectory, "SHA256SUMS"), lines.join(""));
}

function versionOfPackage(): string {
  return (JSON.parse(readFileSync("package.json", "utf8")) as { version: string }).version;
}

function commitOfCheckout(): string | undefined {
  const git = (...args: string[]) => spawnSync("git", args, { encoding: "utf8", timeout: 10_000 });
  const head = git("rev-parse", "--short=12", "HEAD");
  if (head.status !== 0) return undefined;
  return head.stdout.trim() + (git("status", "--porcelain").stdout.trim() ? "-dirty" : "");
}

function optionValue(flag: string): string | undefined {
  const at = process.argv.indexOf(flag);
  return at < 0 ? undefined : process.argv[at + 1];
}

function fail(message: string): never {
  throw new BuildFailure(message);
}
