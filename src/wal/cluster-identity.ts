/**
 * Whether the archive is this cluster's own: two clusters under one prefix would mix their WAL, until one cannot archive and
 * neither can be restored.
 *
 * The archive's owner is in what it holds already: the first segment in it states a system identifier. Looking costs two
 * requests, so a positive answer is remembered on this host; archiving a segment costs one request from then on.
 */
import { IntegrityError, NotFoundError } from "../errors.ts";
import { checkSegmentHeader } from "../postgres/wal-page-header.ts";
import { isSupported } from "../repository/keys.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import type { HostMemory } from "../system/host-memory.ts";

export interface ClusterIdentity {
  /** @throws IntegrityError  the archive holds another cluster's WAL; both identifiers are named */
  check(systemIdentifier: bigint): Promise<void>;
}

export interface ClusterIdentityContext {
  readonly archive: WalArchive;
  /** Where the repository is, for the message. */
  readonly location: string;
  /** Names the repository in the host's memory. */
  readonly remembered: string;
  readonly memory: HostMemory;
}

export function openClusterIdentity(context: ClusterIdentityContext): ClusterIdentity {
  let checking: { readonly systemIdentifier: bigint; readonly outcome: Promise<void> } | undefined;
  return {
    check(systemIdentifier) {
      // Segments that are archived beside each other ask once.
      if (checking?.systemIdentifier !== systemIdentifier) {
        checking = { systemIdentifier, outcome: checkOnce(systemIdentifier, context) };
      }
      return checking.outcome;
    },
  };
}

async function checkOnce(
  systemIdentifier: bigint,
  { archive, location, remembered, memory }: ClusterIdentityContext,
): Promise<void> {
  const question = `whose archive is ${remembered}`;
  if ((await memory.recall(question)) === String(systemIdentifier)) return;

  const owner = await ownerOf(archive);
  if (owner === undefined) return;
  if (owner.systemIdentifier !== systemIdentifier) {
    throw new IntegrityError(`the archive at ${location} belongs to another cluster`, {
      detail: `It holds "${owner.segment}" of the cluster with system identifier ${owner.systemIdentifier}; this one has ${systemIdentifier}.`,
      hint: "Give each cluster a prefix of its own. After pg_upgrade or initdb the cluster is a new one: archive it to a new prefix and take a base backup.",
    });
  }
  await memory.remember(question, String(systemIdentifier));
}

async function ownerOf(
  archive: WalArchive,
): Promise<{ readonly segment: string; readonly systemIdentifier: bigint } | undefined> {
  let looks = 0;
  for await (const object of archive.list()) {
    const { file } = object;
    if (file?.kind !== "segment" || !isSupported(object)) continue;
    try {
      for await (const piece of archive.read(file)) {
        const { systemIdentifier } = checkSegmentHeader(file.name, file, piece);
        return { segment: file.name, systemIdentifier };
      }
    } catch (error) {
      // What is damaged says nothing, and must not stop the archiving of what comes after. A delete may have been faster.
      if (!(error instanceof IntegrityError || error instanceof NotFoundError)) throw error;
      if (++looks === MAX_LOOKS) return undefined;
    }
  }
  return undefined;
}

/** Segments that are read in vain before nobody is taken for the owner. */
const MAX_LOOKS = 5;
