/** What recovery is told in a restored directory: settings behind those of ALTER SYSTEM, and the signal file. */
import { readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { systemCodeOf } from "../errors.ts";
import {
  AUTO_CONF,
  type ConfSettings,
  isOfRecovery,
  settingOfLine,
  withRecoverySettings,
} from "../postgres/auto-conf.ts";
import { destinationError } from "../system/atomic-file.ts";
import type { Log } from "../system/log.ts";
import { writeOwned } from "./owner.ts";
import type { PreparedTarget } from "./target.ts";

export type SignalFile = "recovery.signal" | "standby.signal";

export interface RecoverySettings {
  readonly settings: ConfSettings;
  readonly signalFile: SignalFile;
  /** One line that says what wrote them. */
  readonly note: string;
}

/**
 * The directory has no pg_control yet, so no server can start on one without the other.
 *
 * @throws DestinationError  the file system refuses
 */
export async function writeRecoverySettings(
  { target, owner }: Pick<PreparedTarget, "target" | "owner">,
  { settings, signalFile, note }: RecoverySettings,
  log: Log,
): Promise<void> {
  const autoConf = join(target, AUTO_CONF);
  const before = await readIfThere(autoConf);
  const added = settings.map(([name, value]) => [name, bytewise(value)] as const);
  const after = withRecoverySettings(before?.text ?? "", added, bytewise(note));
  await writeOwned(autoConf, Buffer.from(after, "latin1"), before?.mode ?? 0o600, owner);

  // With both, the server is a standby (xlogrecovery.c, readRecoverySignalFile).
  for (const other of ["recovery.signal", "standby.signal"]) await rm(join(target, other), { force: true });
  await writeOwned(join(target, signalFile), "", 0o600, owner);

  const main = await readIfThere(join(target, "postgresql.conf"));
  const leading = (main?.text ?? "").split("\n").filter((line) => isOfRecovery(line) && /target/.test(line));
  const overridden = new Set(settings.map(([name]) => name));
  const left = leading.map((line) => settingOfLine(line) ?? "").filter((name) => !overridden.has(name));
  if (left.length > 0) {
    log.warning(`postgresql.conf sets ${left.join(", ")}`, {
      detail: "These are of an earlier recovery, and this one would follow them.",
      hint: `Remove them from "${join(target, "postgresql.conf")}" before you start the server.`,
    });
  }
}

/** As readIfThere() reads it. */
const bytewise = (text: string) => Buffer.from(text).toString("latin1");

/** A character for each byte: values are in the encoding of the database in which ALTER SYSTEM was said, and must stay as they are. */
async function readIfThere(path: string): Promise<{ readonly text: string; readonly mode: number } | undefined> {
  try {
    return { text: await readFile(path, "latin1"), mode: (await stat(path)).mode & 0o777 };
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return undefined;
    throw destinationError(`could not read "${path}"`, cause);
  }
}
