/** Settings → store → repository: the one place that wires objects together, and loads what only some commands need. */
import { tmpdir } from "node:os";
import { builtInZstd, openZstd, type Zstd } from "../codec/zstd.ts";
import type { Settings } from "../config/settings.ts";
import {
  type CreatedObject,
  NO_PROOF_NEEDED,
  type OverwriteProof,
  openOverwriteProof,
  recallConditionalWrites,
} from "../repository/overwrite-proof.ts";
import { openWalArchive, type WalArchive } from "../repository/wal-archive.ts";
import type { ObjectStore } from "../storage/object-store.ts";
import { type HostMemory, openHostMemory } from "../system/host-memory.ts";
import { type ClusterIdentity, openClusterIdentity } from "../wal/cluster-identity.ts";
import type { CommandContext } from "./command.ts";
import { checkStillMounted } from "./mounted.ts";
import { parseCustomerKey, parseEndpoint, parsePrefix } from "./prefix.ts";

export interface Repository extends AsyncDisposable {
  readonly store: ObjectStore;
  readonly archive: WalArchive;
  readonly identity: ClusterIdentity;
  readonly proof: OverwriteProof;
  readonly zstd: () => Promise<Zstd>;
}

/** @throws UsageError  no prefix, two prefixes, a malformed one, or settings that contradict each other */
export async function openRepository(context: CommandContext): Promise<Repository> {
  const memory = openHostMemory(tmpdir(), process.geteuid?.() ?? 0);
  const { store, proof } = await openStore(context, memory);
  let opened: Promise<Zstd> | undefined;
  const zstd = () => {
    opened ??= openZstd(context.settings.compressionLevel);
    return opened;
  };
  const archive = openWalArchive(store, async () => builtInZstd(context.settings.compressionLevel));
  const location = whereabouts(store.location, context.settings);
  const identity = openClusterIdentity({ archive, location: store.location, remembered: location, memory });
  return { store, archive, identity, proof, zstd, [Symbol.asyncDispose]: () => store[Symbol.asyncDispose]() };
}

/** Two services may have buckets of one name. */
const whereabouts = (location: string, { endpoint }: Settings) =>
  `${location} at ${endpoint ?? "the default endpoint"}`;

async function openStore(
  { settings, signal, log }: CommandContext,
  memory: HostMemory,
): Promise<Pick<Repository, "store" | "proof">> {
  const prefix = parsePrefix(settings);
  if (prefix.kind === "directory") {
    const { openDirectoryStore } = await import("../storage/directory.ts");
    const store = await openDirectoryStore({ directory: prefix.directory, signal });
    await checkStillMounted(prefix.directory, store.location, memory);
    return { store, proof: NO_PROOF_NEEDED };
  }

  const { openS3Store } = await import("../storage/s3.ts");
  const { endpoint, forcePathStyle } = parseEndpoint(settings);
  const customerKey = parseCustomerKey(settings.customerKey);
  const question = `conditional writes in ${whereabouts(prefix.bucket, settings)}`;
  const known =
    settings.conditionalWrites === "detect"
      ? await recallConditionalWrites({ memory, question })
      : settings.conditionalWrites;
  const open = (conditionalWrites: "require" | "emulate" | "look first") =>
    openS3Store({ ...settings, ...prefix, conditionalWrites, endpoint, forcePathStyle, customerKey, signal, log });
  const store = await open(known ?? "look first");
  if (known !== undefined) return { store, proof: NO_PROOF_NEEDED };

  const putIfAbsent = async ({ key, body, metadata }: CreatedObject) => {
    await using strict = await open("require");
    return await strict.putIfAbsent(key, body, metadata);
  };
  return { store, proof: openOverwriteProof({ location: store.location, question, memory, putIfAbsent, log }) };
}
