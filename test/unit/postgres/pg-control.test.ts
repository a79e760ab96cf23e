import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { IntegrityError, PostgresError, SourceMissingError } from "../../../src/errors.ts";
import { decodePgControl, readPgControl } from "../../../src/postgres/pg-control.ts";
import { controlFile } from "./control-file.ts";

describe("decodePgControl()", () => {
  test.each([
    // control version, of majors
    [1201, "12"],
    [1300, "13 to 16"],
    [1700, "17"],
    [1800, "18, whose checksum stands elsewhere"],
  ])("reads version %i (PostgreSQL %s)", (controlVersion) => {
    expect(decodePgControl(controlFile({ controlVersion }))).toEqual({
      systemIdentifier: 7420325342344323423n,
      controlVersion,
      catalogVersion: 202209061,
      state: "shut down",
      checkpointLsn: 0x3000060n as never,
      redoLsn: 0x3000028n as never,
      timeline: 2,
      previousTimeline: 1,
      minRecoveryLsn: 0x1_0000_0000n as never,
      minRecoveryTimeline: 2,
      backupStartLsn: 0x2000000n as never,
      backupEndLsn: 0x2000100n as never,
      backupEnd: "required",
      limits: {
        max_connections: 100,
        max_worker_processes: 8,
        max_wal_senders: 10,
        max_prepared_transactions: 2,
        max_locks_per_transaction: 64,
      },
      blockSizeBytes: 8192,
      relationSegmentBlocks: 131072,
      walBlockSizeBytes: 8192,
      walSegmentSizeBytes: 16777216,
      dataChecksums: "on",
    });
  });

  test("notices every single flipped bit that the server's checksum covers", () => {
    for (let bit = 0; bit < 288 * 8; bit++) {
      const bytes = controlFile();
      bytes[bit >> 3] = (bytes[bit >> 3] as number) ^ (1 << (bit & 7));
      expect(() => decodePgControl(bytes)).toThrow(/damaged|unknown version/);
    }
  });

  test("refuses a version that it does not know, and names it", () => {
    expect(() => decodePgControl(controlFile({ controlVersion: 1902 }))).toThrow(PostgresError);
    expect(() => decodePgControl(controlFile({ controlVersion: 1902 }))).toThrow("unknown version");
  });

  test("refuses a file that is too short, and a state that does not exist", () => {
    expect(() => decodePgControl(controlFile().subarray(0, 511))).toThrow(IntegrityError);
    expect(() => decodePgControl(controlFile({ state: 9 }))).toThrow(IntegrityError);
  });
});

describe("readPgControl()", () => {
  async function directory() {
    const path = await mkdtemp(join(tmpdir(), "walb-control-"));
    await mkdir(join(path, "global"));
    return { path, file: join(path, "global/pg_control"), [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
  }

  test("reads again when it caught half a write", async () => {
    await using found = await directory();
    const [before, after] = [controlFile({ redoLsn: 0x3000028n }), controlFile({ redoLsn: 0x9000028n })];
    await writeFile(found.file, Buffer.concat([after.subarray(0, 64), before.subarray(64)]));
    // Read for the first time before it returns.
    const reading = readPgControl(found.path);
    writeFileSync(found.file, after);
    expect((await reading).redoLsn).toBe(0x9000028n as never);
  });

  test("gives up when the same wrong bytes come twice", async () => {
    await using found = await directory();
    const bytes = controlFile();
    bytes[40] = 0;
    await writeFile(found.file, bytes);
    await expect(readPgControl(found.path)).rejects.toThrow(IntegrityError);
  });

  test("says that the path is no data directory when there is none", async () => {
    await using found = await directory();
    const failure = (await readPgControl(found.path).catch((error) => error)) as SourceMissingError;
    expect(failure).toBeInstanceOf(SourceMissingError);
    expect(failure.message).toBe(`could not read "${found.file}"`);
    expect(failure.hint).toBe("Check that the path is a PostgreSQL data directory.");
  });
});
