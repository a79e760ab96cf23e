/** On a terminal backup-push draws a line with percent, rate and time left, and takes it away again. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { archiveEverything, startArchiving, temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { baseEnvironment } from "../support/run-program.ts";
import { walbBinary } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;
beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startArchiving(repository.env, { major: 17 });
  // The server's account has to make these directories, for wal-b runs as another one here.
  await archiveEverything(server, repository);
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

/** Slowly enough to be seen, on a terminal of so many columns. */
async function start(args: readonly string[] = [], env: Readonly<Record<string, string>> = {}) {
  const program = await walbBinary();
  let shown = "";
  const running = Bun.spawn(
    [program, "backup-push", server.dataDirectory, "--cluster-read-rate-limit", "512kB", ...args],
    {
      env: { ...baseEnvironment(), ...server.env, ...repository.env, TERM: "xterm", ...env },
      terminal: {
        cols: 100,
        rows: 24,
        data: (_, bytes) => {
          shown += Buffer.from(bytes).toString("utf8");
        },
      },
    },
  );
  return {
    shown: () => shown,
    isOver: () => running.exitCode !== null,
    async interrupt() {
      running.kill("SIGTERM");
      const exitCode = await running.exited;
      running.terminal?.close();
      return exitCode;
    },
    [Symbol.asyncDispose]: async () => {
      running.kill("SIGKILL");
      await running.exited;
      running.terminal?.close();
    },
  };
}

test("a line is drawn over and over, and is gone before the last message", async () => {
  await using running = await start();
  const DRAWN = /\rcopied [\d.]+ MiB of [\d.]+ MiB \(\d+ %\), [\d.]+ MiB\/s, \d+ (?:s|min) left/g;
  await server.waitFor(() => running.isOver() || (running.shown().match(DRAWN)?.length ?? 0) > 1, {
    what: "the line, twice",
  });
  expect(await running.interrupt()).toBe(143);
  expect(running.shown()).toContain("\r\x1b[Kwal-b: ERROR: interrupted by SIGTERM");
  // Nothing is drawn after it.
  expect(running.shown()).toEndWith("wal-b: ERROR: interrupted by SIGTERM\r\n");
});

test.each([
  ["--terse", ["--terse"], {}],
  ["--log-format json", ["--log-format", "json"], {}],
  ["a terminal that cannot", [], { TERM: "dumb" }],
])("with %s there is none", async (_, args, env) => {
  await using running = await start(args, env);
  const { directory } = repository;
  const isCopying = async () =>
    (await Array.fromAsync(new Bun.Glob("basebackups_005/**/*").scan({ cwd: directory, dot: true }))).length > 0;
  await server.waitFor(async () => running.isOver() || (await isCopying()), { what: "the copying" });
  await Bun.sleep(600);
  expect(await running.interrupt()).toBe(143);
  expect(running.shown()).not.toContain("\r\x1b");
  expect(running.shown()).not.toContain("copied");
});
