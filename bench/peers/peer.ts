/** Who is measured: wal-b, and what is installed beside it. */
import type { RunContext, Sample } from "../measure.ts";

export type Work =
  | "version"
  | "failure"
  | "pushSegment"
  | "fetchSegment"
  | "pushSegmentToS3"
  | "fetchSegmentFromS3"
  | "pushBackup"
  | "fetchBackup"
  | "backlog"
  | "drain"
  | "recovery"
  | "fetchHit"
  | "fetchMiss";

export type Trial = CommandTrial | ServerTrial;

/** One command. */
export interface CommandTrial extends Surroundings, Pick<RunContext, "env" | "expectedExitCode"> {
  readonly command: readonly string[];
}

/** What a server does, which starts the commands itself. */
export interface ServerTrial extends Surroundings {
  measure(): Promise<Sample>;
}

/** What surrounds each run without being measured. */
interface Surroundings {
  /** Puts things back as they were before the first run. */
  prepare?(): Promise<void>;
  /** What the run left in the repository. */
  storedBytes?(): Promise<number>;
  /** @throws Error  the run did not do what it was measured for */
  check?(): Promise<void>;
}

export interface Peer {
  readonly name: string;
  readonly version: string;
  /** What it cannot do is left out. */
  readonly trials: Readonly<Partial<Record<Work, Trial>>>;
}

export interface Missing {
  readonly name: string;
  readonly why: string;
}

export interface Peers {
  readonly peers: readonly Peer[];
  readonly missing: readonly Missing[];
}

/** @param without  beginnings of names of peers that are to be left out */
export function peersOf(found: readonly (Peer | Missing)[], without: readonly string[]): Peers {
  const isLeftOut = ({ name }: Peer | Missing) => without.some((beginning) => name.startsWith(beginning));
  const chosen = found.map((peer) =>
    isLeftOut(peer) ? { name: peer.name, why: "it was left out by --without" } : peer,
  );
  return {
    peers: chosen.flatMap((peer) => ("why" in peer ? [] : [peer])),
    missing: chosen.flatMap((peer) => ("why" in peer ? [peer] : [])),
  };
}
