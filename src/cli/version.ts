/** wal-b version: WAL-E's word for --version */
import { FULL_VERSION } from "../version.ts";
import type { Command } from "./command.ts";

export const version: Command = {
  name: "version",
  summary: "print the version",
  description: "Prints the version, as --version does.",
  positionals: {},
  options: {},
  examples: [],

  async run(_, context) {
    context.output.write(`${FULL_VERSION}\n`);
  },
};
