/**
 * A store that takes a connection and then nothing, or all of a segment and says nothing: wal-push gives up in time, the archiver
 * lives, the server can be stopped, and once the store is well again every segment is archived, once and whole.
 *
 * What PostgreSQL does when it is stopped (fast) was measured on 12, 15 and 18: it signals the archiver itself, never archive_command;
 * waits for the command under way; and has a file that cannot be archived tried three times in the cycle under way and three times
 * in the last one (NUM_ARCHIVE_RETRIES, pgarch.c). Stopped immediately, it signals both.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { GetObjectCommand } from "@aws-sdk/client-s3";
import { type Exchange, type FaultProxy, startFaultProxy } from "../support/fault-proxy.ts";
import { faultNamed } from "../support/faults.ts";
import { type PostgresServer, startPostgres } from "../support/postgres-server.ts";
import { untilArchived, writeEnvdir } from "../support/prefetching.ts";
import { commandLineOf, processesNamed } from "../support/process-tree.ts";
import { bucketListing, PREFIX, s3Environment } from "../support/s3-archive.ts";
import { anyS3Server, s3ClientOf } from "../support/s3-server.ts";
import { walbBinary } from "../support/walb.ts";

const { server: s3, stop } = await anyS3Server();
afterAll(stop);
const walb = await walbBinary();

const IMPATIENT = { WALB_IDLE_TIMEOUT: "500ms", WALB_RETRY_DEADLINE: "500ms" };
const PATIENT = { WALB_IDLE_TIMEOUT: "30min", WALB_RETRY_DEADLINE: "24h" };
/** Never reached on a store that is well. */
const USUAL = { WALB_IDLE_TIMEOUT: "30s", WALB_RETRY_DEADLINE: "1min" };

const isPut = { only: (request: string) => request.startsWith("PUT") };
const HANGS = [
  ["takes the head of a PUT and then nothing", { fault: async (exchange: Exchange) => exchange.silence() }],
  ["takes a PUT and never answers", { fault: faultNamed("silence") }],
  ["carries a PUT out and never answers", { fault: faultNamed("silence instead of the answer") }],
] as const;

/** More than the kernel takes on its way, so that sending hangs in the middle. It cannot be compressed. */
const NOISE_BYTES = 14 * 2 ** 20;

async function finishSegment(server: PostgresServer): Promise<string> {
  const noise = Buffer.from(new Uint8Array(NOISE_BYTES));
  for (let at = 0; at < noise.byteLength; at += 65_536) crypto.getRandomValues(noise.subarray(at, at + 65_536));
  await using session = await server.connect();
  await session.query("SELECT pg_logical_emit_message(false, 'noise', $1::bytea)", [noise]);
  return await server.switchWal();
}

const failures = async (server: PostgresServer) => ((await server.logText()).match(/exit code 69$/gm) ?? []).length;

