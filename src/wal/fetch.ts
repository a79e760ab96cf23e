/**
 * wal-fetch: puts a file of the archive where PostgreSQL's recovery asks for it.
 *
 * Recovery believes us: a file that is put in place is replayed, and a file that is said to be missing is the end of WAL. So
 * content is verified before it gets its name, and only the store's own answer is passed on as "not there".
 */
import { IntegrityError, NotFoundError, UsageError } from "../errors.ts";
import { parseWalFile, type WalFile, type WalSegment } from "../postgres/wal-segment.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { ofCluster } from "../repository/wal-content.ts";
import { writeFileAtomically } from "../system/atomic-file.ts";
import { abortableDelay } from "../system/delay.ts";
import type { Log } from "../system/log.ts";

export interface WalFetchContext {
  readonly archive: WalArchive;
  /** Of the cluster in recovery; undefined when its pg_control cannot be read, as when the destination is no data directory. */
  readonly systemIdentifier: bigint | undefined;
  /**
   * "refused": a segment that is missing while later ones of its timeline are there is no end of WAL. For recovery, which would
   * end there; a standby asks again.
   */
  readonly gaps: "refused" | "passed on";
  readonly signal: AbortSignal;
  readonly log: Log;
}

/**
 * @param name         %f of restore_command
 * @param destination  %p of restore_command, usually pg_wal/RECOVERYXLOG
 * @throws NotFoundError   the archive answered that it has no such file; recovery may end here
 * @throws IntegrityError  what the archive has is damaged or another cluster's; nothing was put in place
 */
export async function fetchWal(name: string, destination: string, context: WalFetchContext): Promise<void> {
  const { archive, systemIdentifier, log } = context;
  const file = parseWalFile(name);
  if (!file) {
    throw new UsageError(`"${name}" is not the name of a WAL file`, {
      hint: "restore_command must pass %f and %p: wal-b wal-fetch %f %p",
    });
  }

  // Not fsynced: PostgreSQL does that for a segment that it keeps (xlogarchive.c, KeepFileRestoredFromArchive), and asks
  // again for any other after a crash.
  const pieces = contentOf(file, context);
  const url = archive.urlOf(name);
  const content = systemIdentifier === undefined ? pieces : ofCluster(systemIdentifier, { file, url, pieces });
  await writeFileAtomically(destination, content, { mode: 0o600, durability: "left to PostgreSQL" });
  log.info(`restored "${name}" from the archive`);
}

/** Segments are archived side by side, so a gap may close by itself. */
const GAP_LOOKS = 5;
const GAP_PAUSE_MS = 1_000;

/** @throws IntegrityError  the archive has a gap */
async function* contentOf(
  file: WalFile,
  { archive, gaps, signal }: WalFetchContext,
): AsyncGenerator<Uint8Array, void, undefined> {
  for (let looks = 1; ; looks++) {
    try {
      return yield* archive.read(file);
    } catch (error) {
      if (!(error instanceof NotFoundError) || gaps === "passed on" || file.kind !== "segment") throw error;
      const later = await archive.segmentAfter(file);
      if (later === undefined) throw error;
      if (looks === GAP_LOOKS) throw gapFailure(file, later, archive);
    }
    await abortableDelay(GAP_PAUSE_MS, signal);
  }
}

function gapFailure(missing: WalSegment, later: WalSegment, archive: WalArchive): IntegrityError {
  return new IntegrityError(`the archive has a gap: "${missing.name}" is missing`, {
    detail: `There is no ${archive.urlOf(missing.name)}, but "${later.name}" of the same timeline is there. Recovery would end here and lose what comes after.`,
    hint: "Look for the segment in pg_wal of any server of this cluster, and archive it with wal-push. To recover up to the gap on purpose, set recovery_target_lsn to a position before it, or recovery_target = 'immediate'.",
  });
}
