/**
 * What a file of pg_wal must be, whoever hands it over: a file that is archived, or an object that is read.
 *
 * Content comes in pieces, so that a segment of 1 GiB takes no more memory than one of 1 MiB.
 */
import { IntegrityError } from "../errors.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import {
  BEGINNING_BYTES,
  checkSegment,
  checkSegmentHeader,
  checkSegmentSize,
  type WalPageHeader,
} from "../postgres/wal-page-header.ts";
import type { PartialSegment, WalFile, WalSegment } from "../postgres/wal-segment.ts";

/** Histories have a line of some hundred bytes for each timeline. */
const MAX_TEXT_BYTES = 2 ** 20;

/** What the file states about itself. */
export interface WalFacts {
  /** Of the cluster that wrote it; undefined where the file does not state it. */
  readonly systemIdentifier: bigint | undefined;
}

/**
 * A file's own statements against its name and size.
 *
 * @param beginning  of a segment at least the long header; of another file all of it
 * @throws IntegrityError  damaged, cut off, or another file's content
 */
export function checkWalContent(file: WalFile, beginning: Uint8Array, sizeBytes: number): WalFacts {
  switch (file.kind) {
    case "segment":
    case "partial":
      return checkSegment(file.name, file, beginning, sizeBytes);
    case "history":
      if (parseTimelineHistory(file.timeline, new TextDecoder().decode(beginning)).length > 0) return NO_FACTS;
      throw new IntegrityError(`"${file.name}" is not a timeline history`, { detail: "It names no parent timeline." });
    case "backup":
      if (new TextDecoder().decode(beginning).startsWith("START WAL LOCATION: ")) return NO_FACTS;
      throw new IntegrityError(`"${file.name}" is not a backup history`, {
        detail: 'It does not begin with "START WAL LOCATION".',
      });
  }
}

const isSegment = (file: WalFile): file is WalSegment | PartialSegment =>
  file.kind === "segment" || file.kind === "partial";

const NO_FACTS: WalFacts = { systemIdentifier: undefined };

/**
 * Passes pieces on while they can be a segment: the header is checked before the first one, which has BEGINNING_BYTES; no more comes than
 * the header states; and the end comes only if that much came. A file of another kind comes in one piece.
 *
 * @throws IntegrityError  as checkWalContent()
 */
export async function* checkedPieces(
  file: WalFile,
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  if (!isSegment(file)) {
    const whole = await wholeText(pieces);
    checkWalContent(file, whole, whole.byteLength);
    yield whole;
    return;
  }

  let header: WalPageHeader | undefined;
  let sizeBytes = 0;
  for await (const piece of beginningWith(BEGINNING_BYTES, pieces)) {
    sizeBytes += piece.byteLength;
    header ??= checkSegmentHeader(file.name, file, piece);
    if (sizeBytes > header.segmentSize) checkSegmentSize(file.name, sizeBytes, header);
    yield piece;
  }
  header ??= checkSegmentHeader(file.name, file, new Uint8Array());
  checkSegmentSize(file.name, sizeBytes, header);
}

async function wholeText(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  let whole: Uint8Array = new Uint8Array();
  for await (const piece of pieces) {
    whole = Buffer.concat([whole, piece]);
    if (whole.byteLength > MAX_TEXT_BYTES)
      throw new IntegrityError("the content is too large", { detail: `It has more than ${MAX_TEXT_BYTES} bytes.` });
  }
  return whole;
}

export interface ArchivedPieces {
  readonly file: WalFile;
  /** Of the object, for messages. */
  readonly url: string;
  /** As checkedPieces() gave them. */
  readonly pieces: AsyncIterable<Uint8Array>;
}

/**
 * Passes on what is not a segment of another cluster.
 *
 * @throws IntegrityError  before the first piece
 */
export async function* ofCluster(
  systemIdentifier: bigint,
  { file, url, pieces }: ArchivedPieces,
): AsyncGenerator<Uint8Array, void, undefined> {
  let isChecked = !isSegment(file);
  for await (const piece of pieces) {
    if (!isChecked && isSegment(file)) {
      const written = checkSegmentHeader(file.name, file, piece).systemIdentifier;
      if (written !== systemIdentifier) throw otherCluster(file, url, { written, own: systemIdentifier });
    }
    isChecked = true;
    yield piece;
  }
}

function otherCluster(
  { name }: WalFile,
  url: string,
  { written, own }: { readonly written: bigint; readonly own: bigint },
): IntegrityError {
  return new IntegrityError(`archived "${name}" is of another cluster`, {
    detail: `${url} is of the cluster with system identifier ${written}; this one has ${own}.`,
    hint: "Check that the prefix is the one this cluster archived to.",
  });
}

/** Makes the first piece at least so long, if there is so much. */
async function* beginningWith(
  bytes: number,
  pieces: AsyncIterable<Uint8Array>,
): AsyncGenerator<Uint8Array, void, undefined> {
  let beginning: Uint8Array | undefined = new Uint8Array();
  for await (const piece of pieces) {
    if (beginning === undefined || (beginning.byteLength === 0 && piece.byteLength >= bytes)) {
      beginning = undefined;
      yield piece;
      continue;
    }
    beginning = Buffer.concat([beginning, piece]);
    if (beginning.byteLength < bytes) continue;
    yield beginning;
    beginning = undefined;
  }
  if (beginning !== undefined && beginning.byteLength > 0) yield beginning;
}
