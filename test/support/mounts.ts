/** File systems of a test's own: mounted in a namespace that only one script sees, and gone with it. */
import type { RunAs } from "./account.ts";
import { type ProgramResult, type RunOptions, runProgram } from "./run-program.ts";

export interface MountingOptions extends Omit<RunOptions, "as"> {
  /** What "$AS" runs a program as; for an ordinary user, who is the root of a user namespace here, as that. */
  readonly account?: RunAs;
}

/**
 * Runs a shell script that may mount what it likes.
 *
 * @throws Error  for a script that was not run at all
 */
export async function withOwnMounts(
  script: string,
  { account, env, ...options }: MountingOptions,
): Promise<ProgramResult> {
  const as = account && `setpriv --reuid=${account.uid} --regid=${account.gid} --clear-groups`;
  return await runProgram([...inOwnNamespace("mount"), "/bin/bash", "-c", script], {
    ...options,
    env: { AS: as ?? "", ...env },
  });
}

/** Before a command: what that one changes there, only it and its children see. */
export const inOwnNamespace = (kind: "mount" | "uts"): readonly string[] =>
  process.getuid?.() === 0 ? ["unshare", `--${kind}`] : ["unshare", `--${kind}`, "--map-root-user"];

/** False, said once, where neither root nor a user namespace may have one: the tests that need it are then skipped, and counted. */
export async function canEnter(kind: "mount" | "uts"): Promise<boolean> {
  const { exitCode, stderr } = await runProgram([...inOwnNamespace(kind), "true"]);
  if (exitCode !== 0) process.stderr.write(`not tested: what needs a namespace of its own: ${stderr}\n`);
  return exitCode === 0;
}

/** False, said once, where neither root nor a user namespace may mount: the tests that need it are then skipped, and counted. */
export async function canMount(): Promise<boolean> {
  const tried = await withOwnMounts("mount -t tmpfs tmpfs /mnt", {}).catch((error: unknown) => ({
    exitCode: 1,
    stderr: String(error),
  }));
  if (tried.exitCode !== 0) process.stderr.write(`not tested: what needs a file system of its own: ${tried.stderr}\n`);
  return tried.exitCode === 0;
}
