/**
 * What kill -9 leaves on the disk, behind every single call that changes it: the program is stopped there, and the disk is
 * looked at. A repository then lists nothing that cannot be restored and hides nothing from `delete garbage`; a target
 * does not start.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Environment, listedBackups, pushBackup, temporaryRepository, walbInSteps } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { directoryRepository } from "../support/repositories.ts";
import { filesBelow, filesOf, MARKER, withoutNotes } from "../support/restored-files.ts";
import { runProgram } from "../support/run-program.ts";
import { SMALL_PARTS, startSmallCluster } from "../support/small-cluster.ts";
import type { Stop } from "../support/system-calls.ts";
import { runWalb } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let server: PostgresServer;

beforeAll(async () => {
  repository = await temporaryRepository();
  server = await startSmallCluster(1000, repository.env);
  await pushBackup(server, { ...repository.env, ...SMALL_PARTS });
});
afterAll(async () => {
  await server?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

const SENTINEL = "_backup_stop_sentinel.json";

const contentsOf = (keys: readonly string[]) => keys.filter((key) => key.startsWith("basebackups_005/"));

/** Runs wal-b on the server's machine, stopped behind every call. */
async function inSteps(
  args: readonly string[],
  look: (stop: Stop) => Promise<"go on" | "kill">,
  where: Environment = repository.env,
) {
  return await walbInSteps(server, { ...where, ...SMALL_PARTS }, args, {}, look);
}

interface Copy {
  readonly directory: string;
  readonly env: Environment;
}

/** A repository as it is at this moment, in a directory of its own. Files are links: nothing writes into a finished one. */
async function inCopy<Result>(use: (copy: Copy) => Promise<Result>, of = repository.directory): Promise<Result> {
  const directory = join(server.directory, crypto.randomUUID());
  expect((await runProgram(["cp", "-a", "--link", of, directory])).stderr).toBe("");
  try {
    return await use({ directory, env: directoryRepository(directory).env });
  } finally {
    await rm(directory, { recursive: true });
  }
}

async function walb(args: readonly string[], env: Environment) {
  const { exitCode, stdout, stderr } = await runWalb(args, { as: server, env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr: expect.any(String) });
  return stdout;
}

