/** The in-memory store keeps the promises, so that flows may be tested on it. */
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { objectStoreContract } from "./object-store.contract.ts";

objectStoreContract({
  name: "memory",
  metadata: "kept",
  showsUploadAfterBytes: 0,
  open: async () => new MemoryObjectStore(),
});
