/**
 * Entries of a data directory → parts, several at once.
 *
 * Each worker fills a part with what comes next and closes it once it holds enough, so parts need no plan and memory none of
 * the list. Every file leaves its size and SHA-256 in the backup manifest, and its name in the files metadata.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { releaseContent } from "../codec/content.ts";
import type { TarHeader } from "../codec/tar.ts";
import type { BackupManifestWriter, ManifestFile } from "../postgres/backup-manifest.ts";
import type { DataEntry, DataFile } from "../postgres/data-entry.ts";
import { PG_CONTROL_PATH, readPgControlBytes } from "../postgres/pg-control.ts";
import { TABLESPACE_MAP } from "../postgres/tablespace-map.ts";
import type { BackupUpload, PartWriter } from "../repository/backup-upload.ts";
import type { FilesMetadataWriter, PackedFile } from "../repository/files-metadata.ts";
import { PG_CONTROL_PART, partName } from "../repository/keys.ts";
import { UploadLostError } from "../storage/object-store.ts";
import { type Log, SILENT } from "../system/log.ts";
import { forEachAtOnce } from "../system/pool.ts";
import type { Progress, StartProgress } from "../system/progress.ts";
import type { RateLimit } from "../system/rate-limit.ts";
import { countBeside } from "./estimate.ts";
import type { PageVerification } from "./page-verification.ts";
import { PartEntries } from "./part-entries.ts";
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
  /** Ends what the store is still asked for; taking back is not affected. */
  readonly giveUp: (reason: unknown) => void;
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
      const entries = new PartEntries(first, take, limits.partContentBytes);
      try {
        await packPart(part, entries, { ...context, signal });
      } catch (error) {
        // The other parts would try for as long again, with a store that fails, before the first failure is told.
        context.giveUp(error);
        throw error;
      }
    });
  } finally {
    await source.return?.(undefined);
  }
}

/** A part whose upload is lost is packed once more, and then once more. */
const PART_ATTEMPTS = 3;

interface PartContext extends PackContext {
  readonly progress: Progress;
}

/** Nothing is told of a part before it is in the repository. */
async function packPart(part: string, entries: PartEntries, context: PartContext): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    const files: AddedFile[] = [];
    let copiedBytes = 0;
    const advance = (bytes: number) => {
      copiedBytes += bytes;
      context.progress.advance(bytes);
    };
    try {
      const { storedBytes } = await context.upload.putPart(part, async (writer) => {
        for await (const entry of entries.each(() => writer.contentBytes)) {
          context.signal.throwIfAborted();
          const file = await addEntry(entry, writer, { ...context, advance });
          if (file) files.push(file);
        }
      });
      return await noteFiles(part, files, storedBytes, context);
    } catch (error) {
      if (!(error instanceof UploadLostError) || attempt === PART_ATTEMPTS) throw error;
      context.log.warning(`the upload of "${part}" is lost, and is made again`, { detail: error.detail ?? "" });
      context.progress.advance(-copiedBytes);
    }
  }
}

async function noteFiles(part: string, files: readonly AddedFile[], storedBytes: number, context: PartContext) {
  const { manifest, filesMetadata, totals, pages } = context;
  filesMetadata.add({ part, files: files.map(({ packed }) => packed) });
  for (const { packed, manifested } of files) {
    manifest.add(manifested);
    totals.files++;
    totals.contentBytes += manifested.sizeBytes;
    if (packed.damaged) await pages.report(manifested.path, packed.damaged);
  }
  totals.storedBytes += storedBytes;
  totals.objects++;
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

interface FileContext extends PackContext {
  readonly advance: (bytes: number) => void;
}

/** A file in a part, and what is told of it in other places. */
interface AddedFile {
  readonly packed: PackedFile;
  readonly manifested: ManifestFile;
}

/** @returns undefined for a directory, and when the file is gone */
async function addEntry(entry: DataEntry, writer: PartWriter, context: FileContext): Promise<AddedFile | undefined> {
  if (entry.kind === "file") return await addFile(entry, writer, context);
  if (entry.kind === "directory") await writer.add({ ...headerOf(entry), type: "directory", sizeBytes: 0 });
  return undefined;
}

async function addFile(
  entry: DataFile,
  writer: PartWriter,
  { readRate, advance, pages, signal }: FileContext,
): Promise<AddedFile | undefined> {
  await using file = await openDataFile(entry.absolutePath);
  if (file === undefined) return undefined;

  const header = headerOf(entry);
  const { sizeBytes } = file;
  const hash = new Bun.CryptoHasher("sha256");
  const verifier = pages.verifierOf(entry.path, file, signal);
  const hashed = async function* () {
    let at = 0;
    for await (const bytes of file.content(signal)) {
      await readRate.take(bytes.byteLength, signal);
      await verifier?.verify(bytes, at);
      at += bytes.byteLength;
      hash.update(bytes);
      advance(bytes.byteLength);
      yield bytes;
    }
  };
  await writer.add({ ...header, type: "file", sizeBytes }, hashed(), { release: releaseContent });
  const { name: memberName, modifiedAt } = header;
  return {
    packed: { memberName, modifiedAt, damaged: verifier?.damaged },
    manifested: { path: entry.path, sizeBytes, modifiedAt, sha256: hash.digest("hex") },
  };
}

function headerOf(entry: DataEntry): Omit<TarHeader, "type" | "sizeBytes"> {
  const { mode, uid, gid, mtimeNs } = entry;
  return { name: memberNameOf(entry), mode, uid, gid, modifiedAt: new Date(Number(mtimeNs / 1_000_000n)) };
}

/** WAL-G's names begin with a slash. */
const memberNameOf = ({ path }: DataEntry) => `/${path}`;
