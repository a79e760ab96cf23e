/** Runs the compiled binary, the thing that users get. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { type RunAs, reachableBy, serverAccount } from "./account.ts";
import type { PostgresServer } from "./postgres-server.ts";
import { type ProgramResult, type RunOptions, runProgram } from "./run-program.ts";

const BUILT = resolve(import.meta.dir, "../../dist/wal-b");

/**
 * Path of dist/wal-b as the servers' account can run it, for archive_command and the like: itself, or a copy where
 * that account cannot enter the checkout.
 *
 * @throws Error  it is not built
 */
export async function walbBinary(account: RunAs = serverAccount()): Promise<string> {
  if (!existsSync(BUILT)) throw new Error(`"${BUILT}" is not there; run \`bun run build\` first`);
  if (!account) return BUILT;

  const { mtimeMs } = statSync(BUILT);
  const key = `${account.uid} ${mtimeMs}`;
  const known = REACHABLE.get(key) ?? reachableBy(account, BUILT, { copyName: nameOfCopy, program: "." });
  REACHABLE.set(key, known);
  return await known;
}

/** Of each build and account that this process has asked for. */
const REACHABLE = new Map<string, Promise<string>>();

async function nameOfCopy(): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(BUILT)) hash.update(chunk as Buffer);
  // The file keeps its name, because wal-b looks at the name that it was started under.
  return join(`build-${hash.digest("hex").slice(0, 16)}`, "wal-b");
}

export interface WalbOptions extends Omit<RunOptions, "as"> {
  /** As this server's account and with its PGHOST and so on; otherwise as whoever runs the tests. */
  readonly as?: PostgresServer | undefined;
}

/** The environment is `baseEnvironment()` and what is given, nothing of the developer's. */
export async function runWalb(args: readonly string[], { as, ...options }: WalbOptions = {}): Promise<ProgramResult> {
  const command = [await walbBinary(as ? as.account : undefined), ...args];
  return as ? await as.runAs(command, options) : await runProgram(command, options);
}
