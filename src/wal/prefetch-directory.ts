/**
 * Segments that are ready before recovery asks for them: what wal-fetch and the prefetcher share.
 *
 * DIRECTORY/<segment>.<hash>    ready: verified when it was written; the hash tells damage on disk, and what is from elsewhere
 * DIRECTORY/<segment>.loading   somebody reads it from the archive: the number of that process
 * DIRECTORY/position            the segment that recovery got last
 * DIRECTORY/prefetcher          the number of the one prefetcher's process, which touches the file every second
 *
 * Nothing here is needed: whatever is missing, or is removed under somebody's hands, wal-fetch reads from the archive.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { lstat, mkdir, readdir, readFile, rename, rm, stat, statfs, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DestinationError, systemCodeOf } from "../errors.ts";
import { isProcessRunning } from "../postgres/postmaster-pid.ts";
import { parseWalFile, type WalSegment } from "../postgres/wal-segment.ts";
import { TEMPORARY_FILE, writeFileAtomically } from "../system/atomic-file.ts";

const POSITION = "position";
const PREFETCHER = "prefetcher";
const LOADING = ".loading";
const READY = /^([0-9A-F]{24})\.([0-9a-f]{16})$/;

/** A prefetcher that has not touched its file for this long is dead, whoever has its number now. */
const DEAD_AFTER_MS = 5_000;
const POLL_MS = 5;
/** Small, so that reading uses the same memory again: fresh memory for a whole segment costs more than the hash. */
const HASHED_AT_ONCE = 256 * 1024;

export class PrefetchDirectory {
  readonly path: string;
  readonly #seed: bigint;

  /** @param source  names the repository and the cluster: a segment that is ready from another source counts as damaged */
  constructor(path: string, source: string) {
    this.path = path;
    this.#seed = Bun.hash.xxHash64(source);
  }

