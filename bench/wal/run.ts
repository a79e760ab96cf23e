/** The WAL path at length: a backlog, a recovery from it, what recovery waits for, and the memory of one that archives many. */
import { walbBinary } from "../../test/support/walb.ts";
import { machineLoad } from "../machine.ts";
import type { Options } from "../options.ts";
import type { Work } from "../peers/peer.ts";
import { formatTable } from "../report.ts";
import { runRounds } from "../rounds.ts";
import { makeWalHistory } from "./history.ts";
import { openWalPeers } from "./peers.ts";

const MiB = 2 ** 20;

/** In this order: what is recovered was archived by the last backlog; a drain empties the archive. */
const WAL_MEASURED: readonly { readonly work: Work; readonly runs: "walRuns" | "shortRuns"; readonly title: string }[] =
  [
    { work: "backlog", runs: "walRuns", title: "Archive a backlog of N segments, by PostgreSQL's archiver" },
    { work: "recovery", runs: "walRuns", title: "Recover N segments, from the start of the server to its promotion" },
    { work: "fetchHit", runs: "shortRuns", title: "Fetch the segment that comes next in recovery" },
    { work: "fetchMiss", runs: "shortRuns", title: "Ask in recovery for a segment that is not there" },
    { work: "drain", runs: "walRuns", title: "Archive 32 waiting segments by one wal-push" },
  ];

export async function runWal(
  options: Options,
  { say, version }: { say(text: string): void; readonly version: string },
): Promise<readonly string[]> {
  say(`making a server with a backlog of ${options.walSegments} segments`);
  await using history = await makeWalHistory(options.walSegments);
  const { server, segments } = history;
  await using found = await openWalPeers(await walbBinary(server.account), version, history);
  const absent = found.missing.map(({ name, why }) => `- Not measured with WAL: ${name}, because ${why}\n`);
  const parts = [
    `- WAL: ${segments.length} segments of 16 MiB; ${options.walRuns} runs of each backlog, recovery and drain; load before: ${machineLoad()}\n${absent.join("")}`,
  ];
  for (const { work, runs, title } of WAL_MEASURED) {
    const { directory, account: as } = server;
    const series = await runRounds(work, found.peers, { rounds: options[runs], directory, as });
    const contentBytes = (work === "drain" ? 32 : segments.length) * 16 * MiB;
    parts.push(formatTable({ title: title.replace("N", String(segments.length)), series, contentBytes }));
    say(parts.at(-1) ?? "");
  }
  return parts;
}
