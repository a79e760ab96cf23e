/** What comes in pieces, as a whole. */
import type { ObjectKey, ObjectStore } from "../../src/storage/object-store.ts";

/** All chunks of an object, as they came. */
export async function readChunks(store: Pick<ObjectStore, "open">, key: ObjectKey): Promise<readonly Uint8Array[]> {
  return await Array.fromAsync((await store.open(key)).chunks);
}

/** For pieces whose memory is used again. */
export async function readWhole(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const copies: Uint8Array[] = [];
  for await (const piece of pieces) copies.push(new Uint8Array(piece));
  return Buffer.concat(copies);
}
