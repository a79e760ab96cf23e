/** `true`: what starting any program costs here, with GNU time around it. */
import type { Peer } from "./peer.ts";

export function emptyProgram(): Peer {
  return { name: "true", version: "", trials: { version: { command: ["true"] } } };
}
