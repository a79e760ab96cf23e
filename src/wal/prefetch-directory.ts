/**
 * Segments that are ready before recovery asks for them: what wal-fetch and the prefetcher share.
 *
 * DIRECTORY/<segment>.<hash>    ready: verified when it was written; the hash tells damage on disk, and what is from elsewhere
 * DIRECTORY/<segment>.loading   somebody reads it from the archive: the number of that process
 * DIRECTORY/position            the segment that recovery got last
 * DIRECTORY/prefetcher          the number of the one prefetcher's process, which touches the file every second
 *
 * Nothing here is needed: whatever is missing, or is removed under somebody's hands, wal-fetch reads from the archive.
 *
 * The calls are synchronous: each takes microseconds, and wal-fetch, which makes a few and ends, would first start the threads
 * that asynchronous ones run on.
 */
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { DestinationError, systemCodeOf } from "../errors.ts";
import { isProcessRunning } from "../postgres/postmaster-pid.ts";
import { parseWalFile, type WalSegment } from "../postgres/wal-segment.ts";
import { readFully } from "../system/read-fully.ts";
import { TEMPORARY_NAME } from "../system/temporary-name.ts";

const POSITION = "position";
const PREFETCHER = "prefetcher";
const LOADING = ".loading";
const READY = /^([0-9A-F]{24})\.([0-9a-f]{16})$/;

/** A prefetcher that has not touched its file for this long is dead, whoever has its number now. */
const DEAD_AFTER_MS = 5_000;
const POLL_MS = 5;
/**
 * Small, so that reading uses the same memory again: fresh memory for a whole segment costs more than the hash. Large enough for a
 * segment of 16 MiB to come in fewer than thirty pieces (docs/decisions/0014-prefetch-hit.md).
 */
const HASHED_AT_ONCE = 1024 * 1024;

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
    if (!this.#isThere()) return "not ready";
    for (const until = performance.now() + waitMs; ; await Bun.sleep(POLL_MS)) {
      // Asked before the names: a load that ends in between has put its segment among them.
      const isLoading = this.#isLoading(segment);
      const ready = this.#names().find((name) => READY.exec(name)?.[1] === segment);
      if (ready !== undefined) {
        // Or the prefetcher would miss it before it hears where recovery is, and load it again.
        this.beginLoading(segment);
        return await this.#place(ready, destination);
      }
      if (!isLoading && this.beginLoading(segment)) return "not ready";
      if (performance.now() > until) return "not ready";
    }
  }

  async #place(name: string, destination: string): Promise<"taken" | "not ready" | "damaged"> {
    const path = join(this.path, name);
    const [, segment = "", expected] = READY.exec(name) ?? [];
    try {
      const hash = this.#hashOf(segment);
      for (const piece of piecesOfFile(path)) hash.update(piece);
      if (hash.digest() !== expected) {
        rmSync(path, { force: true });
        return "damaged";
      }
      renameSync(path, destination);
      return "taken";
    } catch (error) {
      if (systemCodeOf(error) === "ENOENT") return "not ready";
      if (systemCodeOf(error) !== "EXDEV") throw error;
    }
    // The directory was moved to another file system by its setting.
    const { AtomicFile } = await import("../system/atomic-file.ts");
    await using copy = new AtomicFile(dirname(destination), 0o600);
    const hash = this.#hashOf(segment);
    for (const piece of piecesOfFile(path)) {
      hash.update(piece);
      await copy.write(piece);
    }
    // Read once more, it may have become another.
    if (hash.digest() !== expected) return "damaged";
    await copy.publish(destination, "left to PostgreSQL");
    rmSync(path, { force: true });
    return "taken";
  }

  /** Where recovery is; undefined when nobody has said so. */
  position(): WalSegment | undefined {
    const file = parseWalFile(textIn(join(this.path, POSITION)));
    return file?.kind === "segment" ? file : undefined;
  }

  /** Tells the prefetcher that is at work, if it still is. */
  setPosition(segment: string): void {
    ignoring("ENOENT", () => writeFileSync(join(this.path, POSITION), segment, { mode: 0o600 }));
  }

  /** For a prefetcher that is about to be started. The directory that it is made in must be there. */
  create(position: string): void {
    this.#make();
    this.#isThere();
    this.setPosition(position);
  }

  /** @returns "alive", "dead" when one was killed and left its directory, or "none" */
  prefetcher(): "alive" | "dead" | "none" {
    if (!this.#isThere()) return "none";
    const path = join(this.path, PREFETCHER);
    const touched = statSync(path, { throwIfNoEntry: false });
    const isFresh = touched !== undefined && Date.now() - touched.mtimeMs < DEAD_AFTER_MS;
    return isFresh && lives(numberIn(path)) ? "alive" : "dead";
  }

  /**
   * Becomes the one prefetcher, in place of a dead one. Of two that try at the same moment both may succeed; then one finds
   * out at its next isHeld().
   *
   * @returns undefined when another one is at work
   */
  claim(): PrefetchClaim | undefined {
    this.#make();
    if (this.prefetcher() === "alive") return undefined;
    const path = join(this.path, PREFETCHER);
    rmSync(path, { force: true });
    try {
      writeFileSync(path, String(process.pid), { mode: 0o600, flag: "wx" });
    } catch (error) {
      if (systemCodeOf(error) === "EEXIST") return undefined;
      throw error;
    }
    const isMine = () => numberIn(path) === process.pid;
    return {
      isHeld() {
        if (!isMine()) return false;
        const now = new Date();
        ignoring("ENOENT", () => utimesSync(path, now, now));
        return true;
      },
      [Symbol.dispose]: () => {
        if (isMine()) this.remove();
      },
    };
  }

  /** Segments that are ready. */
  ready(): ReadonlySet<string> {
    return new Set(this.#names().flatMap((name) => READY.exec(name)?.[1] ?? []));
  }

  /** @returns false when somebody else who lives is loading it */
  beginLoading(segment: string): boolean {
    const path = join(this.path, `${segment}${LOADING}`);
    try {
      writeFileSync(path, String(process.pid), { mode: 0o600, flag: "wx" });
    } catch (error) {
      if (systemCodeOf(error) === "ENOENT") return true;
      if (systemCodeOf(error) !== "EEXIST") throw error;
      if (this.#isLoading(segment)) return false;
      writeFileSync(path, String(process.pid), { mode: 0o600 });
    }
    return true;
  }

  endLoading(segment: string): void {
    rmSync(join(this.path, `${segment}${LOADING}`), { force: true });
  }

  #isLoading(segment: string): boolean {
    const number = numberIn(join(this.path, `${segment}${LOADING}`));
    return number !== process.pid && lives(number);
  }

  /** @param pieces  verified when the last has come; why they do not come is passed on */
  async put(segment: string, pieces: AsyncIterable<Uint8Array>): Promise<void> {
    const { AtomicFile } = await import("../system/atomic-file.ts");
    await using file = new AtomicFile(this.path, 0o600);
    const hash = this.#hashOf(segment);
    for await (const piece of pieces) {
      hash.update(piece);
      await file.write(piece);
    }
    await file.publish(join(this.path, `${segment}.${hash.digest()}`), "left to PostgreSQL");
  }

  /**
   * Removes segments that are not in `wanted`, and what a killed process left.
   *
   * @param wanted  with those that the caller is loading
   */
  keepOnly(wanted: ReadonlySet<string>): void {
    for (const name of this.#names()) {
      const segment = READY.exec(name)?.[1] ?? (name.endsWith(LOADING) ? name.slice(0, -LOADING.length) : undefined);
      const isLeft = segment === undefined ? this.#isAbandoned(name) : !wanted.has(segment);
      if (isLeft) rmSync(join(this.path, name), { force: true });
    }
  }

  #isAbandoned(name: string): boolean {
    if (!name.startsWith(TEMPORARY_NAME)) return false;
    const found = statSync(join(this.path, name), { throwIfNoEntry: false });
    return found !== undefined && Date.now() - found.mtimeMs > DEAD_AFTER_MS;
  }

  freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.path);
    return bavail * bsize;
  }

  remove(): void {
    // Again when somebody put a file there meanwhile.
    rmSync(this.path, { recursive: true, force: true, maxRetries: 3, retryDelay: 20 });
  }

  #hashOf(segment: string): PiecewiseHash {
    return new PiecewiseHash(Bun.hash.xxHash64(segment, this.#seed));
  }

  /** @throws DestinationError  somebody else could write to it, or it is no directory */
  #isThere(): boolean {
    const found = lstatSync(this.path, { throwIfNoEntry: false });
    if (found === undefined) return false;
    if (found.isDirectory() && found.uid === process.geteuid?.() && (found.mode & 0o022) === 0) return true;
    throw new DestinationError(`"${this.path}" is not a directory that only this account can write to`);
  }

  #make(): void {
    ignoring("EEXIST", () => mkdirSync(this.path, { mode: 0o700 }));
  }

  #names(): readonly string[] {
    return ignoring("ENOENT", () => readdirSync(this.path)) ?? [];
  }
}

