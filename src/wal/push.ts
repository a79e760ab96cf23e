/**
 * wal-push: puts a finished file of pg_wal into the archive, and other waiting segments beside it.
 *
 * PostgreSQL recycles the file once we succeed, so we return only after the store has confirmed it. The same file may come
 * twice (a crash between our success and the .done mark) and must succeed; the same name with other content must fail and
 * must not overwrite. Source: PostgreSQL manual, "Setting Up WAL Archiving".
 */
import { closeSync, fstatSync, openSync } from "node:fs";
import { readdir, rename } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import type { ContentSource } from "../codec/content-source.ts";
import {
  Failure,
  IntegrityError,
  InterruptedError,
  NotFoundError,
  reasonOf,
  SourceMissingError,
  StorageError,
  systemCodeOf,
  UsageError,
} from "../errors.ts";
import { systemIdentifierBeside } from "../postgres/pg-control.ts";
import { parseWalFile, type WalFile } from "../postgres/wal-segment.ts";
import type { OverwriteProof } from "../repository/overwrite-proof.ts";
import type { PreparedWal, WalArchive } from "../repository/wal-archive.ts";
import { ByteBudget } from "../system/byte-budget.ts";
import type { Log } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { readFully } from "../system/read-fully.ts";
import type { ClusterIdentity } from "./cluster-identity.ts";

export interface WalPushContext {
  readonly archive: WalArchive;
  readonly identity: ClusterIdentity;
  readonly proof: OverwriteProof;
  /** Files archived at once, the requested one included; also the most that one run archives. */
  readonly poolSize: number;
  readonly log: Log;
}

/**
 * @param path  %p of archive_command: relative to the data directory, which is our working directory
 * @throws IntegrityError      not a valid file of this name, of another cluster, or the archive has other content under this name
 * @throws SourceMissingError  there is no such file
 */
export async function pushWal(path: string, context: WalPushContext): Promise<void> {
  const name = basename(path);
  const file = parseWalFile(name);
  if (!file) {
    throw new UsageError(`"${name}" is not the name of a WAL file`, {
      hint: "archive_command must pass %p: wal-b wal-push %p",
    });
  }

  const memory = new ByteBudget(MEMORY_BYTES);
  const requested = write(await prepare({ path, file, memory }, context), context);
  const mayFollow = othersMayFollow(file, requested);
  const others = archiveOthers({ path, file, memory }, mayFollow, context);
  // What went wrong with them is told once the requested one is archived, and not before that.
  const ended = others.catch(() => {});
  if (await mayFollow) await ended;
  await requested;
  await others;
}

/**
 * What the segments under way may hold in memory, whatever the pool size: while one is compressed three times its size (its frames,
 * sealed and joined, where nothing comes of compressing), while it is written what it was compressed to. Large ones hold parts of
 * an upload; they ask for all of it, and so one is under way at a time.
 */
const MEMORY_BYTES = 96 * 2 ** 20;

interface Place {
  readonly path: string;
  readonly file: WalFile;
  readonly memory: ByteBudget;
}

/** A file that is ready to be written. Disposing it closes it and gives its memory back. */
interface Prepared extends Disposable {
  readonly path: string;
  readonly file: WalFile;
  readonly wal: PreparedWal;
}

async function prepare({ path, file, memory }: Place, { archive, identity }: WalPushContext): Promise<Prepared> {
  using held = new DisposableStack();
  const opened = held.use(openWal(path));
  const lease = held.use(await memory.take(3 * opened.sizeBytes));
  const wal = await archive.prepare(file, opened);
  // Histories do not say whose they are. A foreign one would take the timeline from the cluster that the archive belongs to.
  const systemIdentifier = wal.systemIdentifier ?? systemIdentifierBeside(path);
  if (systemIdentifier !== undefined) await identity.check(systemIdentifier);
  if (wal.body instanceof Uint8Array) lease.shrinkTo(wal.body.byteLength);
  const kept = held.move();
  return { path, file, wal, [Symbol.dispose]: () => kept.dispose() };
}

async function write(prepared: Prepared, { archive, proof, log }: WalPushContext): Promise<void> {
  using written = prepared;
  const { path, file, wal } = written;
  const { key, body, metadata } = wal;
  if ((await archive.putIfAbsent(wal)) === "created") {
    // A store looks by itself before it completes an upload in parts, whatever it knows of conditions.
    if (body instanceof Uint8Array) await proof.prove({ key, body, metadata });
    log.info(`archived "${file.name}"`);
    return;
  }
  if (!(await isArchived(path, file, archive))) {
    throw new IntegrityError(`"${file.name}" is already archived with different content`, {
      detail: `${archive.urlOf(file.name)} was left as it is.`,
      hint: conflictHint(file),
    });
  }
  log.info(`"${file.name}" was already archived with the same content`);
}

/** How that comes about differs by what it is. */
function conflictHint({ kind, name }: WalFile): string {
  switch (kind) {
    case "partial":
      return `Two servers were promoted inside this segment, one after the other. Recovery never reads this file: keep a copy if you want one, then rename archive_status/${name}.ready in pg_wal to ${name}.done, and archiving goes on.`;
    case "history":
      return "Two servers were promoted to the same timeline, the second one without a restore_command that reached the archive. Restore this one again and promote it with such a restore_command, so that it gets a timeline of its own; or give it a prefix of its own and take a base backup.";
    default:
      return "Check that no other cluster archives to this prefix. A server that was restored and started without recovery.signal writes on the old timeline: restore it again, with recovery.signal, or give it a prefix of its own.";
  }
}

