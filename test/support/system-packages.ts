/** Brings programs that the tests need from the operating system, on a machine (CI's) where root may install them. */
import { tmpdir } from "node:os";
import { join } from "node:path";
import { runProgram } from "./run-program.ts";

const INSTALL_TIMEOUT_MS = 10 * 60_000;

export const canInstallPackages = () => process.getuid?.() === 0 && Bun.which("apt-get") !== null;

/** @throws Error  the program is not there and cannot be installed */
export async function ensureProgram(program: string, debianPackage = program): Promise<void> {
  if (Bun.which(program)) return;
  if (!canInstallPackages()) throw new Error(`the tests need "${program}": install the package ${debianPackage}`);
  await installPackages([debianPackage]);
}

/** Test files run side by side, and apt-get fails where another one is at work: they wait for each other. */
export async function installPackages(debianPackages: readonly string[]): Promise<void> {
  // An image without package lists knows no package until it is updated.
  const steps = [
    ["update", "-q"],
    ["install", "-y", "-q", "--no-install-recommends", ...debianPackages],
  ];
  const waiting = ["flock", join(tmpdir(), "walb-test-apt.lock")];
  for (const step of steps) {
    const { exitCode, stdout, stderr } = await runProgram([...waiting, "apt-get", ...step], {
      env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" },
      timeoutMs: INSTALL_TIMEOUT_MS,
    });
    if (exitCode !== 0) throw new Error(`apt-get ${step.join(" ")} ended with ${exitCode}:\n${stdout}${stderr}`);
  }
}
