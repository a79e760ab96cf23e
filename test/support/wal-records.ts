/** The records of a segment that is in memory, read in pieces as an archive gives them. */
import { type WalRecord, WalRecordReader } from "../../src/postgres/wal-records.ts";

export function recordsIn(segment: Uint8Array, continuation?: Uint8Array, pieceBytes = 300_000): readonly WalRecord[] {
  const records: WalRecord[] = [];
  const reader = new WalRecordReader(segment, (record) => records.push(record));
  for (let at = 0; at < segment.byteLength; at += pieceBytes) {
    // A piece's memory is used again for the next one.
    const piece = new Uint8Array(segment.subarray(at, at + pieceBytes));
    reader.read(piece);
    piece.fill(0xff);
  }
  reader.end(continuation);
  return records;
}
