/** Settings → store → repository: the one place that wires objects together, and loads what only some commands need. */
import { tmpdir } from "node:os";
import { openZstd, type Zstd } from "../codec/zstd.ts";
import { openWalArchive, type WalArchive } from "../repository/wal-archive.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { type ClusterIdentity, openClusterIdentity } from "../wal/cluster-identity.ts";
import type { CommandContext } from "./command.ts";
import { parseCustomerKey, parseEndpoint, parsePrefix } from "./prefix.ts";

export interface Repository extends AsyncDisposable {
  readonly store: ObjectStore;
  readonly archive: WalArchive;
  readonly identity: ClusterIdentity;
  readonly zstd: () => Promise<Zstd>;
}

/** @throws UsageError  no prefix, two prefixes, a malformed one, or settings that contradict each other */
export async function openRepository(context: CommandContext): Promise<Repository> {
  const store = await openStore(context);
  let opened: Promise<Zstd> | undefined;
  const zstd = () => {
    opened ??= openZstd(context.settings.compressionLevel);
    return opened;
  };
  const archive = openWalArchive(store, zstd);
  const identity = openClusterIdentity({
    archive,
    location: store.location,
    temporaryDirectory: tmpdir(),
    userId: process.geteuid?.() ?? 0,
  });
  return { store, archive, identity, zstd, [Symbol.asyncDispose]: () => store[Symbol.asyncDispose]() };
}

async function openStore({ settings, signal, log }: CommandContext): Promise<ObjectStore> {
  const prefix = parsePrefix(settings);
  if (prefix.kind === "directory") {
    const { openDirectoryStore } = await import("../storage/directory.ts");
    return openDirectoryStore({ directory: prefix.directory, signal });
  }

  const { openS3Store } = await import("../storage/s3.ts");
  const { endpoint, forcePathStyle } = parseEndpoint(settings);
  const customerKey = parseCustomerKey(settings.customerKey);
  return openS3Store({ ...settings, ...prefix, endpoint, forcePathStyle, customerKey, signal, log });
}