export interface PrefetchClaim extends Disposable {
  /** Shows that the prefetcher lives. @returns false when the directory is another's by now, or gone */
  isHeld(): boolean;
}

/** Of pieces of HASHED_AT_ONCE bytes, however they come; each hash is the seed of the next. */
class PiecewiseHash {
  #hash: bigint;
  /** Needed for pieces of other sizes alone. */
  #piece: Uint8Array | undefined;
  #filled = 0;

  /** @param seed  what is hashed besides the content: the name and the source */
  constructor(seed: bigint) {
    this.#hash = seed;
  }

  update(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.byteLength; ) {
      const taken = bytes.subarray(at, at + HASHED_AT_ONCE - this.#filled);
      at += taken.byteLength;
      if (taken.byteLength === HASHED_AT_ONCE) {
        this.#hash = Bun.hash.xxHash3(taken, this.#hash);
        continue;
      }
      this.#piece ??= new Uint8Array(HASHED_AT_ONCE);
      this.#piece.set(taken, this.#filled);
      this.#filled += taken.byteLength;
      if (this.#filled === HASHED_AT_ONCE) this.#addFilled();
    }
  }

  digest(): string {
    if (this.#filled > 0) this.#addFilled();
    return this.#hash.toString(16).padStart(16, "0");
  }

  #addFilled(): void {
    this.#hash = Bun.hash.xxHash3(this.#piece?.subarray(0, this.#filled) ?? "", this.#hash);
    this.#filled = 0;
  }
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

/** A process number; 0 when the file is missing or has none yet. */
function numberIn(path: string): number {
  return Number(textIn(path)) || 0;
}

/** Empty when there is no such file. */
function textIn(path: string): string {
  return ignoring("ENOENT", () => readFileSync(path, "utf8")) ?? "";
}

/** 0 and what is below stand for groups of processes. */
const lives = (number: number) => number > 0 && isProcessRunning(number);

function ignoring<Result>(code: string, work: () => Result): Result | undefined {
  try {
    return work();
  } catch (error) {
    if (systemCodeOf(error) === code) return undefined;
    throw error;
  }
}
