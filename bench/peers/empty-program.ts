/** What starting a program costs here, with GNU time around it. */
import { existsSync } from "node:fs";
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { PostgresServer } from "../../test/support/postgres-server.ts";
import type { Peer } from "./peer.ts";

export function emptyProgram(): Peer {
  return { name: "true", version: "", trials: { version: { command: ["true"] } } };
}

/** The least that a program compiled by Bun takes. */
export async function emptyBunProgram(server: PostgresServer): Promise<Peer> {
  const directory = await server.makeDirectory("empty program");
  const [source, outfile] = [join(directory, "empty.ts"), join(directory, "empty")];
  const prepare = async () => {
    if (existsSync(outfile)) return;
    await writeFile(source, "");
    await Bun.build({ entrypoints: [source], target: "bun", bytecode: true, format: "esm", compile: { outfile } });
    await chmod(outfile, 0o755);
  };
  return { name: "an empty program of Bun's", version: "", trials: { version: { command: [outfile], prepare } } };
}
