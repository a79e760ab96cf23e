/** Waits until PostgreSQL has archived segments: without them a base backup cannot be restored. */
import { Failure, PostgresError, reasonOf } from "../errors.ts";
import type { SegmentSize, WalSegment } from "../postgres/wal-segment.ts";
import { segmentsBetween } from "../postgres/wal-segment.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { abortableDelay } from "../system/delay.ts";
import type { Log } from "../system/log.ts";

export interface WaitForWalContext {
  readonly archive: WalArchive;
  readonly segmentSize: SegmentSize;
  readonly timeoutMs: number;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly now: () => Date;
  /** Who archives: the server itself, or the primary of a standby, whose archiver we cannot ask. */
  readonly archiver: "server" | "primary";
  /** Whether the server says that it is done with archiving a segment; never, where we cannot ask. */
  readonly saysArchived: (segment: WalSegment) => Promise<boolean>;
  /** What the server says of its archiver, as sentences. */
  readonly describeArchiver: () => Promise<string>;
}

const FIRST_POLL_MS = 50;
const LONGEST_POLL_MS = 5_000;
const TELL_EVERY_MS = 15_000;
const LONGEST_ANSWER_MS = 5_000;

/**
 * @param first, last  both included, on one timeline
 * @returns the segment that the server says it has archived although it is not here: it was archived to another place, or
 *          deleted since; undefined when all are here
 * @throws PostgresError  some were not archived in time; the detail has what the server says of its archiver
 */
export async function waitForWal(
  first: WalSegment,
  last: WalSegment,
  context: WaitForWalContext,
): Promise<WalSegment | undefined> {
  const { timeoutMs, segmentSize, archive, log, signal, now, saysArchived } = context;
  const begun = now().getTime();
  let told = begun;
  let missing: WalSegment | undefined = first;

  for (let pollMs = FIRST_POLL_MS; ; pollMs = Math.min(pollMs * 1.5, LONGEST_POLL_MS)) {
    missing = await firstMissing(missing, last, segmentSize, archive);
    if (missing === undefined) return undefined;
    if (await saysArchived(missing)) {
      // It may have come between the look and the question.
      if ((await firstMissing(missing, missing, segmentSize, archive)) !== undefined) return missing;
      continue;
    }

    const waited = now().getTime() - begun;
    if (waited >= timeoutMs) throw await notArchived(missing, waited, context);
    if (now().getTime() - told >= TELL_EVERY_MS) {
      told = now().getTime();
      log.info(
        `waiting for PostgreSQL to archive "${missing.name}" (${Math.round(waited / 1000)} s): ${await describe(context)}`,
      );
    }
    await abortableDelay(Math.min(pollMs, timeoutMs - waited), signal);
  }
}

/** One LIST for each 256 segments or fewer: those that share all but the last eight digits. */
async function firstMissing(
  from: WalSegment,
  last: WalSegment,
  size: SegmentSize,
  archive: WalArchive,
): Promise<WalSegment | undefined> {
  let listed: { readonly prefix: string; readonly names: ReadonlySet<string> } | undefined;
  for (const segment of segmentsBetween(from, last, size)) {
    const prefix = segment.name.slice(0, 16);
    if (listed?.prefix !== prefix) listed = { prefix, names: await namesIn(archive, prefix) };
    if (!listed.names.has(segment.name)) return segment;
  }
  return undefined;
}

async function namesIn(archive: WalArchive, prefix: string): Promise<ReadonlySet<string>> {
  const names = new Set<string>();
  for await (const { file } of archive.list(prefix)) if (file?.kind === "segment") names.add(file.name);
  return names;
}

async function notArchived(missing: WalSegment, waitedMs: number, context: WaitForWalContext): Promise<PostgresError> {
  const { archive, archiver } = context;
  return new PostgresError(`"${missing.name}" was not archived within ${Math.round(waitedMs / 1000)} s`, {
    detail: `The backup needs it at ${archive.urlOf(missing.name)}. ${await describe(context)}`,
    hint: `${HINTS[archiver]} WALB_ARCHIVE_TIMEOUT sets how long to wait.`,
  });
}

/**
 * For the reader alone. Once the backup is stopped it needs its session no more: that it is gone, or that a firewall has
 * forgotten it and no answer comes, must not end a backup whose WAL may still come.
 */
async function describe({ describeArchiver, signal }: WaitForWalContext): Promise<string> {
  const answered = new AbortController();
  const tooLate = async () => {
    await abortableDelay(LONGEST_ANSWER_MS, AbortSignal.any([signal, answered.signal]));
    throw new PostgresError(`no answer within ${LONGEST_ANSWER_MS / 1000} s`);
  };
  try {
    return await Promise.race([describeArchiver(), tooLate()]);
  } catch (error) {
    // Before the backup is stopped, the end of its session is the end of the backup.
    signal.throwIfAborted();
    const detail = error instanceof Failure ? error.detail : undefined;
    return [`The server cannot be asked any more: ${reasonOf(error)}.`, detail].filter(Boolean).join(" ");
  } finally {
    answered.abort();
  }
}

const HINTS = {
  server: "Look into the server's log for what archive_command says, and check that it archives to this prefix.",
  primary:
    "The primary archives a segment when it is full: set archive_timeout there, or run SELECT pg_switch_wal() there while the backup waits. Check that it archives to this prefix.",
};
