/** Brings programs that the tests need from the operating system, on a machine (CI's) where root may install them. */
import { runProgram } from "./run-program.ts";

const INSTALL_TIMEOUT_MS = 300_000;

/** @throws Error  the program is not there and cannot be installed */
export async function ensureProgram(program: string, debianPackage = program): Promise<void> {
  if (Bun.which(program)) return;
  if (process.getuid?.() !== 0 || !Bun.which("apt-get")) {
    throw new Error(`the tests need "${program}": install the package ${debianPackage}`);
  }
  // An image without package lists knows no package until it is updated.
  const steps = [
    ["update", "-q"],
    ["install", "-y", "-q", "--no-install-recommends", debianPackage],
  ];
  for (const step of steps) {
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    const { exitCode, stdout, stderr } = await runProgram(["apt-get", ...step], { env, timeoutMs: INSTALL_TIMEOUT_MS });
    if (exitCode !== 0) throw new Error(`apt-get ${step.join(" ")} ended with ${exitCode}:\n${stdout}${stderr}`);
  }
}
