/**
 * A call of the operating system that fails, at every object of a backup in a directory and on the way back: the message names
 * what could not be done and why, nothing half is visible, and running it again succeeds.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { temporaryRepository } from "../support/backups.ts";
import type { PostgresServer } from "../support/postgres-server.ts";
import { startSmallCluster } from "../support/small-cluster.ts";
import { type FailingCall, runWithFailingCall } from "../support/system-calls.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

let repository: Awaited<ReturnType<typeof temporaryRepository>>;
let cluster: PostgresServer;
let push: readonly string[];

beforeAll(async () => {
  repository = await temporaryRepository();
  cluster = await startSmallCluster(100);
  await cluster.stop();
  push = ["backup-push", cluster.dataDirectory, "--while-offline"];
});
afterAll(async () => {
  await cluster?.[Symbol.asyncDispose]();
  await repository?.[Symbol.asyncDispose]();
});

/** At a time: so the objects have the same names in every run. */
const ONE_PART = { WALB_UPLOAD_CONCURRENCY: "1" };

const files = () =>
  [...new Bun.Glob("**/*").scanSync({ cwd: repository.directory, dot: true, onlyFiles: true })].sort();

async function failing(args: readonly string[], call: FailingCall) {
  const env = { ...cluster.env, ...repository.env, HOME: cluster.directory, ...ONE_PART };
  const command = [await walbBinary(cluster.account), ...args];
  return await runWithFailingCall(command, call, { env, cwd: cluster.directory, as: cluster.account });
}

async function succeeds(args: readonly string[]): Promise<void> {
  const env = { ...repository.env, ...ONE_PART };
  const { exitCode, stderr } = await runWalb(args, { as: cluster, env });
  expect({ args, exitCode, stderr }).toEqual({ args, exitCode: 0, stderr });
}

/** Until the program makes no n-th call of this kind in any thread. */
async function everyOne(what: FailingCall, trial: (call: FailingCall) => Promise<{ readonly hit: readonly string[] }>) {
  const hit: string[] = [];
  for (let when = 1; ; when++) {
    const made = await trial({ ...what, when });
    if (made.hit.length === 0) break;
    hit.push(...made.hit);
  }
  console.log(`${what.call} ${what.error}: ${hit.length} calls`);
  return hit;
}

const STRANGE: Record<string, RegExp> = {
  EIO: /EIO: i\/o error/,
  ENOSPC: /ENOSPC: no space left on device/,
  EDQUOT: /EDQUOT: disk quota exceeded/,
};

test("an object whose name cannot be given: 69, and nothing is left, whichever it is", async () => {
  await succeeds(push);
  const objects = files();
  await succeeds(["delete", "everything", "--confirm"]);
  expect(objects.length).toBeGreaterThan(6);
  for (const [at, object] of objects.entries()) {
    const error = ["EIO", "ENOSPC", "EDQUOT"][at % 3] as string;
    const path = join(repository.directory, object);
    const { exitCode, stderr, hit } = await failing(push, { call: "link", error, path });
    expect({ object, hit: hit.length, exitCode, stderr }).toEqual({ object, hit: 1, exitCode: 69, stderr });
    expect(stderr).toContain(`ERROR: could not write "file://${path}"`);
    expect(stderr).toMatch(STRANGE[error] as RegExp);
    expect({ object, files: files() }).toEqual({ object, files: [] });
  }
});

test.each([
  ["fsync", "EIO"],
  ["fsync", "ENOSPC"],
  ["fsync", "EDQUOT"],
  ["mkdir", "ENOSPC"],
  ["mkdir", "EIO"],
])("backup-push with a %s that fails with %s: told, and nothing is left", async (call, error) => {
  const hit = await everyOne({ call, error }, async (each) => {
    const result = await failing(push, each);
    const inRepository = result.hit.some((line) => line.includes(repository.directory));
    if (inRepository) {
      const { exitCode, stderr } = result;
      expect({ ...each, exitCode, stderr }).toEqual({ ...each, exitCode: 69, stderr });
      expect(stderr).toContain(`ERROR: could not write "file://${repository.directory}/`);
      expect(stderr).toMatch(STRANGE[error] as RegExp);
      expect({ ...each, files: files() }).toEqual({ ...each, files: [] });
    } else {
      expect({ ...each, exitCode: result.exitCode }).toEqual({ ...each, exitCode: 0 });
      await succeeds(["delete", "everything", "--confirm"]);
    }
    return result;
  });
  expect(hit.length).toBeGreaterThan(0);
});

