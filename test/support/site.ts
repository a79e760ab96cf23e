/**
 * A database host without a server: a data directory with pg_wal, a repository beside it, and wal-b to run between the two.
 * Everything that a command could change is listed byte for byte, so that a test can say "nothing changed".
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { zstdCompressSync } from "node:zlib";
import { controlFile } from "../unit/postgres/control-file.ts";
import { giveTo, type RunAs, shortTemporaryDirectory } from "./account.ts";
import { inOwnNamespace } from "./mounts.ts";
import { type ProgramResult, type RunOptions, runProgram } from "./run-program.ts";
import { SYSTEM_IDENTIFIER, type WalContentOptions, walContent } from "./wal-content.ts";
import { walbBinary } from "./walb.ts";

/** Path → what is there: "directory 755", "file 600 <bytes> <sha256>", "link <target>". */
export type Listing = Readonly<Record<string, string>>;

export class Site implements AsyncDisposable {
  readonly directory: string;
  readonly data: string;
  readonly repository: string;
  /** Where archived WAL is. */
  readonly archive: string;
  readonly program: string;
  readonly account: RunAs;

  private constructor(directory: string, program: string, account: RunAs) {
    this.directory = directory;
    this.data = join(directory, "data");
    this.repository = join(directory, "repository");
    this.archive = join(this.repository, "wal_005");
    this.program = program;
    this.account = account;
  }

  /** @param account  owns everything and runs the commands; whoever runs the tests if left out */
  static async create(account?: RunAs): Promise<Site> {
    const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-site-"));
    await chmod(directory, 0o755);
    const site = new Site(directory, await walbBinary(account), account);
    for (const path of ["data", "data/pg_wal", "data/pg_wal/archive_status", "data/global", "repository", "tmp"]) {
      await mkdir(join(directory, path), { mode: 0o755 });
      await giveTo(account, join(directory, path));
    }
    return site;
  }

  /** Without prefetching, which would go on after a command has ended. */
  get env(): Record<string, string> {
    return { WALB_FILE_PREFIX: this.repository, TMPDIR: join(this.directory, "tmp"), WALB_PREFETCH: "0" };
  }

  /** Runs wal-b in the data directory, as PostgreSQL does. */
  async walb(args: readonly string[], options: Omit<RunOptions, "as"> = {}): Promise<ProgramResult> {
    return await this.run([this.program, ...args], options);
  }

  /** Runs a shell line in which "$WALB" is wal-b. */
  async shell(line: string, options: Omit<RunOptions, "as"> = {}): Promise<ProgramResult> {
    return await this.run(["/bin/bash", "-c", line], options);
  }

  async run(command: readonly string[], options: Omit<RunOptions, "as"> = {}): Promise<ProgramResult> {
    const env = { ...this.env, WALB: this.program, ...options.env };
    // "$WALB" is for the shell: wal-b refuses variables of its own that it does not know, and this one has no "_".
    return await runProgram(command, { cwd: this.data, ...options, env, as: this.account });
  }

  /** A file in the data directory, with its directories. */
  async write(path: string, content: string | Uint8Array = "", mode = 0o600): Promise<string> {
    const file = join(this.data, path);
    await writeFile(file, content, { mode });
    await giveTo(this.account, file);
    return file;
  }

  /** A finished segment in pg_wal. */
  async segment(name: string, options: WalContentOptions = {}): Promise<Uint8Array> {
    const content = walContent(name, options);
    await this.write(`pg_wal/${name}`, content);
    return content;
  }

  /** A segment that waits to be archived. */
  async waiting(name: string, options: WalContentOptions = {}): Promise<Uint8Array> {
    await this.write(`pg_wal/archive_status/${name}.ready`);
    return await this.segment(name, options);
  }

  async marks(): Promise<readonly string[]> {
    return (await readdir(join(this.data, "pg_wal/archive_status"))).sort();
  }

  /** A pg_control, which tells whose data directory this is. */
  async control(systemIdentifier = SYSTEM_IDENTIFIER): Promise<void> {
    await this.write("global/pg_control", controlFile({ systemIdentifier }));
  }

  /** An object of the archive, under any name. */
  async store(name: string, body: Uint8Array): Promise<string> {
    await mkdir(this.archive, { recursive: true });
    await giveTo(this.account, this.archive);
    const file = join(this.archive, name);
    await writeFile(file, body);
    await giveTo(this.account, file);
    return file;
  }

  /** What `zstd` alone makes of the archived object, or undefined. */
  async archived(name: string): Promise<Buffer | undefined> {
    const body = await readFile(join(this.archive, `${name}.zst`)).catch(() => undefined);
    return body && Buffer.from(Bun.zstdDecompressSync(body));
  }

  /** Everything below the data directory and the repository. */
  async listing(): Promise<Listing> {
    const found: Record<string, string> = {};
    for (const root of ["data", "repository"]) {
      if (existsSync(join(this.directory, root))) await list(join(this.directory, root), root, found);
    }
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.directory, { recursive: true, force: true });
  }
}

/**
 * Runs a shell script while a file system of 24 MiB, "$DISK", with 20 MiB of it taken by "$DISK/taken", lies over a directory. Only the script sees it, and it goes with
 * the script: it is mounted in a namespace of its own, for which an ordinary user becomes the root of a user namespace.
 */
export async function onSmallDisk(site: Site, directory: string, script: string): Promise<ProgramResult> {
  const mounted = `mount -t tmpfs -o size=24m tmpfs "$DISK" && head -c 20M /dev/zero > "$DISK/taken" || exit 99\n${script}`;
  return await site.run([...inOwnNamespace("mount"), "/bin/bash", "-c", mounted], { env: { DISK: directory } });
}

export const compressed = (content: Uint8Array): Uint8Array => zstdCompressSync(content);

async function list(path: string, name: string, found: Record<string, string>): Promise<void> {
  const stats = await lstat(path);
  const mode = (stats.mode & 0o7777).toString(8);
  if (stats.isSymbolicLink()) {
    found[name] = `link ${await readlink(path)}`;
  } else if (stats.isDirectory()) {
    found[name] = `directory ${mode}`;
    for (const entry of (await readdir(path)).sort()) await list(join(path, entry), `${name}/${entry}`, found);
  } else {
    const sha256 = createHash("sha256").update(await readFile(path));
    found[name] = `file ${mode} ${stats.size} ${sha256.digest("hex")}`;
  }
}
