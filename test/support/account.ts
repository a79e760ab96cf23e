/**
 * The operating system account that servers under test run as. PostgreSQL refuses to run as root, so root hands its
 * work to an unprivileged account; an ordinary user runs everything as itself.
 */
import { existsSync, readFileSync } from "node:fs";
import { chmod, chown, cp, lstat, mkdir, readdir, rename, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { runProgram } from "./run-program.ts";

export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

/** What a program is given as uid and gid; undefined means: as whoever runs the tests. */
export type RunAs = Account | undefined;

/**
 * `postgres` where that account exists, else `nobody`, when the tests run as root; undefined for an ordinary user.
 * initdb looks its account up by number, so it has to be a real one.
 */
export function serverAccount(): RunAs {
  if (process.getuid?.() !== 0) return undefined;
  const account = findAccount("postgres") ?? findAccount("nobody");
  if (!account) throw new Error("PostgreSQL does not run as root, and there is no account postgres or nobody");
  return account;
}

/** The account `nobody`, which owns nothing, when the tests run as root; undefined for an ordinary user. */
export function ordinaryAccount(): RunAs {
  return process.getuid?.() === 0 ? findAccount("nobody") : undefined;
}

function findAccount(wanted: string): RunAs {
  for (const line of readFileSync("/etc/passwd", "utf8").split("\n")) {
    const [name, , uid, gid] = line.split(":");
    if (name === wanted && Number(uid) > 0) return { name, uid: Number(uid), gid: Number(gid) };
  }
  return undefined;
}

/** Gives a path to the account; nothing happens for an ordinary user. */
export async function giveTo(account: RunAs, path: string): Promise<void> {
  if (account) await chown(path, account.uid, account.gid);
}

/**
 * Where short-lived files go. A Unix socket's path has at most 107 bytes, and macOS's own temporary directory takes
 * most of them.
 */
export function shortTemporaryDirectory(): string {
  return tmpdir().length <= 40 ? tmpdir() : "/tmp";
}

/**
 * Returns a path at which the account can run a program: the file or directory itself, or a copy of it when the
 * checkout is somewhere the account may not enter (/root, a private home).
 *
 * @param copyName  relative path of the copy; carries the content's version, because a copy is made once
 * @param program  to try, relative to `original`; "." when that is the program
 */
export async function reachableBy(
  account: RunAs,
  original: string,
  { copyName, program }: { readonly copyName: () => string | Promise<string>; readonly program: string },
): Promise<string> {
  if (!account || (await canRun(account, join(original, program)))) return original;

  const shared = await sharedDirectory();
  const copy = join(shared, await copyName());
  if (!existsSync(copy)) {
    await removeOld(shared);
    const half = join(shared, `.half-${process.pid}-${basename(copy)}`);
    await cp(original, half, { recursive: true, verbatimSymlinks: true });
    await openForReading(half);
    await mkdir(dirname(copy), { recursive: true });
    await chmod(dirname(copy), 0o755);
    await rename(half, copy).catch(async () => await rm(half, { recursive: true, force: true }));
  }
  if (await canRun(account, join(copy, program))) return copy;
  throw new Error(`the account "${account.name}" can run neither "${original}" nor its copy "${copy}"`);
}

async function canRun(account: RunAs, program: string): Promise<boolean> {
  try {
    return (await runProgram([program, "--version"], { as: account, cwd: "/", timeoutMs: 20_000 })).exitCode === 0;
  } catch {
    return false;
  }
}

/** Root's own directory for copies; /tmp is everybody's, so a directory that somebody else made is not used. */
async function sharedDirectory(): Promise<string> {
  const path = join(shortTemporaryDirectory(), `walb-test-${process.getuid?.()}`);
  await mkdir(path, { mode: 0o755 }).catch(() => undefined);
  const { uid, mode } = await lstat(path);
  if (uid !== process.getuid?.() || (mode & 0o022) !== 0) throw new Error(`"${path}" belongs to somebody else`);
  await chmod(path, 0o755);
  return path;
}

async function removeOld(directory: string): Promise<void> {
  const aDayAgo = Date.now() - 86_400_000;
  for (const name of await readdir(directory)) {
    const path = join(directory, basename(name));
    const found = await stat(path).catch(() => undefined);
    if (found && found.ctimeMs < aDayAgo) await rm(path, { recursive: true, force: true });
  }
}

async function openForReading(path: string): Promise<void> {
  const found = await lstat(path);
  if (found.isSymbolicLink()) return;
  await chmod(path, found.isDirectory() || (found.mode & 0o100) !== 0 ? 0o755 : 0o644);
  if (!found.isDirectory()) return;
  for (const name of await readdir(path)) await openForReading(join(path, name));
}