test("backup-push with an unlink that fails: it is complete, and the temporary names that stay are garbage", async () => {
  const path = (name: string) => join(repository.directory, name);
  const { hit, exitCode, stderr } = await failing(push, { call: "unlink", error: "EIO" });
  expect({ hit: hit.length > 0, exitCode, stderr }).toEqual({ hit: true, exitCode: 0, stderr });
  const temporary = () => files().filter((file) => /\/\.wal-b\./.test(file));
  expect(temporary().filter((name) => hit.some((line) => line.includes(path(name))))).toEqual(temporary());
  expect(temporary()).not.toEqual([]);
  await succeeds(["verify", "LATEST"]);
  await succeeds(["delete", "garbage", "--min-age", "0s", "--confirm"]);
  expect(temporary()).toEqual([]);
  await succeeds(["verify", "LATEST"]);
  await succeeds(["delete", "everything", "--confirm"]);
  expect(files()).toEqual([]);
});

test.each([
  ["fsync", "EIO"],
  ["rename", "ENOSPC"],
  ["symlink", "EIO"],
  ["mkdir", "ENOSPC"],
])("backup-fetch with a %s that fails with %s: 73, and no server starts on what is there", async (call, error) => {
  if (files().length === 0) await succeeds(push);
  const target = join(cluster.directory, "restored");
  const control = join(target, "global/pg_control");
  const fetch = ["backup-fetch", target, "LATEST", "--blind-restore"];
  let [hits, when] = [0, 0];
  // Of hundreds of fsyncs the first few, and then one here and there.
  do {
    when = when < 3 ? when + 1 : when * 2;
    const { exitCode, stderr, hit } = await failing(fetch, { call, error, when });
    hits = hit.filter((line) => line.includes(target)).length;
    if (hits > 0) {
      // Behind pg_control's name only its durability is missing.
      const isNamed = call === "fsync" && existsSync(control);
      expect({ when, exitCode, stderr }).toEqual({ when, exitCode: 73, stderr });
      expect(stderr).toContain(target);
      expect(stderr).toMatch(STRANGE[error] as RegExp);
      if (!isNamed) expect({ when, starts: existsSync(control) }).toEqual({ when, starts: false });
    }
    await rm(target, { recursive: true, force: true });
  } while (hits > 0);
  expect(when).toBeGreaterThan(1);
  await succeeds(fetch);
  await rm(target, { recursive: true });
});

test("delete with an unlink that fails: 69, what is listed is whole, and running it again with garbage completes it", async () => {
  if (files().length === 0) await succeeds(push);
  const before = files();
  const remove = ["delete", "everything", "--confirm"];
  for (const object of before) {
    const path = join(repository.directory, object);
    const { exitCode, stderr, hit } = await failing(remove, { call: "unlink", error: "EIO", path });
    expect({ object, hit: hit.length, exitCode, stderr }).toEqual({ object, hit: 1, exitCode: 69, stderr });
    expect(stderr).toContain(`"file://${path}" (EIO: i/o error`);
    const isListed = files().some((file) => file.endsWith("_backup_stop_sentinel.json"));
    expect({ object, isListed }).toEqual({ object, isListed: object.endsWith("_backup_stop_sentinel.json") });
    if (isListed) expect(files()).toEqual(before);
    await succeeds(remove);
    await succeeds(["delete", "garbage", "--min-age", "0s", "--confirm"]);
    expect({ object, files: files() }).toEqual({ object, files: [] });
    await succeeds(push);
  }
});
