/**
 * What real servers make of each way in which restore_command can end, and what they write into their logs about it: what
 * docs/exit-codes.md tells, and why wal-fetch ends as it does. Measured on 15 too, with the same outcome as on 18.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { startPostgresOn } from "../support/postgres-server.ts";
import { type ArchivedHistory, archiveSegments, restoreBeside } from "../support/prefetching.ts";
import { walbBinary } from "../support/walb.ts";

const walb = await walbBinary();

type Outcome = "promotes" | "stops" | "asks again";
type Mode = "recovery" | "recovery to a time" | "standby";

interface Row {
  readonly way: string;
  readonly script: string;
  readonly outcome: Readonly<Record<Mode, Outcome>>;
  /** Of the log, where it stops. SEGMENT is the one that was asked for. */
  readonly line?: string;
}

/** With a target that recovery does not reach, 13 and later stop where it would end. */
const END_OF_WAL = { recovery: "promotes", "recovery to a time": "stops", standby: "asks again" } as const;
const STOPS = { recovery: "stops", "recovery to a time": "stops", standby: "stops" } as const;
const NOT_REACHED = "FATAL:  recovery ended before configured recovery target was reached";

const ROWS: readonly Row[] = [
  { way: "0, and no file", script: "exit 0", outcome: END_OF_WAL, line: NOT_REACHED },
  {
    way: "0, and a file that is too short",
    script: "head -c 1000 /dev/zero > %p; exit 0",
    outcome: { ...STOPS, standby: "asks again" },
    line: 'FATAL:  archive file "SEGMENT" has wrong size: 1000 instead of 1048576',
  },
  { way: "125", script: "exit 125", outcome: END_OF_WAL, line: NOT_REACHED },
  {
    way: "126",
    script: "exit 126",
    outcome: STOPS,
    line: 'FATAL:  could not restore file "SEGMENT" from archive: command not executable',
  },
  {
    way: "200",
    script: "exit 200",
    outcome: STOPS,
    line: 'FATAL:  could not restore file "SEGMENT" from archive: child process exited with exit code 200',
  },
  {
    way: "killed by signal 9",
    script: "kill -9 $$",
    outcome: STOPS,
    line: 'FATAL:  could not restore file "SEGMENT" from archive: child process was terminated by signal 9: Killed',
  },
  { way: "143", script: "exit 143", outcome: STOPS },
];

describe.each([12, 18])("PostgreSQL %i, restore_command ends with", (major) => {
  let history: ArchivedHistory;
  let restored: string;
  beforeAll(async () => {
    const inDirectory = async (primary: ArchivedHistory["primary"]) => ({
      WALB_FILE_PREFIX: await primary.makeDirectory("repository"),
    });
    history = await archiveSegments(major, inDirectory, 4);
    restored = await restoreBeside(history, "restored");
    await rm(join(restored, "recovery.signal"));
  });
  afterAll(() => history?.[Symbol.asyncDispose]());

  /** 12 takes what ends early for what was asked for. */
  const expectedOf = ({ outcome }: Row, mode: Mode): Outcome =>
    major === 12 && mode === "recovery to a time" ? outcome.recovery : outcome[mode];
  const cases = ROWS.flatMap((row) =>
    (["recovery", "recovery to a time", "standby"] as const).map(
      (mode) => [row.way, mode, expectedOf(row, mode), row] as const,
    ),
  );

  test.each(cases)("%s: %s %s", async (_, mode, expected, { script, line }) => {
    const { primary, segments, env } = history;
    const [data, asked] = [join(primary.directory, "tried"), join(primary.directory, "asked")];
    for (const path of [data, asked]) await rm(path, { recursive: true, force: true });
    await cp(restored, data, { recursive: true, preserveTimestamps: true });
    const signal = join(data, mode === "standby" ? "standby.signal" : "recovery.signal");
    await writeFile(signal, "");
    await giveTo(primary.account, signal);
    const [, segment = ""] = segments;
    await using server = await startPostgresOn(data, {
      settings: {
        restore_command: `if [ %f = ${segment} ]; then echo >> ${asked}; ${script}; fi; ${walb} wal-fetch %f %p`,
        archive_mode: "off",
        hot_standby: "on",
        recovery_target_timeline: "current",
        wal_retrieve_retry_interval: "100ms",
        ...(mode === "recovery to a time" && { recovery_target_time: "2099-01-01 00:00:00+00" }),
      },
      env: { ...env, WALB_PREFETCH: "0" },
      until: "spawned",
    });
    const outcome = await server.waitFor(async (): Promise<Outcome | undefined> => {
      if (!server.isRunning) return "stops";
      // Asked for twice in a row, it may only have been looked for on another timeline.
      if (mode === "standby" && (await readFile(asked, "utf8").catch(() => "")).length >= 4) return "asks again";
      return (await server.psql("SELECT pg_is_in_recovery()").catch(() => "")) === "f" ? "promotes" : undefined;
    });
    expect(outcome).toBe(expected);

    const log = await server.logText();
    if (outcome !== "stops") return expect(log).not.toContain("FATAL:  could not restore file");
    expect(await server.exited()).toEqual({ exitCode: 1, signal: null });
    if (line !== undefined) expect(log).toContain(`${line.replace("SEGMENT", segment)}\n`);
    else expect(log).not.toMatch(/FATAL: {2}(?!the database system is)/);
    expect(log).toMatch(/LOG: {2}startup process \(PID \d+\) exited with exit code 1\n/);
  });
});