  /**
   * Puts a ready segment in place. One that is being loaded is waited for, as long as whoever loads it lives.
   *
   * Whatever the outcome, nobody begins to load it until endLoading().
   *
   * @returns "not ready": the caller loads it. "damaged" is the same, after what was ready had to be removed
   */
  async take(segment: string, destination: string, waitMs: number): Promise<"taken" | "not ready" | "damaged"> {
    if (!(await this.#isThere())) return "not ready";
    for (const until = performance.now() + waitMs; ; await Bun.sleep(POLL_MS)) {
      // Asked before the names: a load that ends in between has put its segment among them.
      const isLoading = await this.#isLoading(segment);
      const ready = (await this.#names()).find((name) => READY.exec(name)?.[1] === segment);
      if (ready !== undefined) {
        // Or the prefetcher would miss it before it hears where recovery is, and load it again.
        await this.beginLoading(segment);
        return await this.#place(ready, destination);
      }
      if (!isLoading && (await this.beginLoading(segment))) return "not ready";
      if (performance.now() > until) return "not ready";
    }
  }

  async #place(name: string, destination: string): Promise<"taken" | "not ready" | "damaged"> {
    const path = join(this.path, name);
    const [, segment = "", expected] = READY.exec(name) ?? [];
    try {
      if (this.#hash(segment, piecesOfFile(path)) !== expected) {
        await rm(path, { force: true });
        return "damaged";
      }
      await rename(path, destination);
      return "taken";
    } catch (error) {
      if (systemCodeOf(error) === "ENOENT") return "not ready";
      if (systemCodeOf(error) !== "EXDEV") throw error;
    }
    // The directory was moved to another file system by its setting.
    const content = await readFile(path);
    if (this.#hash(segment, piecesOf(content)) !== expected) return "damaged";
    await writeFileAtomically(destination, content, { mode: 0o600, durability: "left to PostgreSQL" });
    await rm(path, { force: true });
    return "taken";
  }

  /** Where recovery is; undefined when nobody has said so. */
  async position(): Promise<WalSegment | undefined> {
    const file = parseWalFile(await readFile(join(this.path, POSITION), "utf8").catch(() => ""));
    return file?.kind === "segment" ? file : undefined;
  }

  /** Tells the prefetcher that is at work, if it still is. */
  async setPosition(segment: string): Promise<void> {
    await writeFile(join(this.path, POSITION), segment, { mode: 0o600 }).catch(ignoring("ENOENT"));
  }

  /** For a prefetcher that is about to be started. The directory that it is made in must be there. */
  async create(position: string): Promise<void> {
    await mkdir(this.path, { mode: 0o700 }).catch(ignoring("EEXIST"));
    await this.#isThere();
    await this.setPosition(position);
  }

  /** @returns "alive", "dead" when one was killed and left its directory, or "none" */
  async prefetcher(): Promise<"alive" | "dead" | "none"> {
    if (!(await this.#isThere())) return "none";
    const path = join(this.path, PREFETCHER);
    const touched = await stat(path).catch(() => undefined);
    const isFresh = touched !== undefined && Date.now() - touched.mtimeMs < DEAD_AFTER_MS;
    return isFresh && lives(await numberIn(path)) ? "alive" : "dead";
  }

  /**
   * Becomes the one prefetcher, in place of a dead one. Of two that try at the same moment both may succeed; then one finds
   * out at its next isHeld().
   *
   * @returns undefined when another one is at work
   */
  async claim(): Promise<PrefetchClaim | undefined> {
    await mkdir(this.path, { mode: 0o700 }).catch(ignoring("EEXIST"));
    if ((await this.prefetcher()) === "alive") return undefined;
    const path = join(this.path, PREFETCHER);
    await rm(path, { force: true });
    try {
      await writeFile(path, String(process.pid), { mode: 0o600, flag: "wx" });
    } catch (error) {
      if (systemCodeOf(error) === "EEXIST") return undefined;
      throw error;
    }
    const isMine = async () => (await numberIn(path)) === process.pid;
    return {
      async isHeld() {
        if (!(await isMine())) return false;
        const now = new Date();
        await utimes(path, now, now).catch(() => {});
        return true;
      },
      [Symbol.asyncDispose]: async () => {
        if (await isMine()) await this.remove();
      },
    };
  }

  /** Segments that are ready. */
  async ready(): Promise<ReadonlySet<string>> {
    return new Set((await this.#names()).flatMap((name) => READY.exec(name)?.[1] ?? []));
  }

  /** @returns false when somebody else who lives is loading it */
  async beginLoading(segment: string): Promise<boolean> {
    const path = join(this.path, `${segment}${LOADING}`);
    try {
      await writeFile(path, String(process.pid), { mode: 0o600, flag: "wx" });
    } catch (error) {
      if (systemCodeOf(error) === "ENOENT") return true;
      if (systemCodeOf(error) !== "EEXIST") throw error;
      if (await this.#isLoading(segment)) return false;
      await writeFile(path, String(process.pid), { mode: 0o600 });
    }
    return true;
  }

  async endLoading(segment: string): Promise<void> {
    await rm(join(this.path, `${segment}${LOADING}`), { force: true });
  }

  async #isLoading(segment: string): Promise<boolean> {
    const number = await numberIn(join(this.path, `${segment}${LOADING}`));
    return number !== process.pid && lives(number);
  }

  /** @param content  verified */
  async put(segment: string, content: Uint8Array): Promise<void> {
    const path = join(this.path, `${segment}.${this.#hash(segment, piecesOf(content))}`);
    await writeFileAtomically(path, content, { mode: 0o600, durability: "left to PostgreSQL" });
  }

  /**
   * Removes segments that are not in `wanted`, and what a killed process left.
   *
   * @param wanted  with those that the caller is loading
   */
  async keepOnly(wanted: ReadonlySet<string>): Promise<void> {
    for (const name of await this.#names()) {
      const segment = READY.exec(name)?.[1] ?? (name.endsWith(LOADING) ? name.slice(0, -LOADING.length) : undefined);
      const isLeft = segment === undefined ? await this.#isAbandoned(name) : !wanted.has(segment);
      if (isLeft) await rm(join(this.path, name), { force: true }).catch(() => {});
    }
  }

  async #isAbandoned(name: string): Promise<boolean> {
    if (!TEMPORARY_FILE.test(name)) return false;
    const found = await stat(join(this.path, name)).catch(() => undefined);
    return found !== undefined && Date.now() - found.mtimeMs > DEAD_AFTER_MS;
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.path);
    return bavail * bsize;
  }

  async remove(): Promise<void> {
    // Again when somebody put a file there meanwhile.
    await rm(this.path, { recursive: true, force: true, maxRetries: 3, retryDelay: 20 });
  }

  /** Of the content, the name and the source. */
  #hash(segment: string, pieces: Iterable<Uint8Array>): string {
    let hash = Bun.hash.xxHash64(segment, this.#seed);
    for (const piece of pieces) hash = Bun.hash.xxHash3(piece, hash);
    return hash.toString(16).padStart(16, "0");
  }

  /** @throws DestinationError  somebody else could write to it, or it is no directory */
  async #isThere(): Promise<boolean> {
    const found = await lstat(this.path).catch(ignoring("ENOENT"));
    if (found === undefined) return false;
    if (found.isDirectory() && found.uid === process.geteuid?.() && (found.mode & 0o022) === 0) return true;
    throw new DestinationError(`"${this.path}" is not a directory that only this account can write to`);
  }

  async #names(): Promise<readonly string[]> {
    return (await readdir(this.path).catch(ignoring("ENOENT"))) ?? [];
  }
}

export interface PrefetchClaim extends AsyncDisposable {
  /** Shows that the prefetcher lives. @returns false when the directory is another's by now, or gone */
  isHeld(): Promise<boolean>;
}

function* piecesOf(content: Uint8Array): Iterable<Uint8Array> {
  for (let at = 0; at < content.byteLength; at += HASHED_AT_ONCE) yield content.subarray(at, at + HASHED_AT_ONCE);
}

function* piecesOfFile(path: string): Iterable<Uint8Array> {
  const buffer = new Uint8Array(HASHED_AT_ONCE);
  const file = openSync(path, "r");
  try {
    for (let filled = HASHED_AT_ONCE; filled === HASHED_AT_ONCE; ) {
      filled = readFully(file, buffer);
      if (filled > 0) yield buffer.subarray(0, filled);
    }
  } finally {
    closeSync(file);
  }
}

/** @returns fewer bytes than the buffer has only at the end of the file */
function readFully(file: number, buffer: Uint8Array): number {
  for (let filled = 0; ; ) {
    const read = readSync(file, buffer, filled, buffer.byteLength - filled, null);
    filled += read;
    if (read === 0 || filled === buffer.byteLength) return filled;
  }
}

/** A process number; 0 when the file is missing or has none yet. */
async function numberIn(path: string): Promise<number> {
  return Number(await readFile(path, "utf8").catch(() => "")) || 0;
}

/** 0 and what is below stand for groups of processes. */
const lives = (number: number) => number > 0 && isProcessRunning(number);

const ignoring = (code: string) => (error: unknown) => {
  if (systemCodeOf(error) !== code) throw error;
  return undefined;
};
