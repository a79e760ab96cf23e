/** Waits until PostgreSQL has archived segments: without them a base backup cannot be restored. */
import { Failure, PostgresError, reasonOf } from "../errors.ts";
import type { SegmentSize, WalSegment } from "../postgres/wal-segment.ts";
import { segmentsBetween } from "../postgres/wal-segment.ts";
import { isSupported } from "../repository/keys.ts";
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
  /** What the server says of its archiving of a segment; undefined where we cannot ask. */
  readonly archiving: (segment: WalSegment) => Promise<"done" | "waits" | undefined>;
  /** What the server says of its archiver, as sentences. */
  readonly describeArchiver: () => Promise<string>;
}

const FIRST_POLL_MS = 50;
const LONGEST_POLL_MS = 5_000;
const TELL_EVERY_MS = 15_000;
const LONGEST_ANSWER_MS = 5_000;

/** The first of the segments that are needed which is not in the archive, or of which the server says that it waits. */
interface Outstanding {
  readonly segment: WalSegment;
  readonly isInArchive: boolean;
}

/**
 * A name in the archive is not enough: it may be another server's, a copy of this one, while this one's archive_command is
 * refused.
 *
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
  const { timeoutMs, log, signal, now, archiving } = context;
  const begun = now().getTime();
  let told = begun;
  let from = first;

  for (let pollMs = FIRST_POLL_MS; ; pollMs = Math.min(pollMs * 1.5, LONGEST_POLL_MS)) {
    const awaited = await firstAwaited(from, last, context);
    if (awaited === undefined) return undefined;
    from = awaited.segment;
    if (!awaited.isInArchive && (await archiving(from)) === "done") {
      // It may have come between the look and the question.
      if ((await firstAwaited(from, from, context)) !== undefined) return from;
      continue;
    }

    const waited = now().getTime() - begun;
    if (waited >= timeoutMs) throw await notArchived(awaited, context);
    if (now().getTime() - told >= TELL_EVERY_MS) {
      told = now().getTime();
      log.info(
        `waiting for PostgreSQL to archive "${from.name}" (${Math.round(waited / 1000)} s): ${await describe(context)}`,
      );
    }
    await abortableDelay(Math.min(pollMs, timeoutMs - waited), signal);
  }
}

/** One LIST for each 256 segments or fewer: those that share all but the last eight digits. */
async function firstAwaited(
  from: WalSegment,
  last: WalSegment,
  { segmentSize, archive, archiving }: WaitForWalContext,
): Promise<Outstanding | undefined> {
  let listed: { readonly prefix: string; readonly names: ReadonlySet<string> } | undefined;
  for (const segment of segmentsBetween(from, last, segmentSize)) {
    const prefix = segment.name.slice(0, 16);
    if (listed?.prefix !== prefix) listed = { prefix, names: await namesIn(archive, prefix) };
    const isInArchive = listed.names.has(segment.name);
    if (!isInArchive || (await archiving(segment)) === "waits") return { segment, isInArchive };
  }
  return undefined;
}

/** Of those that a restore can read. */
async function namesIn(archive: WalArchive, prefix: string): Promise<ReadonlySet<string>> {
  const names = new Set<string>();
  for await (const object of archive.list(prefix))
    if (object.file?.kind === "segment" && isSupported(object)) names.add(object.file.name);
  return names;
}

async function notArchived({ segment, isInArchive }: Outstanding, context: WaitForWalContext): Promise<PostgresError> {
  const { archive, archiver, timeoutMs } = context;
  const unsupported = isInArchive ? undefined : await inOtherFormat(segment, archive);
  if (unsupported) return unsupported;
  const url = archive.urlOf(segment.name);
  const why = isInArchive
    ? `There is ${url}, but the server still waits to archive it: it may be of another server, such as a copy of this one.`
    : `The backup needs it at ${url}.`;
  return new PostgresError(`"${segment.name}" was not archived within ${timeoutMs / 1000} s`, {
    detail: `${why} ${await describe(context)}`,
    hint: `${HINTS[archiver]} WALB_ARCHIVE_TIMEOUT sets how long to wait.`,
  });
}

/** @returns the failure, where the segment is there, but in a format that no restore could read */
export async function inOtherFormat(segment: WalSegment, archive: WalArchive): Promise<PostgresError | undefined> {
  const form = await archive.unsupportedForm(segment);
  if (form === undefined) return undefined;
  return new PostgresError("the server archives WAL in a format that is not supported", {
    detail: `${form} A restore could not read it.`,
    hint: "Set archive_command to 'wal-b wal-push %p', and take the backup then.",
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
