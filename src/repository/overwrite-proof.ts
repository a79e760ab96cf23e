/**
 * Whether the store really refuses to overwrite. Some S3-compatible services take If-None-Match and ignore it (Ceph RGW 16 in a
 * versioned bucket), which no single answer shows: only a second write under a name that is taken does.
 */
import type { ObjectKey, ObjectMetadata } from "../storage/object-store.ts";
import type { HostMemory } from "../system/host-memory.ts";
import type { Log } from "../system/log.ts";

/** What is known of a store: it refuses by itself, or has to be asked first. */
export type ConditionalWrites = "require" | "emulate";

export interface CreatedObject {
  readonly key: ObjectKey;
  readonly body: Uint8Array;
  readonly metadata: ObjectMetadata;
}

export interface OverwriteProof {
  /**
   * To be called after an object was created; does nothing once the answer is known.
   *
   * @param created  is written again, so that nothing is lost whatever the answer
   */
  prove(created: CreatedObject): Promise<void>;
}

export interface OverwriteProofContext {
  /** Of the store, for messages. */
  readonly location: string;
  /** Names the store in the host's memory. */
  readonly question: string;
  readonly memory: HostMemory;
  /** Writes on the condition alone, without looking first. */
  readonly putIfAbsent: ({ key, body, metadata }: CreatedObject) => Promise<"created" | "exists">;
  readonly log: Log;
}

export async function recallConditionalWrites({
  memory,
  question,
}: Pick<OverwriteProofContext, "memory" | "question">): Promise<ConditionalWrites | undefined> {
  const answer = await memory.recall(question);
  return answer === "require" || answer === "emulate" ? answer : undefined;
}

export function openOverwriteProof({
  location,
  question,
  memory,
  putIfAbsent,
  log,
}: OverwriteProofContext): OverwriteProof {
  let proving: Promise<void> | undefined;
  const proveOnce = async (created: CreatedObject) => {
    const refuses = (await putIfAbsent(created)) === "exists";
    await memory.remember(question, refuses ? "require" : "emulate");
    if (refuses) return;
    log.warning(`the store at ${location} overwrites objects that must not be overwritten`, {
      detail:
        "It takes the condition If-None-Match and ignores it. From now on wal-b looks before it writes, which leaves a moment for a second writer.",
      hint: "Set WALB_S3_CONDITIONAL_WRITES=emulate to say so for good, or use a store that honours the condition.",
    });
  };
  return {
    prove(created) {
      proving ??= proveOnce(created);
      return proving;
    },
  };
}

/** For stores that are known: a directory, one that was asked before, or one that a setting speaks for. */
export const NO_PROOF_NEEDED: OverwriteProof = { prove: async () => {} };
