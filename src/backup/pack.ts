/**
 * Entries of a data directory → parts, several at once.
 *
 * Each worker fills a part with what comes next and closes it once it holds enough, so parts need no plan and memory none of
 * the list. Every file leaves its size and SHA-256 in the backup manifest, and its name in the files metadata.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import type { TarHeader } from "../codec/tar.ts";
import type { BackupManifestWriter } from "../postgres/backup-manifest.ts";
import type { DataEntry, DataFile } from "../postgres/data-entry.ts";
import { PG_CONTROL_PATH, readPgControlBytes } from "../postgres/pg-control.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import type { BackupUpload, PartWriter } from "../repository/backup-upload.ts";
import type { FilesMetadataWriter, PackedFile } from "../repository/files-metadata.ts";
import { PG_CONTROL_PART, partName } from "../repository/keys.ts";
import { type Log, SILENT } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import type { Progress, StartProgress } from "../system/progress.ts";
import type { RateLimit } from "../system/rate-limit.ts";
import { countBeside } from "./estimate.ts";
import type { PageVerification } from "./page-verification.ts";
import { openDataFile } from "./read-file.ts";

export interface PackContext {
  readonly upload: BackupUpload;
  readonly manifest: BackupManifestWriter;
  readonly filesMetadata: FilesMetadataWriter;
  readonly totals: Totals;
  readonly pages: PageVerification;
  readonly readRate: RateLimit;
  readonly startProgress: StartProgress;
  readonly log: Log;
  /** Aborted when the backup cannot succeed any more. */
  readonly signal: AbortSignal;
}

export interface PackLimits {
  readonly partsAtOnce: number;
  /** A part is closed once it holds this much. */
  readonly partContentBytes: number;
}

/** What a backup amounts to so far. */
export interface Totals {
  files: number;
  /** Numbered parts. */
  parts: number;
  /** All objects below tar_partitions/. */
  objects: number;
  contentBytes: number;
  storedBytes: number;
}

export const noTotals = (): Totals => ({ files: 0, parts: 0, objects: 0, contentBytes: 0, storedBytes: 0 });

/** @param walk  the entries, each time anew; what is odd about them is told to the log once */
export async function packParts(
  walk: (log: Log) => AsyncIterable<DataEntry>,
  limits: PackLimits,
  packing: PackContext,
): Promise<void> {
  using progress = packing.startProgress("copied");
  await using _ = countBeside(walk(SILENT), progress);
  const context = { ...packing, progress };
  const source = walk(packing.log)[Symbol.asyncIterator]();
  const ended = { yes: false };
  const take = async () => {
    const next = ended.yes ? undefined : await source.next();
    if (next === undefined || next.done) ended.yes = true;
    return ended.yes ? undefined : next?.value;
  };
  // A part is begun only with an entry in hand, so none is empty.
  const firstEntries = async function* () {
    for (let first = await take(); first !== undefined; first = await take()) yield first;
  };

  try {
    await forEachAtOnce(limits.partsAtOnce, firstEntries(), async (first, othersFailed) => {
      const signal = AbortSignal.any([context.signal, othersFailed]);
      const part = partName(++context.totals.parts);
      await packPart(part, { ...context, signal }, async (add) => {
        for (let entry: DataEntry | undefined = first; entry !== undefined; ) {
          const full = (await add(entry)) >= limits.partContentBytes;
          entry = full ? undefined : await take();
        }
      });
    });
  } finally {
    await source.return?.(undefined);
  }
}

interface PartContext extends PackContext {
  readonly progress: Progress;
}

/** One part with the entries that `fill` adds; add() returns how many bytes of files it holds by then. */
async function packPart(
  part: string,
  context: PartContext,
  fill: (add: (entry: DataEntry) => Promise<number>) => Promise<void>,
): Promise<void> {
  const files: PackedFile[] = [];
  const size = await context.upload.putPart(part, (writer) =>
    fill(async (entry) => {
      context.signal.throwIfAborted();
      if (entry.kind === "file") {
        const file = await addFile(entry, writer, context);
        if (file) files.push(file);
      } else if (entry.kind === "directory") {
        await writer.add({ ...headerOf(entry), type: "directory", sizeBytes: 0 });
      }
      return writer.contentBytes;
    }),
  );
  context.filesMetadata.add({ part, files });
  context.totals.storedBytes += size.storedBytes;
  context.totals.objects++;
}

