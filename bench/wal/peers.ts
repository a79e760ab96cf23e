/** Who archives a backlog and recovers from it. The archive that the last backlog left is the one that is recovered from. */
import { mkdir, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../../test/support/account.ts";
import { startMinio } from "../../test/support/minio.ts";
import { type RunningServer, type S3ServerDescription, serverOf } from "../../test/support/s3-server.ts";
import type { Missing, Peer, Work } from "../peers/peer.ts";
import { expectSameFile, runOrThrow } from "../peers/place.ts";
import { keepCopy } from "../peers/wal-b.ts";
import { sizeBelow } from "../size.ts";
import { openBarman } from "./barman.ts";
import { makeBacklog, pretendRecovery, removeAsRecovery, untilThereAre, type WalHistory } from "./history.ts";
import { storedBelow } from "./s3.ts";

/** wal-fetch proves that a file is missing (src/errors.ts). */
const MISSING = 74;
const DRAINED = 32;
/** wal-b's own initial value; and of pgBackRest's 128 MiB. */
const PREFETCHED = 8;

type Environment = Readonly<Record<string, string>>;

const shellQuote = (word: string) => `'${word.replaceAll("'", "'\\''")}'`;
const shellLine = (env: Environment, words: readonly string[]) =>
  [...Object.entries(env).map(([name, value]) => `${name}=${shellQuote(value)}`), ...words].join(" ");

export interface WalPeers extends AsyncDisposable {
  readonly found: readonly (Peer | Missing)[];
}

export async function openWalPeers(binary: string, history: WalHistory): Promise<WalPeers> {
  const { server } = history;
  const program = await keepCopy(binary, await server.makeDirectory("program"));
  const version = (await runOrThrow(server, [program, "--version"])).trim();
  const found: (Peer | Missing)[] = [...(await openFileWalB(program, version, history))];
  found.push(...(await openPgbackrest(history)), openCopy(history));
  const s3 = await startMinio().catch((error: unknown) => ({ name: "S3", why: String(error) }));
  if ("why" in s3) found.push(s3);
  else found.push(await openS3WalB(program, s3.description, history), await openBarman(s3.description, history));
  return {
    found,
    [Symbol.asyncDispose]: async () => await (s3 as Partial<RunningServer>).stop?.(),
  };
}

interface WalB {
  readonly name: string;
  readonly version: string;
  readonly program: string;
  readonly push: Work;
  readonly fetch: Work;
  /** Of the archive as it is now. */
  env(): Environment;
  empty(): Promise<void>;
  storedBytes(): Promise<number>;
}

async function openFileWalB(program: string, version: string, history: WalHistory): Promise<readonly Peer[]> {
  const { server } = history;
  const repository = await server.makeDirectory("repository");
  const empty = async () => {
    await rm(repository, { recursive: true, force: true });
    await server.makeDirectory("repository");
  };
  const env = () => ({ WALB_FILE_PREFIX: repository });
  const work = { push: "pushSegment", fetch: "fetchSegment" } as const;
  const own = { name: "wal-b", version, program, ...work, env, empty, storedBytes: () => sizeBelow(repository) };
  const restore = shellLine(env(), [program, "wal-fetch", "-p", "0", "%f", '"%p"']);
  const recovery = { measure: () => history.recoverWith(restore) };
  const peer = walB(own, history);
  return [peer, atLevel3(own, history), { name: "wal-b -p 0", version: "", trials: { recovery } }];
}

/** As pgBackRest is set up here, and only what compresses. */
function atLevel3(own: WalB, history: WalHistory): Peer {
  const env = () => ({ ...own.env(), WALB_COMPRESSION_LEVEL: "3" });
  const peer = walB({ ...own, name: "wal-b, level 3", version: "", env }, history);
  const { pushSegment, backlog, drain } = peer.trials;
  return {
    ...peer,
    trials: { ...(pushSegment && { pushSegment }), ...(backlog && { backlog }), ...(drain && { drain }) },
  };
}

async function openS3WalB(program: string, s3: S3ServerDescription, history: WalHistory): Promise<Peer> {
  const bucket = await serverOf(s3).createBucket();
  let prefix = 0;
  const env = () => ({
    WALB_S3_PREFIX: `s3://${bucket}/${prefix}`,
    AWS_ENDPOINT_URL_S3: s3.endpoint,
    AWS_REGION: s3.region,
    AWS_ACCESS_KEY_ID: s3.accessKeyId,
    AWS_SECRET_ACCESS_KEY: s3.secretAccessKey,
  });
  const empty = async () => {
    prefix++;
  };
  const work = { push: "pushSegmentToS3", fetch: "fetchSegmentFromS3" } as const;
  const storedBytes = () => storedBelow(s3, bucket, `${prefix}/`);
  return walB({ name: `wal-b, S3 (${s3.name})`, version: "", program, ...work, env, empty, storedBytes }, history);
}

function walB(
  { name, version, program, push, fetch: fetchWork, env, empty, storedBytes }: WalB,
  history: WalHistory,
): Peer {
  const { server, segments, directory } = history;
  const place = name.replaceAll(/[^a-z0-9]/gi, "-");
  const [first = "", second = ""] = segments;
  const [after, following] = [`${(segments.at(-1) ?? "").slice(0, 16)}000000FE`, segments.length - 1];
  let bytesBefore = 0;
  let pretended: Awaited<ReturnType<typeof pretendRecovery>> | undefined;
  const destination = join(server.directory, place, "pg_wal/RECOVERYXLOG");
  const backlog = join(server.directory, `backlog-${place}`, "pg_wal");
  const fetch = (...words: string[]) => [program, "wal-fetch", ...words];
  const pretend = async () => {
    await pretended?.end();
    pretended = await pretendRecovery(history, place);
  };

  const alone = join(server.directory, `${place}-alone`);

  return {
    name,
    version,
    trials: {
      [push]: {
        get env() {
          return env();
        },
        command: [program, "wal-push", join(directory, second)],
        async prepare() {
          await empty();
          // Whose archive it is, and what the store can do, is found out once and not for every segment.
          await runOrThrow(server, [program, "wal-push", join(directory, first)], env());
          bytesBefore = await storedBytes();
        },
        storedBytes: async () => (await storedBytes()) - bytesBefore,
      },
      [fetchWork]: {
        get env() {
          return env();
        },
        command: fetch(second, alone),
        prepare: () => removeAsRecovery(alone),
        check: () => expectSameFile(alone, join(directory, second)),
      },
      backlog: {
        async prepare() {
          await empty();
          await history.blockArchiver();
        },
        measure: () => history.archiveWith(shellLine(env(), [program, "wal-push", '"%p"'])),
        storedBytes,
      },
      recovery: {
        measure: () => history.recoverWith(shellLine(env(), fetch("%f", '"%p"'))),
      },
      fetchHit: {
        get env() {
          return env();
        },
        command: fetch(second, destination),
        async prepare() {
          await pretend();
          await runOrThrow(server, fetch(first, destination), env());
          await removeAsRecovery(destination);
          const ready = join(server.directory, place, "pg_wal/pgsql_tmp_wal-b");
          const isReady = (file: string) => /^[0-9A-F]{24}\.[0-9a-f]{16}$/.test(file);
          await untilThereAre(Math.min(PREFETCHED, following), ready, isReady);
        },
        async check() {
          await pretended?.end();
          await expectSameFile(destination, join(directory, second));
        },
      },
      fetchMiss: {
        get env() {
          return env();
        },
        command: fetch(after, destination),
        expectedExitCode: MISSING,
        prepare: pretend,
      },
      drain: {
        get env() {
          return env();
        },
        command: [program, "wal-push", "-p", String(DRAINED), join(backlog, first)],
        async prepare() {
          await empty();
          await makeBacklog(history, { name: `backlog-${place}`, count: DRAINED });
        },
        async check() {
          const marks = await readdir(join(backlog, "archive_status"));
          const done = marks.filter((mark) => mark.endsWith(".done")).length;
          // PostgreSQL itself marks the one that it asks for.
          if (done !== Math.min(DRAINED, segments.length) - 1)
            throw new Error(`${done} were archived beside the first`);
        },
      },
    },
  };
}

/** The limit: restore_command without a repository, from files that are not compressed. */
function openCopy({ directory, segments, server, recoverWith }: WalHistory): Peer {
  const [, second = ""] = segments;
  const destination = join(server.directory, "copied");
  return {
    name: "cp",
    version: "",
    trials: {
      recovery: { measure: () => recoverWith(`cp ${shellQuote(directory)}/%f "%p"`) },
      fetchHit: {
        command: ["cp", join(directory, second), destination],
        prepare: () => removeAsRecovery(destination),
      },
      fetchMiss: { command: ["cp", join(directory, "missing"), destination], expectedExitCode: 1 },
    },
  };
}

const STANZA = "wal";

async function openPgbackrest(history: WalHistory): Promise<readonly (Peer | Missing)[]> {
  const program = Bun.which("pgbackrest");
  const name = "pgBackRest";
  if (program === null) return [{ name, why: "pgbackrest is not installed" }];
  const modes = [
    { name: `${name}, synchronous`, directory: "pgbackrest-sync", flags: [] },
    { name: `${name}, archive-async`, directory: "pgbackrest-async", flags: ["--archive-async"] },
  ];
  return await Promise.all(modes.map((mode) => openMode(program, mode, history)));
}

interface Mode {
  readonly name: string;
  readonly directory: string;
  readonly flags: readonly string[];
}

async function openMode(program: string, mode: Mode, history: WalHistory): Promise<Peer> {
  const { server, segments, directory } = history;
  const own = await server.makeDirectory(mode.directory);
  const repository = await server.makeDirectory(`${mode.directory}/repository`);
  const config = await writeConfig(own, repository, server);
  const command = (...words: string[]) => [program, `--config=${config}`, `--stanza=${STANZA}`, ...words];
  const spool = join(own, "spool");
  const archive = join(repository, "archive", STANZA);
  const [first = "", second = ""] = segments;
  const after = `${(segments.at(-1) ?? "").slice(0, 16)}000000FE`;
  const pretendedName = `${mode.directory}-recovery`;
  const pretended = join(server.directory, pretendedName);
  const destination = join(pretended, "pg_wal/RECOVERYXLOG");
  const alone = join(pretended, "pg_wal/alone");
  const get = (pg: string, ...words: string[]) =>
    command("archive-get", ...mode.flags, ...(pg === "" ? [] : [`--pg1-path=${pg}`]), ...words);
  const emptyArchive = async () => {
    for (const entry of await readdir(archive, { withFileTypes: true }))
      if (entry.isDirectory()) await rm(join(archive, entry.name), { recursive: true });
  };
  const emptySpool = async () => {
    await rm(spool, { recursive: true, force: true });
    await mkdir(spool);
    await giveTo(server.account, spool);
  };
  const prepareFetch = async () => {
    await emptySpool();
    await pretendRecovery(history, pretendedName);
  };
  await emptySpool();
  await runOrThrow(server, command("stanza-create"));

  return {
    name: mode.name,
    version: mode.flags.length === 0 ? (await runOrThrow(server, [program, "version"])).trim() : "",
    trials: {
      ...(mode.flags.length === 0 && {
        pushSegment: {
          command: command("archive-push", join(directory, second)),
          prepare: emptyArchive,
          storedBytes: () => sizeBelow(archive, { except: ["archive.info", "archive.info.copy"] }),
        },
        fetchSegment: {
          command: get(pretended, second, alone),
          prepare: async () => {
            await removeAsRecovery(alone);
            await pretendRecovery(history, pretendedName);
          },
          check: () => expectSameFile(alone, join(directory, second)),
        },
      }),
      backlog: {
        async prepare() {
          await emptySpool();
          await emptyArchive();
          await history.blockArchiver();
        },
        measure: () => history.archiveWith(command("archive-push", ...mode.flags, '"%p"').join(" ")),
        storedBytes: () => sizeBelow(archive),
      },
      recovery: {
        prepare: emptySpool,
        measure: () => history.recoverWith(get("@", "%f", '"%p"').join(" ")),
      },
      fetchHit: {
        command: get(pretended, second, destination),
        async prepare() {
          await prepareFetch();
          await runOrThrow(server, get(pretended, first, destination));
          await removeAsRecovery(destination);
          if (mode.flags.length === 0) return;
          const count = Math.min(PREFETCHED - 1, segments.length - 1);
          await untilThereAre(count, join(spool, "archive", STANZA, "in"), (file) => /^[0-9A-F]{24}$/.test(file));
        },
        check: () => expectSameFile(destination, join(directory, second)),
      },
      fetchMiss: { command: get(pretended, after, destination), prepare: prepareFetch, expectedExitCode: 1 },
    },
  };
}

async function writeConfig(own: string, repository: string, server: WalHistory["server"]): Promise<string> {
  const path = join(own, "pgbackrest.conf");
  const lines = [
    "[global]",
    `repo1-path=${repository}`,
    `lock-path=${own}/lock`,
    `log-path=${own}`,
    `spool-path=${own}/spool`,
    "log-level-console=warn",
    "log-level-file=off",
    "compress-type=zst",
    "compress-level=3",
    "process-max=2",
    `[${STANZA}]`,
    `pg1-path=${server.dataDirectory}`,
    `pg1-socket-path=${server.socketDirectory}`,
    `pg1-port=${server.port}`,
    `pg1-user=${server.user}`,
  ];
  await writeFile(path, `${lines.join("\n")}\n`);
  await giveTo(server.account, path);
  return path;
}
