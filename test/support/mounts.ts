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

/** False, said once, where neither root nor a user namespace may: the tests that need it are then skipped, and counted. */
export async function canEnter(kind: "mount" | "uts", script = ":"): Promise<boolean> {
  const tried = await runProgram([...inOwnNamespace(kind), "/bin/bash", "-c", script]).catch((error: unknown) => ({
    exitCode: 1,
    stderr: String(error),
  }));
  if (tried.exitCode !== 0) process.stderr.write(`not tested: what needs a namespace of its own: ${tried.stderr}\n`);
  return tried.exitCode === 0;
}

export const canMount = (): Promise<boolean> => canEnter("mount", "mount -t tmpfs tmpfs /mnt");
