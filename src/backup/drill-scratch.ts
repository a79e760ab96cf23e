/** The private directory that a drill works in, and what drills that were killed have left. */
import { existsSync } from "node:fs";
import { chown, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DestinationError, reasonOf, UsageError } from "../errors.ts";
import { isProcessRunning, readPostmasterPid } from "../postgres/postmaster-pid.ts";
import { mostWalBytes } from "../postgres/scratch-settings.ts";
import { accountNamed } from "../system/account.ts";
import { destinationError } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { formatBytes } from "../system/quantity.ts";
import type { Owner } from "./owner.ts";

const PREFIX = "walb-drill-";
/** Holds the number of the process whose directory it is. */
const PROCESS_FILE = "process";
const SOCKET_FILE = ".s.PGSQL.5432";
/** sun_path without its NUL. */
const LONGEST_SOCKET_PATH = 107;

export class DrillScratch implements AsyncDisposable {
  readonly directory: string;
  readonly #log: Log;
  #isKept = false;

  constructor(directory: string, log: Log) {
    this.directory = directory;
    this.#log = log;
  }

  get dataDirectory(): string {
    return join(this.directory, "data");
  }

  get socketDirectory(): string {
    return join(this.directory, "s");
  }

  path(name: string): string {
    return join(this.directory, name);
  }

  async keep(): Promise<void> {
    this.#isKept = true;
    await rm(this.path(PROCESS_FILE));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isKept) return;
    try {
      await removeTree(this.directory);
    } catch (error) {
      this.#log.warning(`could not remove "${this.directory}"`, {
        detail: `${reasonOf(error)}.`,
        hint: "It holds a copy of the database. Remove it.",
      });
    }
  }
}

const REMOVING_TRIES = 100;
const REMOVING_PAUSE_MS = 100;

/** A prefetcher outlives the server by a moment, and may write under our hands: rm() then leaves what it wrote, and says nothing. */
async function removeTree(directory: string): Promise<void> {
  let failure: unknown = new Error("somebody still writes into it");
  for (let tries = 0; tries < REMOVING_TRIES; tries++) {
    if (tries > 0) await new Promise((resolve) => setTimeout(resolve, REMOVING_PAUSE_MS));
    await rm(directory, { recursive: true, force: true }).catch((error: unknown) => {
      failure = error;
    });
    if (!existsSync(directory)) return;
  }
  throw failure;
}

/**
 * Who the server runs as: whoever runs this; for root the owner of the directory, or the account "postgres".
 *
 * @returns undefined for whoever runs this
 * @throws UsageError  PostgreSQL refuses to run as root, and there is nobody else
 */
export async function drillAccount(parent: string): Promise<Owner | undefined> {
  const found = await stat(parent).catch((cause: unknown) => {
    throw destinationError(`could not use "${parent}"`, cause);
  });
  if (process.geteuid?.() !== 0) return undefined;
  if (found.uid !== 0) return { uid: found.uid, gid: found.gid };
  const account = accountNamed("postgres");
  if (account !== undefined) return account;
  throw new UsageError("PostgreSQL does not run as root, and it is not said who it is to run as", {
    detail: `"${parent}" belongs to root, and there is no account "postgres".`,
    hint: "Say --scratch with a directory that belongs to the account that is to run the server.",
  });
}

/** @throws DestinationError  the file system refuses @throws UsageError  the path is too long for a socket */
export async function makeScratch(parent: string, owner: Owner | undefined, log: Log): Promise<DrillScratch> {
  const socketPath = join(parent, `${PREFIX}XXXXXX`, "s", SOCKET_FILE);
  const tooLong = Buffer.byteLength(socketPath) - LONGEST_SOCKET_PATH;
  if (tooLong > 0 || /[\0\n\r]/.test(parent)) {
    throw new UsageError(`"${parent}" cannot be the scratch directory`, {
      detail: tooLong > 0 ? `The path of a socket in it would be ${tooLong} bytes too long.` : "It has a line's end.",
      hint: "Say --scratch with a shorter one.",
    });
  }
  await tellLeftovers(parent, log);
  try {
    // For nobody but the owner, from the beginning.
    const scratch = new DrillScratch(await mkdtemp(join(parent, PREFIX)), log);
    await writeFile(scratch.path(PROCESS_FILE), `${process.pid}\n`, { mode: 0o600 });
    await mkdir(scratch.socketDirectory, { mode: 0o700 });
    if (owner) for (const path of [scratch.directory, scratch.socketDirectory]) await chown(path, owner.uid, owner.gid);
    return scratch;
  } catch (cause) {
    throw destinationError(`could not make a directory in "${parent}"`, cause);
  }
}

async function tellLeftovers(parent: string, log: Log): Promise<void> {
  for (const name of await readdir(parent).catch(() => [])) {
    const directory = join(parent, name);
    const text = name.startsWith(PREFIX) ? await readIfAllowed(join(directory, PROCESS_FILE)) : undefined;
    // Our own number was somebody else's before: in a container the same come again.
    if (text === undefined || (Number(text) !== process.pid && isProcessRunning(Number(text)))) continue;
    const server = readPostmasterPid(join(directory, "data"));
    const runs = server !== undefined && isProcessRunning(server.pid);
    log.warning(`a drill that was killed has left "${directory}"`, {
      detail: runs ? `Its server still runs, as process ${server.pid}.` : "It holds a copy of the database.",
      hint: runs ? `End the server with "kill -QUIT ${server.pid}", and remove the directory.` : "Remove it.",
    });
  }
}

/** What is somebody else's, or was kept, has nothing to tell. */
async function readIfAllowed(path: string): Promise<string | undefined> {
  return await readFile(path, "utf8").catch(() => undefined);
}

/** @throws DestinationError  less is free than will come while WAL is replayed */
export function checkSpaceForWal(
  { directory, bytes, freeBytes }: { readonly directory: string; readonly bytes: number; readonly freeBytes: number },
  { segments, segmentSize }: { readonly segments: number; readonly segmentSize: number },
): void {
  const needed = bytes + Math.min(segments * segmentSize, mostWalBytes(segmentSize));
  if (needed <= freeBytes) return;
  throw new DestinationError(`the backup and the WAL that is replayed do not fit into "${directory}"`, {
    detail: `${formatBytes(needed)} go there, and ${formatBytes(freeBytes)} are free.`,
    hint: "Nothing was restored. Free some space, or say --scratch with a directory on another file system.",
  });
}
