/** Files of pg_wal for tests: a valid first page, and content that differs from one to the next. */
import type { ContentSource } from "../../src/codec/content-source.ts";
import { type SegmentSize, segmentNamed, segmentStart } from "../../src/postgres/wal-segment.ts";

export const MiB = 2 ** 20;
export const SYSTEM_IDENTIFIER = 7420325342344323423n;

export interface WalContentOptions {
  readonly systemIdentifier?: bigint;
  readonly sizeBytes?: number;
  /** What the pages after the first are filled with. */
  readonly fill?: number;
  readonly change?: (view: DataView) => void;
}

/** @param name  of the segment, also where the content becomes that of a .partial */
export function walContent(name: string, options: WalContentOptions = {}): Uint8Array<ArrayBuffer> {
  const { systemIdentifier = SYSTEM_IDENTIFIER, sizeBytes = MiB, fill = 7, change } = options;
  const segment = segmentNamed(name.slice(0, 24));
  const content = new Uint8Array(sizeBytes).fill(fill, 8192);
  const view = new DataView(content.buffer);
  view.setUint16(0, 0xd118, true);
  view.setUint16(2, 0x0002, true);
  view.setUint32(4, segment.timeline, true);
  view.setBigUint64(8, segmentStart(segment, sizeBytes as SegmentSize), true);
  view.setBigUint64(24, systemIdentifier, true);
  view.setUint32(32, sizeBytes, true);
  view.setUint32(36, 8192, true);
  change?.(view);
  return content;
}

export const historyContent = (text = "1\t0/3000000\tno recovery target specified\n") => new TextEncoder().encode(text);

/** What PostgreSQL has in a file, from memory. */
export function sourceOf(content: Uint8Array): ContentSource {
  return {
    sizeBytes: content.byteLength,
    read: (buffer, position) => buffer.set(content.subarray(position, position + buffer.byteLength)),
  };
}

/** As an archive gives it. */
export async function* piecesOf(content: Uint8Array, pieceBytes = 300_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < content.byteLength; at += pieceBytes) yield content.subarray(at, at + pieceBytes);
}