/** A file whose content is in memory. */
export interface SmallFile {
  /** Relative to the data directory. */
  readonly path: string;
  /** Its name in the tar archive. */
  readonly memberName: string;
  readonly content: Uint8Array;
  readonly modifiedAt: Date;
  /** Permission bits. */
  readonly mode: number;
}

/** One part with files that are in memory, for the account that runs this alone. */
export async function packSmallFiles(part: string, files: readonly SmallFile[], context: PackContext): Promise<void> {
  const { upload, manifest, filesMetadata, totals } = context;
  const [uid, gid] = [process.geteuid?.() ?? 0, process.getegid?.() ?? 0];
  const size = await upload.putPart(part, async (tar) => {
    for (const { path, memberName, content, modifiedAt, mode } of files) {
      const sizeBytes = content.byteLength;
      await tar.add({ name: memberName, type: "file", sizeBytes, mode, uid, gid, modifiedAt }, [content]);
      const sha256 = new Bun.CryptoHasher("sha256").update(content).digest("hex");
      // A restored directory has the links themselves and no map, see unpack.ts.
      if (path !== TABLESPACE_MAP) manifest.add({ path, sizeBytes, modifiedAt, sha256 });
      totals.files++;
      totals.contentBytes += sizeBytes;
    }
  });
  filesMetadata.add({ part, files });
  totals.storedBytes += size.storedBytes;
  totals.objects++;
}

/**
 * After every other file: on a standby, what it says decides from when on the copy is consistent. The server overwrites it in
 * place, so it is read until its checksum is right.
 */
export async function packPgControl(dataDirectory: string, context: PackContext, now: Date): Promise<void> {
  const content = await readPgControlBytes(dataDirectory);
  const mode = await fileModeOf(dataDirectory);
  const file = { path: PG_CONTROL_PATH, memberName: `/${PG_CONTROL_PATH}`, content, modifiedAt: now, mode };
  await packSmallFiles(PG_CONTROL_PART, [file], context);
}

/** Permission bits of the cluster's files: its group may read them, or not (initdb --allow-group-access). */
export async function fileModeOf(dataDirectory: string): Promise<number> {
  return (await stat(join(dataDirectory, "PG_VERSION"))).mode & 0o777;
}

/** @returns undefined when the file is gone */
async function addFile(
  entry: DataFile,
  writer: PartWriter,
  { manifest, totals, readRate, progress, pages, signal }: PartContext,
): Promise<PackedFile | undefined> {
  await using file = await openDataFile(entry.absolutePath);
  if (file === undefined) return undefined;

  const header = headerOf(entry);
  const hash = new Bun.CryptoHasher("sha256");
  const verifier = pages.verifierOf(entry.path, file, signal);
  const hashed = async function* () {
    let at = 0;
    for await (const bytes of file.content(signal)) {
      await readRate.take(bytes.byteLength, signal);
      await verifier?.verify(bytes, at);
      at += bytes.byteLength;
      hash.update(bytes);
      progress.advance(bytes.byteLength);
      yield bytes;
    }
  };
  await writer.add({ ...header, type: "file", sizeBytes: file.sizeBytes }, hashed());

  totals.files++;
  totals.contentBytes += file.sizeBytes;
  manifest.add({
    path: entry.path,
    sizeBytes: file.sizeBytes,
    modifiedAt: header.modifiedAt,
    sha256: hash.digest("hex"),
  });
  const damaged = verifier?.damaged;
  if (damaged) await pages.report(entry.path, damaged);
  return { memberName: header.name, modifiedAt: header.modifiedAt, damaged };
}

function headerOf(entry: DataEntry): Omit<TarHeader, "type" | "sizeBytes"> {
  const { mode, uid, gid, mtimeNs } = entry;
  return { name: memberNameOf(entry), mode, uid, gid, modifiedAt: new Date(Number(mtimeNs / 1_000_000n)) };
}

/** WAL-G's names begin with a slash. */
const memberNameOf = ({ path }: DataEntry) => `/${path}`;
