/** The WAL path at length: a backlog, a recovery from it, what recovery waits for, and the memory of one that archives many. */
import { walbBinary } from "../../test/support/walb.ts";
import { describeMachine, machineLoad } from "../machine.ts";
import type { Options } from "../options.ts";
import { peersOf, type Work } from "../peers/peer.ts";
import { formatTable } from "../report.ts";
import { runRounds } from "../rounds.ts";
import { makeWalHistory } from "./history.ts";
import { openWalPeers } from "./peers.ts";

const MiB = 2 ** 20;

/** In this order: what is fetched alone was pushed alone, what is recovered was archived by the last backlog, a drain empties the archive. */
const WAL_MEASURED: readonly { readonly work: Work; readonly runs: "walRuns" | "shortRuns"; readonly title: string }[] =
  [
    { work: "pushSegment", runs: "shortRuns", title: "Archive one segment" },
    { work: "fetchSegment", runs: "shortRuns", title: "Fetch one segment, with nothing prefetched" },
    { work: "pushSegmentToS3", runs: "shortRuns", title: "Archive one segment to S3" },
    { work: "fetchSegmentFromS3", runs: "shortRuns", title: "Fetch one segment from S3, with nothing prefetched" },
    { work: "backlog", runs: "walRuns", title: "Archive a backlog of N segments, by PostgreSQL's archiver" },
    { work: "fetchHit", runs: "shortRuns", title: "Fetch the segment that comes next in recovery" },
    { work: "fetchMiss", runs: "shortRuns", title: "Ask in recovery for a segment that is not there" },
    { work: "recovery", runs: "walRuns", title: "Recover N segments, from the start of the server to its promotion" },
    { work: "drain", runs: "walRuns", title: "Archive N waiting segments by one wal-push" },
  ];

/** What is not here concerns all segments. */
const SEGMENTS_OF: Partial<Record<Work, number>> = {
  pushSegment: 1,
  fetchSegment: 1,
  pushSegmentToS3: 1,
  fetchSegmentFromS3: 1,
  fetchHit: 1,
  fetchMiss: 1,
  drain: 32,
};

/** @returns figures for the README */
export async function runWal(options: Options, say: (text: string) => void): Promise<string> {
  const load = machineLoad();
  say(`making a server with a backlog of ${options.walSegments} segments`);
  await using history = await makeWalHistory(options.walSegments);
  const { server, segments } = history;
  await using opened = await openWalPeers(await walbBinary(server.account), history);
  const { peers, missing } = peersOf(opened.found, options.without);
  const versions = peers.map(({ version }) => version).filter((version) => version !== "");
  const words = process.argv.slice(2).map((word) => ` ${word}`);
  const circumstances = [
    `- Command: \`bun run bench${words.join("")}\``,
    `- Date: ${new Date().toISOString().slice(0, 10)}`,
    `- Machine: ${describeMachine()}; load before: ${load}, after the WAL was written: ${machineLoad()}`,
    `- Versions: PostgreSQL ${server.major}, ${versions.join(", ")}`,
    `- WAL: ${segments.length} segments of 16 MiB`,
    `- Runs: ${options.walRuns} of each backlog, recovery and drain, ${options.shortRuns} of each fetch, one more fetch and drain before them not counted`,
    ...missing.map(({ name, why }) => `- Not measured: ${name}, because ${why}`),
  ];
  const parts = [`${circumstances.join("\n")}\n`];
  say(parts[0] ?? "");
  for (const { work, runs, title } of WAL_MEASURED) {
    const { directory, account: as } = server;
    const series = await runRounds(work, peers, { rounds: options[runs], directory, as });
    const count = SEGMENTS_OF[work] ?? segments.length;
    parts.push(formatTable({ title: title.replace("N", String(count)), series, contentBytes: count * 16 * MiB }));
    say(parts.at(-1) ?? "");
  }
  return parts.join("\n");
}
