/**
 * Whether the store really refuses to overwrite. Some S3-compatible services take If-None-Match and ignore it (Ceph RGW 16 in a
 * versioned bucket), which no single answer shows: only a second write under a name that is taken does.
 */
import type { HostMemory } from "../system/host-memory.ts";
import type { Log } from "../system/log.ts";

/** What is known of a store: it refuses by itself, or has to be asked first. */
export type ConditionalWrites = "require" | "emulate";

export interface OverwriteProof {
  /**
   * To be called after the first object was created; does nothing once the answer is known.
   *
   * @param writeAgain  the same content under the same name, so that nothing is lost whatever the answer
   */
  prove(writeAgain: () => Promise<"created" | "exists">): Promise<void>;
}

export interface OverwriteProofContext {
  /** Of the store, for messages. */
  readonly location: string;
  /** Names the store in the host's memory. */
  readonly question: string;
  readonly memory: HostMemory;
  readonly log: Log;
}

export async function recallConditionalWrites({
  memory,
  question,
}: Pick<OverwriteProofContext, "memory" | "question">): Promise<ConditionalWrites | undefined> {
  const answer = await memory.recall(question);
  return answer === "require" || answer === "emulate" ? answer : undefined;
}

export function openOverwriteProof({ location, question, memory, log }: OverwriteProofContext): OverwriteProof {
  let proving: Promise<void> | undefined;
  const proveOnce = async (writeAgain: () => Promise<"created" | "exists">) => {
    const refuses = (await writeAgain()) === "exists";
    await memory.remember(question, refuses ? "require" : "emulate");
    if (refuses) return;
    log.warning(`the store at ${location} overwrites objects that must not be overwritten`, {
      detail:
        "It takes the condition If-None-Match and ignores it. From now on wal-b looks before it writes, which leaves a moment for a second writer.",
      hint: "Set WALB_S3_CONDITIONAL_WRITES=emulate to say so for good, or use a store that honours the condition.",
    });
  };
  return {
    prove(writeAgain) {
      proving ??= proveOnce(writeAgain);
      return proving;
    },
  };
}

/** For stores that are known: a directory, one that was asked before, or one that a setting speaks for. */
export const NO_PROOF_NEEDED: OverwriteProof = { prove: async () => {} };