/** Whether the archive has this very content. The store has just said that it has something under the name. */
async function isArchived(path: string, file: WalFile, archive: WalArchive): Promise<boolean> {
  using own = openWal(path);
  try {
    let [at, buffer] = [0, new Uint8Array()];
    for await (const archived of archive.read(file)) {
      const { byteLength } = archived;
      if (at + byteLength > own.sizeBytes) return false;
      if (buffer.byteLength < byteLength) buffer = new Uint8Array(byteLength);
      const piece = buffer.subarray(0, byteLength);
      own.read(piece, at);
      if (Buffer.compare(piece, archived) !== 0) return false;
      at += byteLength;
    }
    return at === own.sizeBytes;
  } catch (cause) {
    if (!(cause instanceof NotFoundError)) throw cause;
    throw new StorageError(`could not compare "${file.name}" with what is archived`, {
      detail: `The store refused to write ${archive.urlOf(file.name)} because it is there, and now says that it is not.`,
      hint: "Somebody may have deleted it meanwhile. PostgreSQL archives the file again.",
      cause,
    });
  }
}

/**
 * Where the requested one conflicts with what is archived, this server writes another history than the archive's, and none of its
 * WAL may follow. A partial segment proves no such thing: it ends a timeline that the server has left, recovery never asks for it,
 * and PostgreSQL asks for it before all WAL of the new timeline, which would wait as long as the conflict lasts.
 */
function othersMayFollow(file: WalFile, requested: Promise<void>): Promise<boolean> {
  return requested.then(
    () => true,
    (error: unknown) => file.kind === "partial" && error instanceof IntegrityError,
  );
}

/** Reads and compresses others while the requested one is written, and writes them after it. */
async function archiveOthers({ path, file, memory }: Place, mayFollow: Promise<boolean>, context: WalPushContext) {
  const waiting = (await waitingSegments(dirname(path), file.name)).slice(0, context.poolSize - 1);
  await forEachAtOnce(context.poolSize, waiting, (other) =>
    archiveWaiting({ path: join(dirname(path), other.name), file: other, memory }, mayFollow, context),
  );
}

/**
 * A segment that PostgreSQL did not ask for, but will. Its mark is ours to change; the mark of the one it asked for never is.
 * A failure is told and left: PostgreSQL asks for the segment by itself, and then it counts.
 */
async function archiveWaiting(place: Place, mayFollow: Promise<boolean>, context: WalPushContext): Promise<void> {
  const { path, file } = place;
  const mark = join(dirname(path), "archive_status", file.name);
  try {
    using prepared = await prepare(place, context);
    // Garbage has to be gone before the next segment takes its share: left to itself, the collector lets 32 of 16 MiB that cannot be
    // compressed grow to 380 MB.
    Bun.gc(true);
    if (!(await mayFollow)) return;
    await write(prepared, context);
    await rename(`${mark}.ready`, `${mark}.done`);
  } catch (error) {
    // Another archiver was faster: PostgreSQL has marked and recycled the segment.
    if (error instanceof SourceMissingError || systemCodeOf(error) === "ENOENT") return;
    // A signal is told once, by the requested one if that is not archived yet.
    if (error instanceof InterruptedError) return;
    const why = error instanceof Failure ? error.detail : undefined;
    const detail = [`${reasonOf(error)}.`, why].filter(Boolean).join(" ");
    context.log.warning(`could not archive "${file.name}" ahead of its turn`, { detail });
  }
}

/** Segments marked .ready, oldest first, without the requested one. Empty when this is not a pg_wal directory. */
async function waitingSegments(walDirectory: string, requested: string): Promise<readonly WalFile[]> {
  try {
    const marks = await readdir(join(walDirectory, "archive_status"));
    return marks
      .filter((mark) => mark.endsWith(".ready"))
      .map((mark) => parseWalFile(mark.slice(0, -".ready".length)))
      .filter((file) => file !== undefined && file.kind === "segment" && file.name !== requested)
      .toSorted((a, b) => ((a?.name ?? "") < (b?.name ?? "") ? -1 : 1)) as readonly WalFile[];
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT" || systemCodeOf(cause) === "ENOTDIR") return [];
    throw new SourceMissingError(`could not read "${join(walDirectory, "archive_status")}"`, {
      detail: `${reasonOf(cause)}.`,
      cause,
    });
  }
}

function openWal(path: string): ContentSource & Disposable {
  const readable = <Result>(work: () => Result): Result => {
    try {
      return work();
    } catch (cause) {
      return notReadable(path, cause);
    }
  };
  const file = readable(() => openSync(path, "r"));
  return {
    sizeBytes: fstatSync(file).size,
    read(buffer, position) {
      const filled = readable(() => readFully(file, buffer, position));
      if (filled < buffer.byteLength) notReadable(path, new Error("it became shorter while it was read"));
    },
    [Symbol.dispose]: () => closeSync(file),
  };
}

function notReadable(path: string, cause: unknown): never {
  const isWrongPath = ["ENOENT", "ENOTDIR", "EISDIR"].includes(systemCodeOf(cause) ?? "");
  const hint = "archive_command must pass %p, and its working directory is the data directory.";
  throw new SourceMissingError(`could not read "${path}"`, {
    detail: `${reasonOf(cause)}.`,
    ...(isWrongPath && { hint }),
    cause,
  });
}