describe.each([12, 18])("PostgreSQL %i, and a store that", (major) => {
  let proxy: FaultProxy;
  let server: PostgresServer;
  let bucket: string;
  const segments: string[] = [];
  beforeAll(async () => {
    bucket = await s3.createBucket();
    proxy = await startFaultProxy(s3.endpoint);
    const keep = major === 12 ? { wal_keep_segments: 1000 } : { wal_keep_size: "10GB" };
    server = await startPostgres({ major, archiveCommand: `${walb} --envdir ../env wal-push %p`, settings: keep });
    await configure(USUAL);
  });
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]();
    await proxy?.[Symbol.asyncDispose]();
  });

  const configure = async (limits: Readonly<Record<string, string>>) => {
    const env = { ...s3Environment(s3, bucket), AWS_ENDPOINT_URL: proxy.url, WALB_FILE_PREFIX: "", ...limits };
    await writeEnvdir(server, env as Record<string, string>);
  };
  const archiver = async () => (await processesNamed(server.pid, "postgres: archiver"))[0];
  const marks = () => readdir(join(server.dataDirectory, "pg_wal/archive_status"));
  /** Finishes one, while the store hangs with it. */
  const hangWith = async (fault: Parameters<FaultProxy["arm"]>[0]): Promise<string> => {
    await proxy.arm(fault, isPut);
    const segment = await finishSegment(server);
    segments.push(segment);
    await server.waitFor(() => proxy.silent > 0, { what: "the store to hang" });
    return segment;
  };
  /** The archiver is woken by what is finished; left alone it would wait for a minute. */
  const archiveAll = async () => {
    await proxy.arm();
    await configure(USUAL);
    segments.push(await finishSegment(server));
    for (const segment of segments) await untilArchived(server, segment);
  };

  test.each(HANGS)("%s: it is given up, and then archived by the same archiver", async (_, { fault }) => {
    await configure(USUAL);
    if (segments.length === 0) await archiveAll();
    const [pid, before] = [await archiver(), await failures(server)];
    expect(pid).toBeGreaterThan(0);
    await configure(IMPATIENT);
    const segment = await hangWith(fault);
    await server.waitFor(async () => (await failures(server)) > before, { what: "wal-push to give up" });
    expect(await server.logText()).toContain("archive command failed with exit code 69\n");
    expect(await server.logText()).toContain("ETIMEDOUT: no byte came or went for 500 ms");
    expect(await marks()).toContain(`${segment}.ready`);
    expect(await archiver()).toBe(pid);

    await archiveAll();
    expect(await archiver()).toBe(pid);
  });

  test("hangs: the server stops once wal-push has given up, and the next start archives what is left", async () => {
    await configure(IMPATIENT);
    const before = await failures(server);
    const segment = await hangWith(HANGS[0][1].fault);
    await server.stop("fast");
    expect(await server.exited()).toEqual({ exitCode: 0, signal: null });
    expect(await server.logText()).toEndWith("database system is shut down\n");
    expect(await server.logText()).toContain("failed too many times, will try again later\n");
    // Of the cycle under way and of the last one.
    expect((await failures(server)) - before).toBeLessThanOrEqual(6);
    expect(await marks()).toContain(`${segment}.ready`);

    await server.start();
    await archiveAll();
  });

  test("hangs: SIGTERM ends wal-push at once and with it what the server waits for", async () => {
    await configure(PATIENT);
    const segment = await hangWith(HANGS[0][1].fault);
    const [pushing] = await processesNamed(server.pid, `wal-b --envdir ../env wal-push pg_wal/${segment}`);
    const stopping = server.stop("fast");
    await server.waitFor(async () => (await server.logText()).trimEnd().includes("received fast shutdown request"));
    for (const pid of await processesNamed(server.pid, "wal-push")) {
      // Not the shell that has started it.
      if (!(await commandLineOf(pid)).startsWith("sh ")) process.kill(pid, "SIGTERM");
    }
    await stopping;
    expect(pushing).toBeGreaterThan(0);
    const log = await server.logText();
    expect(log).toContain("wal-b: ERROR: interrupted by SIGTERM\n");
    expect(log).toContain("FATAL:  archive command failed with exit code 143\n");
    expect(await marks()).toContain(`${segment}.ready`);

    await server.start();
    await archiveAll();
  });

  test("hangs: a server that is stopped immediately leaves no wal-push behind", async () => {
    await configure(PATIENT);
    const segment = await hangWith(HANGS[0][1].fault);
    const pushing = await processesNamed(server.pid, "wal-push");
    expect(pushing.length).toBeGreaterThan(0);
    await server.stop("immediate");
    await server.waitFor(async () => (await Promise.all(pushing.map(commandLineOf))).join("") === "", {
      what: "wal-push to end",
    });
    expect(await marks()).toContain(`${segment}.ready`);

    await server.start();
    await archiveAll();
  });

  test("was ill: every segment is archived, once and whole", async () => {
    const directory = join(server.dataDirectory, "pg_wal");
    const last = segments.at(-1) ?? "";
    const all = (await readdir(directory)).filter((name) => /^[0-9A-F]{24}$/.test(name) && name <= last).sort();
    expect(all.length).toBeGreaterThanOrEqual(segments.length);
    expect(Object.keys(await bucketListing(s3, bucket))).toEqual(all.map((name) => `${PREFIX}/wal_005/${name}.zst`));
    const client = s3ClientOf(s3);
    for (const name of all) {
      const { Body } = await client.send(
        new GetObjectCommand({ Bucket: bucket, Key: `${PREFIX}/wal_005/${name}.zst` }),
      );
      const archived = Bun.zstdDecompressSync((await Body?.transformToByteArray()) as Uint8Array<ArrayBuffer>);
      expect(Buffer.compare(archived, await readFile(join(directory, name)))).toBe(0);
    }
    client.destroy();
  });
});
