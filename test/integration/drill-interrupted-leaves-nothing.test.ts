/** verify --drill that is told to stop, or killed: no server goes on, a stopped one leaves nothing, and the next tells of a killed one. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFile, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { archiveEverything, pushBackup, startArchiving, startWalb, temporaryRepository } from "../support/backups.ts";
import { ScratchParent, serverThatWaits } from "../support/drills.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { processesBelow, processIsAlive } from "../support/process-tree.ts";
import { waitFor } from "../support/wait-for.ts";

const repository = await temporaryRepository();
let server: PostgresServer;
let scratch: ScratchParent;
let waiting: Awaited<ReturnType<typeof serverThatWaits>>;

beforeAll(async () => {
  server = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
  scratch = await ScratchParent.create(server);
  waiting = await serverThatWaits(server);
  await pushBackup(server, repository.env);
  await archiveEverything(server, repository);
  await server.stop();
}, 240_000);
afterAll(async () => {
  await waiting?.[Symbol.asyncDispose]();
  await server?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
  await repository[Symbol.asyncDispose]();
});

const start = async () => await startWalb(server, scratch.args("--postgres-bin", waiting.path), repository.env);

/** The server of the drill and all that it has started, once it waits for WAL. */
async function serverProcesses(): Promise<readonly number[]> {
  const pid = await waitFor(async () => await scratch.serverPid(), { what: "the drill's server", timeoutMs: 120_000 });
  // The shell of restore_command, and what it runs.
  return await waitFor(
    async () => {
      const below = await processesBelow(pid);
      return below.length >= 3 && [pid, ...below];
    },
    { what: "restore_command", timeoutMs: 120_000 },
  );
}

test("while it runs, its directory and its server are for nobody else", async () => {
  await using drill = await start();
  await serverProcesses();
  const [name = ""] = await scratch.left();
  const directory = join(scratch.path, name);
  expect(((await stat(directory)).mode & 0o777).toString(8)).toBe("700");
  // Source: pidfile.h; the line of the address that is listened to is empty.
  const lines = (await readFile(join(directory, "data/postmaster.pid"), "utf8")).split("\n");
  expect(lines.slice(4, 6)).toEqual([join(directory, "s"), ""]);
  drill.signal("SIGTERM");
  await drill.ended();
}, 240_000);

test.each(["SIGTERM", "SIGINT", "SIGHUP"] as const)(
  "%s while a server replays: server and copy are gone",
  async (signal) => {
    await using drill = await start();
    const processes = await serverProcesses();
    drill.signal(signal);
    expect(await drill.ended()).toEqual({
      exitCode: 128 + { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 }[signal],
      signal: null,
    });
    await waitFor(() => !processes.some(processIsAlive), { what: "the server's processes to end" });
    expect(await scratch.left()).toEqual([]);
  },
  60_000,
);

test("SIGTERM while it restores: the copy is gone", async () => {
  await using drill = await start();
  await drill.says("restoring backup");
  drill.signal("SIGTERM");
  expect(await drill.ended()).toEqual({ exitCode: 143, signal: null });
  expect(await scratch.left()).toEqual([]);
}, 240_000);

test("kill -9: the server ends, the next drill tells what was left, and leaves it there", async () => {
  await using drill = await start();
  const processes = await serverProcesses();
  drill.signal("SIGKILL");
  await drill.ended();
  await waitFor(() => !processes.some(processIsAlive), { what: "the server's processes to end" });
  const left = await scratch.left();
  expect(left).toEqual([expect.stringMatching(/^walb-drill-/)]);

  const next = await scratch.drill(repository.env, [], server);
  expect(next).toMatchObject({ exitCode: 0 });
  const directory = join(scratch.path, left[0] ?? "");
  expect(next.stderr).toContain(`WARNING: a drill that was killed has left "${directory}"`);
  expect(await scratch.left()).toEqual(left);
  await rm(directory, { recursive: true });
}, 240_000);
