/**
 * The main job, on one major of PostgreSQL: archive, back up under load, crash, and restore to every kind of target and along both
 * timelines of a promotion. What comes back is compared row for row and definition for definition, and read by amcheck.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "./backups.ts";
import { fillDatabase, isConsistent, type Moment, momentOf, startWork, type Work } from "./busy-database.ts";
import { checkPages, type Fingerprint, fingerprintOf } from "./fingerprint.ts";
import { POSTGRES_MAJORS } from "./postgres-binaries.ts";
import { type PostgresServer, type Settings, startPostgresOn } from "./postgres-server.ts";
import { s3Repository, type TestRepository } from "./repositories.ts";
import { everyS3Server, type S3Server } from "./s3-server.ts";
import { runWalb, walbBinary } from "./walb.ts";

/** Every two choices meet in one of the rows, but for two pairs of segment size and store: nine pairs do not fit into seven rows. */
export const DESIGN = {
  12: { checksums: true, segmentMiB: 64, tablespaces: false, store: 0 },
  13: { checksums: false, segmentMiB: 16, tablespaces: true, store: 0 },
  14: { checksums: true, segmentMiB: 16, tablespaces: true, store: 1 },
  15: { checksums: false, segmentMiB: 1, tablespaces: false, store: 1 },
  16: { checksums: false, segmentMiB: 64, tablespaces: true, store: 2 },
  17: { checksums: true, segmentMiB: 1, tablespaces: true, store: 2 },
  18: { checksums: false, segmentMiB: 16, tablespaces: false, store: 2 },
} as const;

export const CHOICES = ["checksums", "segmentMiB", "tablespaces", "store"] as const;

/** To be called by a test file; a major that this platform has no package of is skipped. */
export async function tellTheStoryOn(major: keyof typeof DESIGN): Promise<void> {
  const { servers, stop } = await everyS3Server();
  const stores: readonly (S3Server | undefined)[] = [undefined, ...servers];
  const row = DESIGN[major];
  const store = stores[row.store % stores.length];
  const { checksums, segmentMiB, tablespaces } = row;
  const title = `PostgreSQL ${major}, checksums ${checksums}, ${segmentMiB} MiB segments, tablespaces ${tablespaces}, on ${store?.name ?? "a directory"}`;

  describe.skipIf(!POSTGRES_MAJORS.includes(major))(title, () => {
    let story: Story;
    beforeAll(async () => {
      story = await tell({ ...row, major, store });
    }, TELLING_MS);
    afterAll(async () => {
      await story?.[Symbol.asyncDispose]();
      await stop();
    });

    test("the server had work to do while it was backed up and when it was killed", () => {
      for (const { transactions, definitions } of [story.duringBackup, story.beforeCrash]) {
        expect(transactions).toBeGreaterThan(0);
        expect(definitions).toBeGreaterThan(0);
      }
    });

    test("to the first moment that is consistent", async () => {
      // Promoted, because a transaction that recovery has paused in keeps its locks.
      await using recovered = await restored(story, ["--to", "immediate", "--action", "promote"], "is promoted");
      expect(await isConsistent(recovered)).toBe(true);
      expect(await recovered.psql("SELECT count(*) FROM moments")).toBe("0");
      await checkPages(recovered);
    });

    test.each(["time", "lsn", "xid"] as const)("to a moment by its %s, on the old timeline", async (kind) => {
      const { moment } = story;
      await using recovered = await restored(story, ["--to", moment[kind], "--timeline", "1"], "pauses");
      expect(await fingerprintOf(recovered)).toEqual(moment.holds);
    });

    test("to the latest of the old timeline, past the point where it was left", async () => {
      await using recovered = await restored(story, ["--timeline", "1"], "is promoted");
      expect(await fingerprintOf(recovered)).toEqual(story.latest.old);
      expect(await isConsistent(recovered)).toBe(true);
      const read = await checkPages(recovered);
      expect(read.indexes).toBeGreaterThan(100);
      if (major >= 14) expect(read.tables).toBeGreaterThan(100);
      expect(await recovered.psql("SHOW data_checksums")).toBe(checksums ? "on" : "off");
      await recovered.query("INSERT INTO moments VALUES (99); INSERT INTO forgotten VALUES (1)");
    });

    test("to the latest of the new timeline", async () => {
      await using recovered = await restored(story, [], "is promoted");
      expect(await fingerprintOf(recovered)).toEqual(story.latest.new);
      expect(await isConsistent(recovered)).toBe(true);
      await checkPages(recovered);
    });

    test("all of it is verified in the repository", async () => {
      const verified = await runWalb(["verify", "--all", "--wal"], { as: story.server, env: story.env });
      expect(verified).toMatchObject({ exitCode: 0 });
    });
  });
}

