/**
 * Everything at once, at random: transactions, faults of the store, backups, deletes, kill -9 of wal-b and of the server, and restores
 * that are compared with what was committed. Between the steps stands what must always be true (invariants.ts).
 *
 * WALB_TEST_SEED chooses the steps, WALB_TEST_SOAK_MINUTES how long they go on. A failure prints what was done.
 */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { startArchiving, startWalb } from "../support/backups.ts";
import { type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { FAULTS } from "../support/faults.ts";
import { type PostgresServer, startPostgresOn } from "../support/postgres-server.ts";
import { type Random, random } from "../support/random.ts";
import { s3Repository } from "../support/repositories.ts";
import { anyS3Server } from "../support/s3-server.ts";
import { waitFor } from "../support/wait-for.ts";
import { runWalb } from "../support/walb.ts";
import { type Bucket, type Contents, checkArchive, checkUnchanged, contentsOf, listedIn } from "./invariants.ts";
import { checkLedger, Ledger } from "./ledger.ts";
import { ProcessWatch } from "./process-watch.ts";

const MINUTE = 60_000;
const MINUTES = Number(process.env["WALB_TEST_SOAK_MINUTES"] ?? 2);
const GIVEN = process.env["WALB_TEST_SEED"] ?? "1";
const SEED = GIVEN === "random" ? Math.floor(Math.random() * 2 ** 31) : Number(GIVEN);

/** No command may take longer, whatever the store does; no server either. */
const PATIENCE_MS = 5 * MINUTE;

/** What a command may end with when the store fails; never 1, nor a crash of its own. */
const FAILURES = [64, 65, 69, 76, 77];

/** So that a step that meets silence goes on. What must succeed is asked of the store directly. */
const HASTE = {
  WALB_RETRY_DEADLINE: "15s",
  WALB_CONNECT_TIMEOUT: "2s",
  WALB_IDLE_TIMEOUT: "2s",
  WALB_ARCHIVE_TIMEOUT: "60s",
};

interface Soak {
  readonly server: PostgresServer;
  readonly ledger: Ledger;
  readonly proxy: FaultProxy;
  readonly watch: ProcessWatch;
  readonly where: Bucket;
  /** The store itself, and the way to it on which faults lie. */
  readonly direct: Readonly<Record<string, string>>;
  readonly faulty: Readonly<Record<string, string>>;
  readonly random: Random;
  readonly tell: (event: string) => void;
}

test(
  `for ${MINUTES} minutes nothing that was promised is broken`,
  async () => {
    const begun = performance.now();
    const events: string[] = [];
    const tell = (event: string) => void events.push(`${((performance.now() - begun) / 1000).toFixed(1)} s: ${event}`);
    const { server: s3, stop } = await anyS3Server();
    try {
      await using proxy = await startFaultProxy(s3.endpoint);
      const { env: direct } = await s3Repository(s3);
      const [, bucket = ""] = /^s3:\/\/([^/]+)/.exec(direct["WALE_S3_PREFIX"] ?? "") ?? [];
      const faulty = { ...direct, ...HASTE, AWS_ENDPOINT_URL_S3: proxy.url };
      await using server = await startArchiving(faulty, {
        walSegmentSizeMiB: 1,
        settings: { max_wal_size: "64MB", min_wal_size: "16MB" },
      });
      await using ledger = await Ledger.begin(server);
      using watch = new ProcessWatch(bucket);
      const where = { server: s3, bucket, prefix: "databases/main/" };
      await soak(
        { server, ledger, proxy, watch, where, direct, faulty, random: random(SEED), tell },
        begun + MINUTES * MINUTE,
      );
      console.log([`seed ${SEED}: ${ledger.acknowledged} entries`, ...events].join("\n"));
      report(watch);
    } catch (cause) {
      const again = `WALB_TEST_SEED=${SEED} WALB_TEST_SOAK_MINUTES=${MINUTES} bun test/run.ts all test/soak`;
      throw new Error(`seed ${SEED}: ${cause}\n${events.join("\n")}\nAgain: ${again}`, { cause });
    } finally {
      await stop();
    }
  },
  MINUTES * MINUTE + 2 * PATIENCE_MS,
);

async function soak(it: Soak, until: number): Promise<void> {
  let contents = await contentsOf(it.where);
  // Each once in any case, and a backup before what needs one.
  const first = [wholeBackup, work, crash, backup, kill, remove, restore];
  while (performance.now() < until || first.length > 0) {
    const step = first.shift() ?? it.random.pick([work, work, kill, crash, backup, backup, remove, restore]);
    it.tell(step.name);
    await step(it);
    contents = await check(it, contents, step === remove);
  }
}

async function check({ where, server, proxy }: Soak, before: Contents, isDeleting: boolean): Promise<Contents> {
  await proxy.arm();
  const contents = await contentsOf(where);
  checkUnchanged(before, contents, isDeleting);
  await checkArchive(where, server);
  return contents;
}

/** The next requests meet one of the faults. */
async function armAny({ proxy, random, tell }: Soak, consequences: readonly string[] = []): Promise<void> {
  const faults = FAULTS.filter(({ consequence }) => consequences.length === 0 || consequences.includes(consequence));
  const { name, fault } = random.pick(faults);
  const [from, times] = [1 + random.below(6), 1 + random.below(4)];
  tell(`  from request ${from} on, ${times} times: ${name}`);
  await proxy.arm(fault, { from, times });
}

/** Transactions, while the archive is out of order now and then. */
async function work(it: Soak): Promise<void> {
  const { ledger, proxy, random } = it;
  for (let rounds = 1 + random.below(3); rounds > 0; rounds--) {
    await armAny(it);
    const entries = ledger.acknowledged + 100 + random.below(400);
    const until = performance.now() + 5_000;
    while (ledger.acknowledged < entries && proxy.requests.length < 40 && performance.now() < until)
      await Bun.sleep(20);
  }
}

/** kill -9 of whatever of wal-b runs, if anything does. */
async function kill({ watch, server, random, tell }: Soak): Promise<void> {
  await server.switchWal();
  for (let looks = 0; looks < 200; looks++) {
    const running = watch.running();
    if (running.length > 0) {
      const pid = random.pick(running);
      tell(`  kill -9 ${pid}`);
      return tryKill(pid);
    }
    await Bun.sleep(5);
  }
}

async function crash(it: Soak): Promise<void> {
  await armAny(it);
  await it.server.switchWal();
  await it.server.crash();
  await it.proxy.arm();
  await it.server.start();
}

async function wholeBackup({ server, direct, where }: Soak): Promise<void> {
  const { exitCode, stderr } = await runWalb(["backup-push", server.dataDirectory], {
    as: server,
    env: direct,
    timeoutMs: PATIENCE_MS,
  });
  if (exitCode !== 0) throw new Error(`backup-push ended with ${exitCode}:\n${stderr}`);
  expect(listedIn(await contentsOf(where))).toHaveLength(1);
}

/** A backup, which may be killed, or meet a fault, or succeed; in the last case it is listed. */
async function backup(it: Soak): Promise<void> {
  const { server, faulty, where, proxy, random, tell } = it;
  const end = random.pick(["undisturbed", "faults", "faults", "killed"]);
  if (end === "faults") await armAny(it);
  else await proxy.arm();
  await using running = await startWalb(server, ["backup-push", server.dataDirectory], faulty);
  if (end === "killed") {
    const requests = 1 + random.below(25);
    await waitFor(() => proxy.requests.length >= requests || !running.isRunning, { timeoutMs: PATIENCE_MS });
    running.signal("SIGKILL");
  }
  await waitFor(() => !running.isRunning, { timeoutMs: PATIENCE_MS, what: "the end of backup-push" });
  const { exitCode, signal } = await running.ended();
  const name = /backup "(base_[0-9A-F]{24})" finished/.exec(running.stderr)?.[1];
  const said = exitCode === 0 ? name : running.stderr.trimEnd().split("\n").slice(-3).join(" ");
  tell(`  ${end}: ${exitCode ?? signal} ${said}`);
  if (exitCode === 0) expect(listedIn(await contentsOf(where))).toContain(name ?? "");
  else if (signal === null) expectDocumented(exitCode, running.stderr);
}

/** Newest first: the two that are kept are those that were kept by the plan's words. */
async function remove(it: Soak): Promise<void> {
  const { server, faulty, where, random, tell } = it;
  const before = listedIn(await contentsOf(where));
  if (random.once(2)) await armAny(it);
  const { exitCode, stderr } = await runWalb(["delete", "retain", "2", "--confirm"], {
    as: server,
    env: faulty,
    timeoutMs: PATIENCE_MS,
  });
  const after = listedIn(await contentsOf(where));
  tell(`  ${exitCode}: ${before.length} backups before, ${after.length} after`);
  if (exitCode !== 0) expectDocumented(exitCode, stderr);
  // On one timeline, later ones start later.
  expect(after.slice(-2)).toEqual(before.slice(-2));
  if (exitCode === 0) expect(after.length).toBe(Math.min(2, before.length));
}

/** Everything that was acknowledged before comes back, also when the store fails while it does. */
async function restore(it: Soak): Promise<void> {
  const { server, ledger, where, direct, faulty, proxy, random, tell } = it;
  if (listedIn(await contentsOf(where)).length === 0) return;
  await ledger.pause();
  const { acknowledged } = ledger;
  await archiveAll(it);
  const verified = await runWalb(["verify", "--all"], { as: server, env: direct, timeoutMs: PATIENCE_MS });
  if (verified.exitCode !== 0)
    throw new Error(`verify ended with ${verified.exitCode}:\n${verified.stdout}${verified.stderr}`);

  const directory = await server.makeDirectory(`restored-${random.below(2 ** 31)}`);
  await armAny(it);
  const asked = { as: server, timeoutMs: PATIENCE_MS };
  const first = await runWalb(["restore", directory], { ...asked, env: faulty });
  tell(`  restore under faults: ${first.exitCode}`);
  let target = directory;
  if (first.exitCode !== 0) {
    expectDocumented(first.exitCode, first.stderr);
    expect(existsSync(join(directory, "global/pg_control"))).toBe(false);
    target = await server.makeDirectory(`restored-${random.below(2 ** 31)}`);
    const second = await runWalb(["restore", target], {
      ...asked,
      env: { ...faulty, AWS_ENDPOINT_URL_S3: direct["AWS_ENDPOINT_URL_S3"] },
    });
    if (second.exitCode !== 0) throw new Error(`restore ended with ${second.exitCode}:\n${second.stderr}`);
  }

  // A fault that lasts longer than wal-fetch asks again stops the server, as it should: that is another test's matter.
  await armAny(it, ["asks again"]);
  const env = { ...faulty, WALB_RECOVERY_RETRY_DEADLINE: "10min" };
  await using restored = await startPostgresOn(target, {
    env,
    settings: { archive_mode: "off" },
    startTimeoutMs: PATIENCE_MS,
  });
  await restored.waitFor(async () => (await restored.psql("SELECT pg_is_in_recovery()")) === "f", {
    timeoutMs: PATIENCE_MS,
  });
  const entries = await checkLedger(restored, acknowledged);
  tell(`  ${entries} entries of ${acknowledged} that were acknowledged`);
  await proxy.arm();
  ledger.resume();
}

/** With the store in order again, all that waits is archived, and verified as far as it can be. */
async function archiveAll({ server, proxy }: Soak): Promise<void> {
  await proxy.arm();
  const last = await server.switchWal();
  await server.query("CHECKPOINT");
  const pending = async () => {
    // A new segment wakes the archiver, which pauses for a minute after three failures.
    await server.switchWal();
    const found = await server.psql(
      `SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' AND left(name, 24) <= '${last}'`,
    );
    return found !== "0";
  };
  await waitFor(async () => !(await pending()), {
    timeoutMs: PATIENCE_MS,
    intervalMs: 500,
    what: "everything to be archived",
  });
}

function expectDocumented(exitCode: number | null, stderr: string): void {
  if (exitCode !== null && FAILURES.includes(exitCode) && !stderr.includes("unexpected failure")) return;
  throw new Error(`a command ended with ${exitCode}:\n${stderr}`);
}

function tryKill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended.
  }
}

function report(watch: ProcessWatch): void {
  for (const { command, maxKiB, maxDescriptors } of watch.usage.values())
    console.log(`${command}: ${(maxKiB / 1024).toFixed(0)} MiB and ${maxDescriptors} descriptors at most`);
  for (const { maxKiB, maxDescriptors } of watch.usage.values()) {
    expect(maxKiB).toBeLessThan(400 * 1024);
    expect(maxDescriptors).toBeLessThan(200);
  }
}
