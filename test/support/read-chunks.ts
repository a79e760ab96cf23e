/** All chunks of an object, as they came. */
import type { ObjectKey, ObjectStore } from "../../src/storage/object-store.ts";

export async function readChunks(store: Pick<ObjectStore, "open">, key: ObjectKey): Promise<readonly Uint8Array[]> {
  return await Array.fromAsync((await store.open(key)).chunks);
}
