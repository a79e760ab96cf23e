import { describe, expect, test } from "bun:test";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type RecoveryState, recoveryState, walFetchExitCode } from "../../../src/cli/recovery.ts";
import * as errors from "../../../src/errors.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

describe("recoveryState()", () => {
  test.each([
    [[], "no recovery"],
    [["recovery.signal"], "recovery"],
    [["standby.signal"], "standby"],
    [["recovery.signal", "standby.signal"], "standby"], // PostgreSQL takes it so: both signals make a standby
  ] as [string[], RecoveryState][])("%p in the data directory means %s", async (signals, expected) => {
    await using data = await temporaryDirectory();
    await using elsewhere = await temporaryDirectory();
    await mkdir(join(data.path, "pg_wal"));
    for (const name of signals) await writeFile(join(data.path, name), "");
    expect(recoveryState(data.path)).toBe(expected);
    expect(recoveryState(data.path, ["pg_wal/RECOVERYXLOG"])).toBe(expected);
    expect(recoveryState(elsewhere.path, [join(data.path, "pg_wal", "RECOVERYXLOG")])).toBe(expected);
  });

  test("looks at the destination's data directory before the working directory", async () => {
    await using data = await temporaryDirectory();
    await using elsewhere = await temporaryDirectory();
    await writeFile(join(data.path, "standby.signal"), "");
    await writeFile(join(elsewhere.path, "recovery.signal"), "");
    expect(recoveryState(elsewhere.path, [join(data.path, "pg_wal", "RECOVERYXLOG")])).toBe("standby");
    expect(recoveryState(elsewhere.path, ["8", "pg_wal/RECOVERYXLOG"])).toBe("recovery");
  });
});

describe("walFetchExitCode()", () => {
  const absent = new errors.NotFoundError("not in the archive");

  test("proved absence is 74 everywhere: recovery may end there", () => {
    for (const state of ["recovery", "standby", "no recovery"] as const)
      expect(walFetchExitCode(absent, state)).toBe(74);
  });

  test.each([
    ["the store fails", new errors.StorageError("x"), 69],
    ["the store refuses", new errors.AccessError("x"), 77],
    ["the object is damaged", new errors.IntegrityError("x"), 65],
    ["a setting is wrong", new errors.UsageError("x"), 64],
    ["the disk is full", new errors.DestinationError("x"), 73],
    ["it is our own bug", new TypeError("x"), 70],
    ["what is thrown is no error", "x", 70],
    ["nothing is thrown", undefined, 70],
  ])("when %s, recovery must stop with 200, and a standby asks again", (_, error, usual) => {
    expect(walFetchExitCode(error, "recovery")).toBe(200);
    expect(walFetchExitCode(error, "standby")).toBe(usual);
    expect(walFetchExitCode(error, "no recovery")).toBe(usual);
  });

  test("a signal keeps its code: PostgreSQL takes 143 for its own shutdown", () => {
    expect(walFetchExitCode(new errors.InterruptedError("SIGTERM", 15), "recovery")).toBe(143);
    expect(walFetchExitCode(new errors.InterruptedError("SIGTERM", 15), "standby")).toBe(143);
  });
});