/** A dozen seconds where nobody else works; it is a bound for a machine on which much else goes on. */
const TELLING_MS = 300_000;

interface Variant {
  readonly major: number;
  readonly checksums: boolean;
  readonly segmentMiB: number;
  readonly tablespaces: boolean;
  /** A directory if left out. */
  readonly store: S3Server | undefined;
}

interface Story extends AsyncDisposable {
  readonly server: PostgresServer;
  readonly env: Readonly<Record<string, string>>;
  readonly duringBackup: Work["done"];
  readonly beforeCrash: Work["done"];
  /** Of the first timeline, behind the point at which the second begins. */
  readonly moment: Moment;
  /** Of both timelines. */
  readonly latest: Record<"old" | "new", Fingerprint>;
  readonly tablespaces: boolean;
  restores: number;
}

async function tell({ major, checksums, segmentMiB, tablespaces, store }: Variant): Promise<Story> {
  await using stack = new AsyncDisposableStack();
  const repository = store ? await s3Repository(store) : stack.use(await temporaryRepository());
  const env = repository.hostEnv;
  const server = stack.use(
    await startArchiving(env, {
      major,
      dataChecksums: checksums,
      walSegmentSizeMiB: segmentMiB,
      tablespaces: tablespaces ? ["space"] : [],
      settings: { max_wal_size: `${4 * segmentMiB + 32}MB`, min_wal_size: `${2 * segmentMiB}MB` },
    }),
  );
  await fillDatabase(server, tablespaces ? "space" : undefined);

  await using work = startWork(server);
  const somethingIsDone = async (since = { ...work.done }) => {
    const both = () => work.done.transactions > since.transactions && work.done.definitions > since.definitions;
    await server.waitFor(both, { what: "work" });
  };
  const since = (before: Work["done"]) => ({
    transactions: work.done.transactions - before.transactions,
    definitions: work.done.definitions - before.definitions,
  });
  await somethingIsDone();
  const atBackup = { ...work.done };
  await pushBackup(server, env);
  const duringBackup = since(atBackup);
  const atCrash = { ...work.done };
  await somethingIsDone();
  await server.crash();
  const beforeCrash = since(atCrash);
  await work[Symbol.asyncDispose]();
  await server.start();

  await using more = startWork(server);
  await server.waitFor(() => more.done.definitions > 1, { what: "work after the crash" });
  await more.stop();
  const fork = await momentOf(server, 1);
  const moment = await momentOf(server, 2);
  const old = await fingerprintOf(server);
  await archiveEverything(server, repository);

  const story = { server, env, duringBackup, beforeCrash, moment, tablespaces, restores: 0 };
  const latest = { old, new: await continueFrom(fork, story, repository) };
  const owned = stack.move();
  return { ...story, latest, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** A server that was restored to a moment and promoted there goes on, and archives what it does. */
async function continueFrom(
  { name, holds }: Moment,
  story: Omit<Story, "latest" | keyof AsyncDisposable>,
  repository: TestRepository,
): Promise<Fingerprint> {
  const settings = { archive_mode: "on", archive_command: `${await walbBinary()} wal-push %p` };
  await using promoted = await restored(story, ["--to", name, "--action", "promote"], "is promoted", settings);
  expect(await fingerprintOf(promoted)).toEqual(holds);
  await promoted.query("INSERT INTO documents SELECT n, ARRAY['new'], 'new' FROM generate_series(1, 1000) n");
  const latest = await fingerprintOf(promoted);
  await archiveEverything(promoted, repository);
  return latest;
}

/** A server on a new directory, when recovery has ended as it should. */
async function restored(
  story: Pick<Story, "server" | "env" | "tablespaces"> & { restores: number },
  args: readonly string[],
  end: "pauses" | "is promoted",
  settings: Settings = { archive_mode: "off" },
): Promise<PostgresServer> {
  const { server, env } = story;
  const directory = join(server.directory, `restored-${++story.restores}`);
  const tablespaces = story.tablespaces ? ["--blind-restore"] : [];
  const { exitCode, stderr } = await runWalb(["restore", directory, ...tablespaces, ...args], { as: server, env });
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.any(String) });
  const recovered = await startPostgresOn(directory, { env, settings });
  const ended = end === "pauses" ? "SELECT pg_is_wal_replay_paused()" : "SELECT NOT pg_is_in_recovery()";
  try {
    await recovered.waitFor(async () => (await recovered.psql(ended).catch(() => "")) === "t", {
      what: `a recovery that ${end}`,
      timeoutMs: 90_000,
    });
    return recovered;
  } catch (error) {
    await recovered[Symbol.asyncDispose]();
    throw error;
  }
}
