/** verify --drill in a scratch directory of its own, and what it leaves there. */
import { afterAll } from "bun:test";
import { chmod, mkdtemp, readdir, readFile, rm, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, serverAccount, shortTemporaryDirectory } from "./account.ts";
import type { Environment } from "./backups.ts";
import type { PostgresServer } from "./postgres-server.ts";
import type { ProgramResult } from "./run-program.ts";
import { runWalb } from "./walb.ts";

/** What --json prints, and what is stored, as far as tests look at it. */
export interface DrillDocument {
  readonly format_version: number;
  readonly backup_name: string;
  readonly verdict: string;
  readonly postgres_version: string;
  readonly restore: { readonly files: number; readonly bytes: number; readonly seconds: number };
  readonly replay: { readonly start_lsn: number; readonly end_lsn: number; readonly wal_bytes: number };
  readonly recovery_seconds: number;
  readonly checks: { readonly databases: number; readonly indexes: number; readonly amcheck: string | null };
  readonly findings: readonly {
    readonly database: string | null;
    readonly relation: string | null;
    readonly problem: string;
    readonly detail: string | null;
  }[];
  readonly notes: readonly string[];
  readonly stored: string | null;
  readonly kept: string | null;
}

export const documentOf = ({ stdout }: ProgramResult) => JSON.parse(stdout) as DrillDocument;

const ENOUGH_BYTES = 500 * 2 ** 20;

/** In memory where there is enough of it: a restored server syncs a thousand files, and a disk that others use makes that slow. */
async function quickDirectory(): Promise<string> {
  const inMemory = await statfs("/dev/shm").catch(() => undefined);
  const isLarge = inMemory !== undefined && inMemory.bavail * inMemory.bsize > ENOUGH_BYTES;
  return isLarge ? "/dev/shm" : shortTemporaryDirectory();
}

/** A directory for scratch directories, which belongs to the servers' account and goes when it is disposed. */
export class ScratchParent implements AsyncDisposable {
  readonly path: string;
  /** Of the server that the backups are of, and so of the drill's. */
  readonly #bin: string;

  private constructor(path: string, bin: string) {
    [this.path, this.#bin] = [path, bin];
  }

  static async create(server: PostgresServer): Promise<ScratchParent> {
    const path = await mkdtemp(join(await quickDirectory(), "walb-scratch-"));
    await chmod(path, 0o755);
    await giveTo(serverAccount(), path);
    return new ScratchParent(path, server.bin("postgres").replace(/\/postgres$/, ""));
  }

  args(...others: readonly string[]): string[] {
    const bin = others.includes("--postgres-bin") ? [] : ["--postgres-bin", this.#bin];
    return ["verify", "--drill", "--scratch", this.path, ...bin, ...others];
  }

  /** @param as  the account of this server; whoever runs the tests if left out */
  async drill(env: Environment, args: readonly string[] = [], as?: PostgresServer): Promise<ProgramResult> {
    return await runWalb(this.args("--json", ...args), { env, as, timeoutMs: 200_000 });
  }

  /** Names of what is there. */
  async left(): Promise<readonly string[]> {
    return (await readdir(this.path)).sort();
  }

  /** The process of the drill's server, once there is one. */
  async serverPid(): Promise<number | undefined> {
    const [name = ""] = await this.left();
    const text = await readFile(join(this.path, name, "data/postmaster.pid"), "utf8").catch(() => "");
    return Number.parseInt(text, 10) || undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.path, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** A directory with a program "postgres": the server's own, which waits for WAL that never comes. Goes when it is disposed. */
export async function serverThatWaits(server: PostgresServer): Promise<AsyncDisposable & { readonly path: string }> {
  const path = await mkdtemp(join(shortTemporaryDirectory(), "walb-waits-"));
  await chmod(path, 0o755);
  const original = server.bin("postgres");
  const script = `if [ "$1" = --version ]; then exec ${original} --version; fi\nexec ${original} "$@" -c restore_command='sleep 1000'`;
  await writeFile(join(path, "postgres"), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  return { path, [Symbol.asyncDispose]: async () => await rm(path, { recursive: true, force: true }) };
}

interface OfDrills {
  readonly server: PostgresServer;
  readonly repository: AsyncDisposable;
  readonly scratch: ScratchParent;
}

/** For a test file's top: a story is told when a test first asks for it, and removed behind the last test. */
export function oncePerMajor<Story extends OfDrills>(tell: (major: number) => Promise<Story>) {
  const stories = new Map<number, Promise<Story>>();
  afterAll(async () => {
    for (const story of stories.values()) {
      const { server, repository, scratch } = await story;
      await server[Symbol.asyncDispose]();
      await repository[Symbol.asyncDispose]();
      await scratch[Symbol.asyncDispose]();
    }
  }, 60_000);
  return (major: number): Promise<Story> => {
    const known = stories.get(major) ?? tell(major);
    stories.set(major, known);
    return known;
  };
}
