/**
 * Segments that are ready before recovery asks for them, on the disk of pg_wal: what wal-fetch and the prefetcher share.
 *
 * DIRECTORY/<segment>.<XXH64 of its content>   ready: verified when it was written; the hash tells damage on disk
 * DIRECTORY/<segment>.loading                  the prefetcher is reading it from the archive
 * DIRECTORY/position                           the segment that recovery asked for last
 * DIRECTORY/prefetcher                         touched every second by the one prefetcher there is
 */
import { randomBytes } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat, statfs, unlink, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { systemCodeOf } from "../errors.ts";
import { writeFileAtomically } from "../system/atomic-file.ts";

const POSITION = "position";
const PREFETCHER = "prefetcher";
const LOADING = ".loading";
const READY = /^([0-9A-F]{24})\.([0-9a-f]{16})$/;

/** A prefetcher that has not touched its file for this long is dead. */
const DEAD_AFTER_MS = 5_000;
const POLL_MS = 5;

/** All methods but remove() leave alone what they do not know. */
export class PrefetchDirectory {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /**
   * Puts a ready segment in place. One that is being loaded is waited for, as long as its prefetcher lives.
   *
   * @returns "taken", or "not ready": also for one that is damaged, which is removed
   */
  async take(segment: string, destination: string, waitMs: number): Promise<"taken" | "not ready"> {
    for (const until = Date.now() + waitMs; ; await Bun.sleep(POLL_MS)) {
      const names = await this.#names();
      const ready = names.find((name) => READY.exec(name)?.[1] === segment);
      if (ready !== undefined) return this.#place(ready, destination);
      if (!names.includes(`${segment}${LOADING}`) || Date.now() > until || !(await this.hasPrefetcher()))
        return "not ready";
    }
  }

  async #place(name: string, destination: string): Promise<"taken" | "not ready"> {
    const path = join(this.path, name);
    const content = await readFile(path).catch(() => undefined);
    if (content === undefined || hashOf(content) !== READY.exec(name)?.[2]) {
      await rm(path, { force: true });
      return "not ready";
    }
    try {
      await rename(path, destination);
    } catch (error) {
      // The directory was moved to another file system by its setting.
      if (systemCodeOf(error) !== "EXDEV") throw error;
      await writeFileAtomically(destination, content, { mode: 0o600, durability: "left to PostgreSQL" });
      await rm(path, { force: true });
    }
    return "taken";
  }

  /** Tells the prefetcher where recovery is. */
  async setPosition(segment: string): Promise<void> {
    await mkdir(this.path, { recursive: true, mode: 0o700 });
    const temporary = join(this.path, `${POSITION}.${process.pid}`);
    await writeFile(temporary, segment, { mode: 0o600 });
    await rename(temporary, join(this.path, POSITION));
  }

  async position(): Promise<string | undefined> {
    return readFile(join(this.path, POSITION), "utf8").catch(() => undefined);
  }

  async hasPrefetcher(): Promise<boolean> {
    const found = await stat(join(this.path, PREFETCHER)).catch(() => undefined);
    return found !== undefined && Date.now() - found.mtimeMs < DEAD_AFTER_MS;
  }

  /**
   * Becomes the one prefetcher; a dead one's place is taken over.
   *
   * @returns what to hand to stillClaimed(); undefined when another one is at work
   */
  async claim(): Promise<string | undefined> {
    await mkdir(this.path, { recursive: true, mode: 0o700 });
    if (await this.hasPrefetcher()) return undefined;
    const path = join(this.path, PREFETCHER);
    const claim = randomBytes(16).toString("hex");
    await rm(path, { force: true });
    try {
      await writeFile(path, claim, { mode: 0o600, flag: "wx" });
      return claim;
    } catch (error) {
      if (systemCodeOf(error) === "EEXIST") return undefined;
      throw error;
    }
  }

  /** Shows that the prefetcher lives. @returns false when two took over at once, and the other one has the place */
  async stillClaimed(claim: string): Promise<boolean> {
    const path = join(this.path, PREFETCHER);
    if ((await readFile(path, "utf8").catch(() => undefined)) !== claim) return false;
    const now = new Date();
    await utimes(path, now, now);
    return true;
  }

  /** Segments that are ready. */
  async ready(): Promise<ReadonlySet<string>> {
    return new Set((await this.#names()).flatMap((name) => READY.exec(name)?.[1] ?? []));
  }

  async beginLoading(segment: string): Promise<void> {
    await writeFile(join(this.path, `${segment}${LOADING}`), "", { mode: 0o600 });
  }

  async endLoading(segment: string): Promise<void> {
    await rm(join(this.path, `${segment}${LOADING}`), { force: true });
  }

  /** @param content  verified */
  async put(segment: string, content: Uint8Array): Promise<void> {
    const path = join(this.path, `${segment}.${hashOf(content)}`);
    await writeFileAtomically(path, content, { mode: 0o600, durability: "left to PostgreSQL" });
  }

  /** Removes segments, and marks of them, that are not in `wanted`. */
  async keepOnly(wanted: ReadonlySet<string>): Promise<void> {
    for (const name of await this.#names()) {
      const segment = READY.exec(name)?.[1] ?? (name.endsWith(LOADING) ? name.slice(0, -LOADING.length) : undefined);
      if (segment !== undefined && !wanted.has(segment)) await unlink(join(this.path, name)).catch(() => {});
      // What a killed prefetcher was writing.
      if (name.startsWith("xlogtemp.walb.") || name.startsWith(`${POSITION}.`)) await this.#removeIfOld(name);
    }
  }

  async #removeIfOld(name: string): Promise<void> {
    const path = join(this.path, name);
    const found = await stat(path).catch(() => undefined);
    if (found && Date.now() - found.mtimeMs > DEAD_AFTER_MS) await rm(path, { force: true });
  }

  async freeBytes(): Promise<number> {
    const { bavail, bsize } = await statfs(this.path);
    return bavail * bsize;
  }

  async remove(): Promise<void> {
    await rm(this.path, { recursive: true, force: true });
  }

  async #names(): Promise<readonly string[]> {
    return readdir(this.path).catch((error: unknown) => {
      if (systemCodeOf(error) === "ENOENT") return [];
      throw error;
    });
  }
}

const hashOf = (content: Uint8Array) => Bun.hash.xxHash64(content).toString(16).padStart(16, "0");
