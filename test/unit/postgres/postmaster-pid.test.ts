import { describe, expect, test } from "bun:test";
import { isProcessRunning, parsePostmasterPid } from "../../../src/postgres/postmaster-pid.ts";

describe("parsePostmasterPid()", () => {
  test("reads what a running server wrote", () => {
    const text = "4711\n/data\n1763908000\n5433\n/var/run/postgresql\nlocalhost\n  5432001  12\nready   \n";
    expect(parsePostmasterPid(text, "/data")).toEqual({
      pid: 4711,
      dataDirectory: "/data",
      startedAt: 1763908000,
      port: 5433,
      socketDirectory: "/var/run/postgresql",
      listenAddress: "localhost",
      status: "ready",
    });
  });

  test("knows no port while the server has only written its first lines", () => {
    expect(parsePostmasterPid("4711\n/data\n1763908000\n", "/data")).toMatchObject({ pid: 4711, port: undefined });
  });

  test("takes a relative socket directory as relative to the data directory", () => {
    expect(parsePostmasterPid("1\n/data\n0\n5432\nsockets\n", "/data")?.socketDirectory).toBe("/data/sockets");
  });

  test("takes the negative number of a server in single-user mode for a process too", () => {
    expect(parsePostmasterPid("-4711\n/data\n0\n", "/data")?.pid).toBe(4711);
  });

  test.each(["", "\n", "not a number\n"])("finds nothing in %j", (text) => {
    expect(parsePostmasterPid(text, "/data")).toBeUndefined();
  });
});

test("isProcessRunning() tells processes that run from numbers without one", () => {
  expect(isProcessRunning(process.pid)).toBe(true);
  expect(isProcessRunning(1)).toBe(true); // somebody else's, unless root asks
  expect(isProcessRunning(2 ** 22 + 1)).toBe(false); // above the kernel's limit
});

test.if(process.platform === "linux")(
  "isProcessRunning() does not take a process for running that has ended and is not reaped",
  async () => {
    // The shell's child ends when the shell is no shell any more: what it became, `sleep`, never asks for its exit code.
    await using parent = Bun.spawn(["sh", "-c", "sleep 0.2 & echo $!; exec sleep 30"], { stdout: "pipe" });
    const reader = parent.stdout.getReader();
    const pid = Number(new TextDecoder().decode((await reader.read()).value));
    for (let n = 0; n < 100 && isProcessRunning(pid); n++) await Bun.sleep(20);
    expect(() => process.kill(pid, 0)).not.toThrow();
    expect(isProcessRunning(pid)).toBe(false);
    expect(isProcessRunning(parent.pid)).toBe(true);
  },
);