test("backup-push: listed is what can be restored, and all else is garbage", async () => {
  const before = contentsOf(await filesOf(repository.directory));
  let [listed, left] = [0, 0];
  const pushed = await inSteps(["backup-push", server.dataDirectory], async () => {
    await inCopy(async ({ directory, env }) => {
      const added = contentsOf(await filesOf(directory)).filter((key) => !before.includes(key));
      // Not yet under its temporary name.
      const sentinel = added.find((key) => key.startsWith("basebackups_005/base_") && key.endsWith(SENTINEL));
      if (sentinel !== undefined) {
        const name = sentinel.slice("basebackups_005/".length, -SENTINEL.length);
        if (listed++ === 0) await walb(["verify", name], env);
        return;
      }
      if (added.length === 0) return;
      left++;
      await walb(["delete", "garbage", "--min-age", "0s", "--confirm"], env);
      expect(contentsOf(await filesOf(directory))).toEqual(before);
    });
    return "go on";
  });
  expect({ exitCode: pushed.exitCode, stderr: pushed.stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  console.log(
    `backup-push: ${pushed.calls.length} calls, ${left} with something left, ${listed} with the backup listed`,
  );
  expect(left).toBeGreaterThan(40);
  expect(listed).toBeGreaterThan(0);
  expect(await listedBackups(server, repository.env)).toHaveLength(2);
});

/** What a fault-free run makes, and the calls that that takes. */
async function restoredInSteps(args: (target: string) => readonly string[]) {
  const target = join(server.directory, "restored");
  const control = join(target, "global/pg_control");
  let withControl: readonly string[] | undefined;
  const { exitCode, stderr, calls } = await inSteps(args(target), async () => {
    if (withControl === undefined && existsSync(control)) withControl = await filesBelow(target);
    return "go on";
  });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  const files = await filesBelow(target);
  // Nothing comes after pg_control's name but making it durable, and removing the marker.
  expect(withControl).toEqual(files);
  expect(existsSync(join(target, ".wal-b"))).toBe(false);
  await rm(target, { recursive: true });
  return { calls, files };
}

const REFUSED_WITH_HINT = expect.stringMatching(
  /(is not empty\n.*\n *HINT: A backup is restored into an empty directory)|(was interrupted\n.*\n *HINT: Say --resume)/,
);

/** Of what backup-fetch leaves, and behind which call that is; `synced` of all `syncs` calls of fsync. */
const MOMENTS: Record<string, (call: string, synced: number, syncs: number) => boolean> = {
  "an empty directory": (call) => call.startsWith("mkdir(") && call.includes("/restored"),
  "some files": (call) => call.startsWith("mkdir(") && call.includes("/restored/base/"),
  "all files, half of them durable": (_, synced, syncs) => synced >= syncs >> 1,
  "all but pg_control's name": (_, synced, syncs) => synced === syncs - 2,
  "complete, and not yet durable": (call) => call.startsWith("rename(") && call.includes("/global/pg_control"),
};

/** Behind pg_control's name: that is durable, the marker is removed, and that is durable. */
const LAST_CALLS = ["fsync", "unlink", "rmdir", "fsync"];

const COMMANDS = [
  ["backup-fetch", (target: string) => ["backup-fetch", target, "LATEST", "--blind-restore"]],
  ["restore", (target: string) => ["restore", target, "--blind-restore"]],
] as const;

describe.each(COMMANDS)("%s", (name, args) => {
  const target = () => join(server.directory, "restored");
  let calls: readonly string[];
  let files: readonly string[];

  test("pg_control gets its name when everything else is there, and last", async () => {
    ({ calls, files } = await restoredInSteps(args));
    const durable = calls.filter((call) => call.startsWith("fsync(")).length;
    console.log(`${name}: ${calls.length} calls, ${durable} of them fsync`);
    const last = calls.findLastIndex((call) => call.startsWith("rename("));
    expect(calls.slice(last + 1).map((call) => call.slice(0, call.indexOf("(")))).toEqual(LAST_CALLS);
  });

  test("killed on its way, it is refused with what to do, and --resume makes of it what it would have become", async () => {
    const syncs = calls.filter((call) => call.startsWith("fsync(")).length;
    for (const [moment, isIt] of Object.entries(MOMENTS)) {
      let synced = 0;
      const killed = await inSteps(args(target()), async ({ calls: made }) => {
        synced += made.filter((call) => call.startsWith("fsync(")).length;
        return made.some((call) => isIt(call, synced, syncs)) ? "kill" : "go on";
      });
      expect({ moment, signal: killed.signal }).toEqual({ moment, signal: "SIGKILL" });
      const isEmpty = (await readdir(target())).length === 0;
      expect({ moment, isEmpty }).toEqual({ moment, isEmpty: moment === "an empty directory" });
      const starts = existsSync(join(target(), "global/pg_control"));
      expect({ moment, starts }).toEqual({ moment, starts: moment === "complete, and not yet durable" });

      const again = await runWalb(args(target()), { as: server, env: repository.env });
      if (isEmpty) expect({ moment, exitCode: again.exitCode }).toEqual({ moment, exitCode: 0 });
      else expect({ moment, ...again }).toMatchObject({ moment, exitCode: 73, stderr: REFUSED_WITH_HINT });
      if (existsSync(join(target(), MARKER))) {
        await walb([...args(target()), "--resume"], repository.env);
        expect({ moment, files: withoutNotes(await filesBelow(target())) }).toEqual({
          moment,
          files: withoutNotes(files),
        });
        expect(existsSync(join(target(), ".wal-b"))).toBe(false);
      }
      await rm(target(), { recursive: true });
    }
  });

  test("killed when it is complete and resumed, pg_control loses its name before anything is removed", async () => {
    const control = join(target(), "global/pg_control");
    const complete = MOMENTS["complete, and not yet durable"];
    await inSteps(args(target()), async ({ calls: made }) =>
      made.some((call) => complete?.(call, 0, 0)) ? "kill" : "go on",
    );
    const before = await filesBelow(target());
    expect(existsSync(control)).toBe(true);

    let withoutControl = 0;
    const resumed = await inSteps([...args(target()), "--resume"], async () => {
      if (!existsSync(control)) withoutControl++;
      else expect(withoutNotes(await filesBelow(target()))).toEqual(withoutNotes(before));
      return "go on";
    });
    expect({ exitCode: resumed.exitCode, stderr: resumed.stderr }).toMatchObject({ exitCode: 0 });
    expect(withoutControl).toBeGreaterThan(0);
    // And that it has lost it is on the disk.
    const lost = resumed.calls.findIndex(
      (call) => call.startsWith("rename(") && call.includes('/global/pg_control", '),
    );
    const next = resumed.calls.slice(lost + 1).find((call) => !call.startsWith("mkdir"));
    expect({ lost: lost >= 0, next }).toEqual({ lost: true, next: expect.stringMatching(/^fsync\(/) });
    expect(withoutNotes(await filesBelow(target()))).toEqual(withoutNotes(before));
    await rm(target(), { recursive: true });
  });
});

const DELETIONS = [
  ["retain 1", ["delete", "retain", "1", "--confirm"]],
  ["before LATEST", ["delete", "before", "LATEST", "--confirm"]],
  ["everything", ["delete", "everything", "--confirm"]],
] as const;

test.each(DELETIONS)(
  "delete %s: what is listed is whole, and running it again with garbage completes it",
  async (name, args) => {
    const whole = await filesOf(repository.directory);
    const final = await inCopy(async ({ directory, env }) => {
      await walb(args, env);
      return await filesOf(directory);
    });
    let stops = 0;
    await inCopy(async ({ directory, env }) => {
      const { exitCode } = await inSteps(
        args,
        async () => {
          stops++;
          const files = await filesOf(directory);
          expect(final.filter((file) => !files.includes(file))).toEqual([]);
          // A backup that is listed has all it had, and all WAL.
          for (const sentinel of files.filter((file) => file.endsWith(SENTINEL))) {
            const needed = whole.filter(
              (file) => file.startsWith(sentinel.replace(SENTINEL, "/")) || file.startsWith("wal_005/"),
            );
            expect(needed.filter((file) => !files.includes(file))).toEqual(
              final.includes(sentinel) ? expect.any(Array) : [],
            );
          }
          await inCopy(async (killed) => {
            await walb(args, killed.env);
            await walb(["delete", "garbage", "--min-age", "0s", "--confirm"], killed.env);
            expect(await filesOf(killed.directory)).toEqual(final);
          }, directory);
          return "go on";
        },
        env,
      );
      expect(exitCode).toBe(0);
      expect(await filesOf(directory)).toEqual(final);
    });
    console.log(`delete ${name}: ${stops} stops, ${whole.length} files before, ${final.length} behind`);
  },
);
