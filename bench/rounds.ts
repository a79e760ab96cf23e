/** Trials of several peers in turn, A B C B C A C A B, so that a busy moment of the machine hits all of them alike. */
import { runProgram } from "../test/support/run-program.ts";
import { measure, type RunContext, type Sample } from "./measure.ts";
import type { CommandTrial, Peer, Trial, Work } from "./peers/peer.ts";

/** Of one peer, one for each round: samples with the same index belong together. */
export interface Series {
  readonly peer: string;
  readonly samples: readonly Sample[];
  readonly storedBytes: number | undefined;
}

export interface RoundsContext extends Pick<RunContext, "directory" | "as"> {
  readonly rounds: number;
}

/** The first round of commands fills caches and is thrown away; what a server does is longer than that matters. */
export async function runRounds(
  work: Work,
  peers: readonly Peer[],
  context: RoundsContext,
): Promise<readonly Series[]> {
  const able = peers.filter((peer) => peer.trials[work] !== undefined);
  const samples = new Map<Peer, Sample[]>(able.map((peer) => [peer, []]));
  const stored = new Map<Peer, number>();
  for (let round = 0; round <= context.rounds; round++) {
    if (round === 0 && able.some((peer) => isServerTrial(peer.trials[work]))) continue;
    for (let turn = 0; turn < able.length; turn++) {
      const peer = able[(turn + round) % able.length] as Peer;
      const sample = await runTrial(work, peer, context, stored);
      if (round > 0) samples.get(peer)?.push(sample);
    }
  }
  return able.map((peer) => ({
    peer: peer.name,
    samples: samples.get(peer) ?? [],
    storedBytes: stored.get(peer),
  }));
}

const isServerTrial = (trial: Trial | undefined) => trial !== undefined && "measure" in trial;

async function runTrial(
  work: Work,
  peer: Peer,
  { directory, as }: RoundsContext,
  stored: Map<Peer, number>,
): Promise<Sample> {
  const trial = peer.trials[work];
  if (trial === undefined) throw new Error(`${peer.name} cannot ${work}`);
  await trial.prepare?.();
  // What one left to be written must not be waited for by the next one's fsync.
  await runProgram(["sync", "-f", directory]);
  const sample = "measure" in trial ? await trial.measure() : await measureCommand(trial, { directory, as });
  await trial.check?.();
  const bytes = await trial.storedBytes?.();
  if (bytes !== undefined) stored.set(peer, bytes);
  return sample;
}

async function measureCommand(
  { command, env = {}, expectedExitCode = 0 }: CommandTrial,
  { directory, as }: Pick<RunContext, "directory" | "as">,
): Promise<Sample> {
  return await measure(command, { directory, env, as, expectedExitCode });
}
