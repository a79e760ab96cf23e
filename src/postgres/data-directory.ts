/**
 * What of a data directory belongs into a base backup, found lazily: memory grows with the largest single directory,
 * not with the database.
 *
 * Files come and go while this runs; WAL replay settles that, so what is gone is passed over. Anything else that
 * cannot be read is a failure, because nobody would miss it until it is restored.
 *
 * Symbolic links: those in pg_tblspc are tablespaces, pg_wal becomes a plain directory. Any other is followed with a
 * warning and backed up as what it points to. pg_basebackup skips these, and so loses a pg_xact or a database that
 * somebody moved to another disk; the restored copy does not need the other disk.
 */
import { lstat, readdir, readlink, realpath, stat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { SourceMissingError } from "../errors.ts";
import type { Log } from "../system/log.ts";
import { isEmptiedDirectory, namesToBackUp } from "./backup-exclusions.ts";
import { type DataEntry, EXACT, type Found, fileEntry, folderEntry, ifThere, lookAt } from "./data-entry.ts";
import type { TablespaceLink } from "./tablespace-map.ts";

export interface WalkOptions {
  /** "PG_15_202209061", see `tablespaceVersionDirectory`: other directories in a tablespace are other servers'. */
  readonly versionDirectory: string;
  /** Those of the backup, see `readTablespaceLinks`; no other link in pg_tblspc is followed. */
  readonly tablespaces: readonly TablespaceLink[];
  /** "exclude": pg_wal is an empty directory, its content comes from the archive. "include": of a stopped server, as are unlogged tables. */
  readonly wal: "exclude" | "include";
  readonly log: Log;
}

/** The directory inside a tablespace that belongs to servers of this version. Source: TABLESPACE_VERSION_DIRECTORY. */
export function tablespaceVersionDirectory(majorVersion: number, catalogVersion: number): string {
  return `PG_${majorVersion}_${catalogVersion}`;
}

/**
 * The tablespaces that a backup consists of, in the order of their OIDs; one in place is a directory like any other.
 *
 * Read once the backup has started: a tablespace whose creation is not in the WAL from there on has its link by then. The
 * catalogue may not show it yet, since the server waits for its standbys before it lets others see a transaction.
 *
 * @throws SourceMissingError  a link cannot be read, or its location cannot be text
 */
export async function readTablespaceLinks(dataDirectory: string): Promise<readonly TablespaceLink[]> {
  const directory = join(dataDirectory, "pg_tblspc");
  const names = (await ifThere(directory, (path) => readdir(path))) ?? [];
  const links: TablespaceLink[] = [];
  for (const name of names.filter((name) => TABLESPACE.test(`pg_tblspc/${name}`))) {
    const found = await lookAt({ path: "pg_tblspc", absolutePath: directory }, name);
    if (!found?.stats.isSymbolicLink()) continue;
    const target = await ifThere(found.absolutePath, (path) => readlink(path));
    if (target === undefined) continue;
    if (target.includes("\uFFFD")) await refuseUndecodableTarget(name, target);
    // The server's own are absolute.
    links.push({ oid: Number(name), location: resolve(directory, target) });
  }
  return links.sort((a, b) => a.oid - b.oid);
}

/**
 * Directories come before what is in them, names in byte order. The data directory itself, global/pg_control and
 * everything in `backup-exclusions.ts` are left out.
 *
 * @throws SourceMissingError  something is there and cannot be read; names it
 */
export async function* walkDataDirectory(dataDirectory: string, options: WalkOptions): AsyncGenerator<DataEntry> {
  const root = await ifThere(dataDirectory, (path) => realpath(path));
  if (root === undefined) throw new SourceMissingError(`data directory "${dataDirectory}" does not exist`);
  yield* new Walk(root, options, await tablespaceTargets(root)).content({
    path: "",
    absolutePath: root,
    realPath: root,
  });
}

interface Place {
  readonly path: string;
  readonly absolutePath: string;
  /** Without symbolic links, to notice when they lead in a circle. */
  readonly realPath: string;
}

/** How many files are looked at together: enough to hide a network file system's latency. */
const LOOK_AT_ONCE = 32;

class Walk {
  readonly #root: string;
  readonly #options: WalkOptions;
  readonly #tablespaces: ReadonlySet<string>;

  constructor(root: string, options: WalkOptions, tablespaces: ReadonlySet<string>) {
    this.#root = root;
    this.#options = options;
    this.#tablespaces = tablespaces;
  }

  async *content(place: Place): AsyncGenerator<DataEntry> {
    for await (const found of this.#children(place)) {
      const { stats, path } = found;
      if (stats.isFile()) yield fileEntry(found);
      else if (stats.isDirectory()) yield* this.#folder(found, join(place.realPath, basename(path)));
      else if (stats.isSymbolicLink()) yield* this.#link(found, place);
      else this.#options.log.warning(`"${path}" is a special file and is not backed up`);
    }
  }

  async *#children(place: Place): AsyncGenerator<Found> {
    const all = await ifThere(place.absolutePath, (path) => readdir(path));
    const server = this.#options.wal === "exclude" ? "running" : "stopped";
    const names = namesToBackUp(place.path, all ?? [], server).sort(byBytes);
    for (let start = 0; start < names.length; start += LOOK_AT_ONCE) {
      const batch = names.slice(start, start + LOOK_AT_ONCE);
      for (const found of await Promise.all(batch.map((name) => lookAt(place, name)))) if (found) yield found;
    }
  }

  /** @param found  with the facts of the directory itself, also where a link led to it */
  async *#folder(found: Found, realPath: string): AsyncGenerator<DataEntry> {
    yield folderEntry(found);
    const place = { ...found, realPath };
    if (isEmptiedDirectory(found.path)) return;
    if (found.path === "pg_wal" && this.#options.wal === "exclude") yield* this.#emptyWal(found);
    else if (TABLESPACE.test(found.path)) yield* this.#tablespaceContent(place);
    // A tablespace inside the data directory comes under pg_tblspc; once is enough.
    else if (!this.#tablespaces.has(realPath)) yield* this.content(place);
  }

  async *#link(found: Found, parent: Place): AsyncGenerator<DataEntry> {
    const { path, absolutePath } = found;
    const oid = TABLESPACE.exec(path)?.[1];
    // Created since the backup started: WAL replay creates it again, and fails where its directory is.
    if (oid !== undefined && !this.#options.tablespaces.some((link) => link.oid === Number(oid))) return;
    const linkTarget = await ifThere(absolutePath, (asked) => readlink(asked));
    if (linkTarget === undefined) return;
    const stats = await ifThere(absolutePath, (asked) => stat(asked, EXACT));
    const realPath = await ifThere(absolutePath, (asked) => realpath(asked));
    if (stats === undefined || realPath === undefined) return await this.#danglingLink(found, linkTarget, oid);
    const target = { path, absolutePath, stats };

    if (oid !== undefined && stats.isDirectory()) return yield* this.#tablespaceContent({ ...target, realPath });
    if (!stats.isFile() && !stats.isDirectory()) {
      return this.#options.log.warning(`"${path}" is a symbolic link to a special file and is not backed up`);
    }
    if (path !== "pg_wal" && !isEmptiedDirectory(path)) {
      this.#options.log.warning(`"${path}" is a symbolic link; what it points to is backed up in its place`, {
        detail: `It points to "${linkTarget}".`,
      });
    }
    if (stats.isFile()) return yield fileEntry(target);
    refuseCircle(path, realPath, parent);
    yield* this.#folder(target, realPath);
  }

  /** Directories that the server expects in pg_wal; archive_status it does not always make itself. */
  async *#emptyWal(wal: Found): AsyncGenerator<DataEntry> {
    for (const name of ["archive_status", "summaries"]) {
      const found = { path: `pg_wal/${name}`, absolutePath: join(wal.absolutePath, name) };
      const stats = await ifThere(found.absolutePath, (asked) => stat(asked, EXACT));
      if (stats?.isDirectory()) yield folderEntry({ ...found, stats });
      else if (name === "archive_status") yield folderEntry({ ...found, stats: wal.stats });
    }
  }

  async *#tablespaceContent(place: Place): AsyncGenerator<DataEntry> {
    const found = await this.#versionDirectory(place);
    if (found === undefined) return;
    yield folderEntry(found);
    yield* this.content({ ...found, realPath: join(place.realPath, this.#options.versionDirectory) });
  }

  /**
   * It is made before the link to it, and goes just before that: where it is missing and the link stays, it is not an empty
   * tablespace, but a mount point without its file system. Source: PostgreSQL, tablespace.c, create_tablespace_directories()
   * and destroy_tablespace_directories().
   */
  async #versionDirectory(tablespace: Place): Promise<Found | undefined> {
    const { versionDirectory } = this.#options;
    for (let looks = 0; looks < DROPPED_WITHIN_MS / LOOK_EVERY_MS; looks++) {
      if (looks > 0) await Bun.sleep(LOOK_EVERY_MS);
      const found = await lookAt(tablespace, versionDirectory);
      if (found?.stats.isDirectory()) return found;
      if ((await ifThere(tablespace.absolutePath, (path) => lstat(path))) === undefined) return undefined;
    }
    const oid = basename(tablespace.path);
    throw new SourceMissingError(`there is no directory "${versionDirectory}" of tablespace ${oid}`, {
      detail: `"${tablespace.absolutePath}" leads to "${tablespace.realPath}".`,
      hint: "Check that its file system is mounted.",
    });
  }

  async #danglingLink({ path, absolutePath }: Found, linkTarget: string, oid: string | undefined): Promise<void> {
    const detail = `It points to "${linkTarget}".`;
    if (oid !== undefined) {
      // Dropped in this moment, and its directory removed.
      if ((await ifThere(absolutePath, (asked) => readlink(asked))) === undefined) return;
      throw new SourceMissingError(`the directory of tablespace ${oid} does not exist`, {
        detail: `"${join(this.#root, path)}" points to "${linkTarget}".`,
        hint: "Check that its file system is mounted.",
      });
    }
    this.#options.log.warning(`"${path}" is a symbolic link to nothing and is not backed up`, { detail });
  }
}

