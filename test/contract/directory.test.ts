/** The local directory keeps the promises. */
import { afterAll } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openDirectoryStore } from "../../src/storage/directory.ts";
import { objectStoreContract } from "./object-store.contract.ts";

const root = await mkdtemp(join(tmpdir(), "walb-directory-"));
afterAll(() => rm(root, { recursive: true, force: true }));

objectStoreContract({
  name: "directory",
  metadata: "dropped",
  showsUploadAfterBytes: 1,
  open: async () =>
    openDirectoryStore({ directory: await mkdtemp(join(root, "repository-")), signal: new AbortController().signal }),
});
