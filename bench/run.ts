/**
 * Measures wal-b beside pgBackRest and tar with zstd, on a real server and a repository in a directory: `bun bench/run.ts`,
 * after a build. README.md has the figures and how to read them. Nothing fails for being slow.
 */
import { walbBinary } from "../test/support/walb.ts";
import { describeMachine, machineLoad } from "./machine.ts";
import { type Group, type Options, parseOptions } from "./options.ts";
import { emptyBunProgram, emptyProgram } from "./peers/empty-program.ts";
import { type Missing, type Peer, peersOf, type Work } from "./peers/peer.ts";
import { openPgbackrest } from "./peers/pgbackrest.ts";
import { openS3Peers, type S3Peers } from "./peers/s3-backup.ts";
import { openTarZstd } from "./peers/tar-zstd.ts";
import { openWalB } from "./peers/wal-b.ts";
import { formatTable, type Part, writeReadme } from "./report.ts";
import { runRounds } from "./rounds.ts";
import { runWal } from "./wal/run.ts";
import { makeWorkload, type Workload } from "./workload.ts";

const MiB = 2 ** 20;

/** In this order: what is fetched was pushed before. */
const MEASURED: readonly { readonly group: Group; readonly work: Work; readonly title: string }[] = [
  { group: "start", work: "version", title: "Starting: print the version" },
  { group: "start", work: "failure", title: "Starting: refuse the words" },
  { group: "segment", work: "pushSegment", title: "Archive one WAL segment of 16 MiB" },
  { group: "segment", work: "fetchSegment", title: "Fetch one WAL segment of 16 MiB" },
  { group: "backup", work: "pushBackup", title: "Base backup" },
  { group: "backup", work: "fetchBackup", title: "Restore of the base backup" },
];

const NO_S3: S3Peers = { found: [], [Symbol.asyncDispose]: async () => {} };

const options = parseOptions(process.argv.slice(2));
const short = options.groups.filter((group) => group === "start" || group === "segment");
if (short.length > 0) await publish("figures", await run(options, short, 50));
if (options.groups.includes("backup")) {
  const parts: string[] = [];
  for (const sizeMiB of options.sizesMiB) parts.push(await run(options, ["backup"], sizeMiB));
  await publish("backup figures", parts.join("\n"));
}
if (options.groups.includes("wal")) await publish("WAL figures", await runWal(options, say));

/** Each part at its place, so that one can be measured without the other. */
async function publish(part: Part, text: string): Promise<void> {
  if (options.report === "README") await writeReadme(part, text);
}

async function run(options: Options, groups: readonly Group[], sizeMiB: number): Promise<string> {
  const load = machineLoad();
  say(`making a server with ${sizeMiB} MiB`);
  await using workload = await makeWorkload(sizeMiB);
  const binary = await walbBinary(workload.server.account);
  await using s3 = groups.includes("backup") ? await openS3Peers(binary, workload) : NO_S3;
  const found = [...(await openPeers(binary, options, workload)), ...s3.found];
  const { peers, missing } = peersOf(found, options.without);

  const parts = [describe({ options, workload, peers, missing, load })];
  say(parts[0] ?? "");
  for (const { group, work, title } of MEASURED) {
    if (!groups.includes(group)) continue;
    const rounds = group === "backup" ? options.backupRuns : options.shortRuns;
    const { directory, account: as } = workload.server;
    const series = await runRounds(work, peers, { rounds, directory, as });
    const { contentBytes } = workload;
    const table = formatTable({ title, series, ...(group === "backup" && { contentBytes }) });
    parts.push(table);
    say(table);
  }
  return parts.join("\n");
}

async function openPeers(
  binary: string,
  { against }: Options,
  workload: Workload,
): Promise<readonly (Peer | Missing)[]> {
  return [
    await openWalB("wal-b", binary, workload),
    ...(against === undefined ? [] : [await openWalB("the other wal-b", against, workload)]),
    onlyPushing(await openWalB("wal-b, level 3", binary, workload, { WALB_COMPRESSION_LEVEL: "3" })),
    await openPgbackrest("pgBackRest", 3, workload),
    onlyPushing(await openPgbackrest("pgBackRest, level 1", 1, workload)),
    await openTarZstd(workload),
    await emptyBunProgram(workload.server),
    emptyProgram(),
  ];
}

/** Levels differ in what compressing takes, and hardly in anything else. */
function onlyPushing(peer: Peer | Missing): Peer | Missing {
  if (!("trials" in peer)) return peer;
  const { pushSegment, pushBackup } = peer.trials;
  return { ...peer, version: "", trials: { ...(pushSegment && { pushSegment }), ...(pushBackup && { pushBackup }) } };
}

interface Circumstances {
  readonly options: Options;
  readonly workload: Workload;
  readonly peers: readonly Peer[];
  readonly missing: readonly Missing[];
  readonly load: string;
}

function describe({ options, workload, peers, missing, load }: Circumstances): string {
  const words = process.argv.slice(2).map((word) => ` ${word}`);
  const versions = [
    `Bun ${Bun.version}`,
    `PostgreSQL ${workload.server.major}`,
    ...peers.filter(({ version }) => version !== "").map(({ name, version }) => versionOf(name, version)),
  ];
  const { backupRuns, shortRuns } = options;
  return [
    `- Command: \`bun run bench${words.join("")}\``,
    `- Date: ${new Date().toISOString().slice(0, 10)}`,
    `- Machine: ${describeMachine()}; load before: ${load}`,
    `- Versions: ${versions.join(", ")}`,
    `- Data directory: ${(workload.contentBytes / MiB).toFixed(0)} MiB without pg_wal, with data checksums`,
    `- Runs: ${backupRuns} of each backup and restore, ${shortRuns} of each short command, one more before them not counted`,
    ...missing.map(({ name, why }) => `- Not measured: ${name}, because ${why}`),
    "",
  ].join("\n");
}

function versionOf(name: string, version: string): string {
  return version.toLowerCase().startsWith(name.toLowerCase()) ? version : `${name} ${version}`;
}

function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