/** Of a directory whose link goes next. */
const [DROPPED_WITHIN_MS, LOOK_EVERY_MS] = [2_000, 100];

const TABLESPACE = /^pg_tblspc\/(\d+)$/;

/** Where the tablespaces really are. */
async function tablespaceTargets(root: string): Promise<ReadonlySet<string>> {
  const links = join(root, "pg_tblspc");
  const names = (await ifThere(links, (path) => readdir(path))) ?? [];
  const targets = await Promise.all(names.map((name) => ifThere(join(links, name), (path) => realpath(path))));
  return new Set(targets.filter((target) => target !== undefined));
}

/** A restore could not make this location again, because it is not what the link says. */
async function refuseUndecodableTarget(oid: string, linkTarget: string): Promise<void> {
  if (await ifThere(linkTarget, (path) => stat(path))) return;
  throw new SourceMissingError(`the location of tablespace ${oid} is not UTF-8`, {
    detail: `It looks like "${linkTarget}".`,
    hint: "Move the tablespace to a directory with another name.",
  });
}

function refuseCircle(path: string, realPath: string, parent: Place): void {
  if (!`${parent.realPath}/`.startsWith(`${realPath}/`)) return;
  throw new SourceMissingError(`"${path}" is a symbolic link to a directory that it lies in`, {
    detail: `It points to "${realPath}".`,
    hint: "Remove the link.",
  });
}

const byBytes = (a: string, b: string) => (a < b ? -1 : a > b ? 1 : 0);
