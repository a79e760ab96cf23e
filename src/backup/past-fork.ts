/**
 * Recovery that would go past a fork. A timeline's history is archived when it begins, and its first segment when that is full. If the
 * timeline before was archived up to the same number by a primary that nobody stopped, PostgreSQL takes that one's segment, and what
 * follows it: transactions that the new timeline does not have (XLogFileReadAnyTLI in xlogrecovery.c).
 */
import { IntegrityError } from "../errors.ts";
import { asLsn, formatLsn, type Lsn } from "../postgres/lsn.ts";
import type { PgControl } from "../postgres/pg-control.ts";
import { parseTimelineHistory } from "../postgres/timeline-history.ts";
import { isSegmentSize, segmentNumber, type WalSegment } from "../postgres/wal-segment.ts";
import type { WalArchive } from "../repository/wal-archive.ts";
import { pathTo, segmentOnPath, segmentsInstead } from "./recovery-path.ts";
import { type Reading, reachLsn, readHistoryText } from "./recovery-reach.ts";

type Hint = (fork: PastFork & { readonly timeline: number }) => string;

const OF_RESTORE: Hint = ({ timeline, instead }) =>
  `Nothing was written. Wait until the segment is archived: SELECT pg_switch_wal() on the server of timeline ${timeline} ends it. To recover what timeline ${instead.timeline} had, say --timeline ${instead.timeline}.`;
/** Which does not know the target. */
const OF_WAL_FETCH: Hint = ({ timeline, instead, left }) =>
  `If the recovery target is before LSN ${formatLsn(left)}, or timeline ${timeline} was a trial, set recovery_target_timeline = '${instead.timeline}'. Otherwise start again when the segment is archived: SELECT pg_switch_wal() on the server of timeline ${timeline} ends it.`;

/**
 * @param missing  number of the segment behind the last that is archived on the path
 * @throws IntegrityError  both are named
 */
export async function refusePastFork(missing: bigint, reading: Reading, hint = OF_RESTORE): Promise<void> {
  const found = await findPastFork(missing, reading);
  if (found === undefined) return;
  const { instead, left } = found;
  const { name, timeline } = segmentOnPath(reading.path, missing, reading.segmentSize);
  throw new IntegrityError(`"${name}" is not archived yet, and recovery would take "${instead.name}" for it`, {
    detail: `Timeline ${instead.timeline} was left at LSN ${formatLsn(left)} on the way to timeline ${timeline}, and recovery would replay what it had after that.`,
    hint: hint({ ...found, timeline }),
  });
}

export interface RecoveringServer extends Pick<Reading, "log" | "signal"> {
  readonly archive: WalArchive;
  /** Of the data directory in recovery. */
  readonly control: PgControl;
}

/**
 * For wal-fetch, which is about to say that a segment is not there.
 *
 * @throws IntegrityError  PostgreSQL would take another one
 */
export async function refuseForkBehind(segment: WalSegment, { control, ...context }: RecoveringServer): Promise<void> {
  const { systemIdentifier, walSegmentSizeBytes: segmentSize } = control;
  const text = segment.timeline === 1 ? undefined : await readHistoryText(segment.timeline, context.archive);
  if (text === undefined || !isSegmentSize(segmentSize)) return;
  const path = pathTo(segment.timeline, parseTimelineHistory(segment.timeline, text));
  const reading = { ...context, path, segmentSize, systemIdentifier };
  await refusePastFork(segmentNumber(segment, segmentSize), reading, OF_WAL_FETCH);
}

interface PastFork {
  readonly instead: WalSegment;
  readonly left: Lsn;
}

async function findPastFork(missing: bigint, reading: Reading): Promise<PastFork | undefined> {
  const { archive, path, segmentSize } = reading;
  for (const instead of segmentsInstead(path, missing, segmentSize)) {
    if (!(await isListed(instead, archive))) continue;
    const stretches = path.slice(0, path.findIndex(({ timeline }) => timeline === instead.timeline) + 1);
    const left = stretches.at(-1)?.until ?? asLsn(0n);
    const goesOn = await isListed(segmentOnPath(stretches, missing + 1n, segmentSize), archive);
    if (goesOn) return { instead, left };
    // Where a crash ended a timeline, it was left because there is no more of it.
    const reach = await reachLsn(left, { first: missing, last: missing }, { ...reading, path: stretches });
    return reach.kind === "not reached" ? undefined : { instead, left };
  }
  return undefined;
}

async function isListed({ name }: WalSegment, archive: WalArchive): Promise<boolean> {
  for await (const { file } of archive.list(name)) if (file?.name === name) return true;
  return false;
}
