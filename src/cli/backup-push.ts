/** wal-b backup-push [data directory] */
import { hostname } from "node:os";
import { resolve } from "node:path";
import { IntegrityError, UsageError } from "../errors.ts";
import { rateLimit, UNLIMITED } from "../system/rate-limit.ts";
import { VERSION } from "../version.ts";
import type { Command, CommandContext, Words } from "./command.ts";

export const backupPush: Command = {
  name: "backup-push",
  summary: "take a base backup of a running cluster",
  description:
    "Copies the data DIRECTORY of a running server into the repository. The server is found as psql would find it (PGHOST, PGPORT, PGUSER, PGPASSFILE, PGSERVICE …), else by the directory's postmaster.pid. The backup is listed once it can be restored: every file, the labels and all WAL from its start to its end are there. Run it as the account that owns the directory.",
  positionals: {
    directory: { help: "the server's data directory; asked from the server if left out", optional: true },
  },
  options: {
    "pool-size": { alias: "p", kind: "text", value: "N", setting: "uploadConcurrency", help: "parts written at once" },
    "cluster-read-rate-limit": {
      kind: "text",
      value: "BYTES",
      setting: "diskRateLimit",
      help: "read no more than this many bytes a second",
    },
    "network-rate-limit": {
      kind: "text",
      value: "BYTES",
      setting: "networkRateLimit",
      help: "send no more than this many bytes a second",
    },
    "verify-page-checksums": {
      kind: "text",
      value: "true|false",
      setting: "verifyPageChecksums",
      choices: ["true", "false"],
      help: "compare pages with their checksums, where the cluster has them",
    },
    verify: { alias: "v", kind: "flag", help: "the same as --verify-page-checksums=true" },
    "damaged-pages": {
      kind: "text",
      value: "report|fail",
      setting: "damagedPages",
      choices: ["report", "fail"],
      help: "whether damaged pages make the exit code 65; the backup is listed all the same",
    },
    permanent: { kind: "flag", help: "exempt the backup from retention, as backup-mark does" },
    "while-offline": { kind: "flag", help: "back up a cluster that is shut down" },
    json: { kind: "flag", help: "print the new backup as JSON" },
  },
  examples: [
    ["wal-b backup-push /var/lib/postgresql/18/main", "from cron, every night"],
    ["wal-b backup-push --permanent", "one to keep"],
  ],
  isLong: true,

  async run(words, context) {
    const pushed = words.isSet("while-offline") ? await pushOffline(words, context) : await pushOnline(words, context);
    if (words.isSet("json")) {
      const { formatJson } = await import("../repository/json.ts");
      const { name, sentinel, damagedFiles } = pushed;
      context.output.write(`${formatJson({ name, ...sentinel, damagedFiles })}\n`);
    }
    const damaged = pushed.sentinel.walB?.pages?.damaged ?? 0;
    if (damaged > 0 && context.settings.damagedPages === "fail") throw damagedPages(pushed.name, damaged);
  },
};

function damagedPages(name: string, count: number): IntegrityError {
  return new IntegrityError(`backup "${name}" has ${count} damaged ${count === 1 ? "page" : "pages"}`, {
    detail: "They are named above. The backup is listed, and can be restored with the damage that is in it.",
    hint: "It is an error because --damaged-pages or WALB_DAMAGED_PAGES is fail.",
  });
}

async function pushOnline(words: Words, context: CommandContext) {
  const [
    { openRepository },
    { pushBackup },
    { connectToPostgres },
    { libpqSettings },
    { readDataDirectory },
    { currentAccount },
  ] = await Promise.all([
    import("./open-repository.ts"),
    import("../backup/push.ts"),
    import("../postgres/connection.ts"),
    import("../postgres/libpq-settings.ts"),
    import("../postgres/server-facts.ts"),
    import("../system/account.ts"),
  ]);
  const failed = new AbortController();
  await using repository = await openRepository(until(failed, context));
  const { env, log, signal } = context;
  const word = words.text("directory");
  const given = word === undefined ? undefined : resolve(context.workingDirectory, word);
  const libpq = libpqSettings({ env, account: currentAccount(env), dataDirectory: given });
  await using connection = await connectToPostgres(libpq, { log, signal });
  const directory = given ?? (await readDataDirectory(connection));
  return await pushBackup(connection, directory, await pushContext(repository, words, context, failed));
}

async function pushOffline(words: Words, context: CommandContext) {
  const [{ openRepository }, { pushOfflineBackup }] = await Promise.all([
    import("./open-repository.ts"),
    import("../backup/push-offline.ts"),
  ]);
  const directory = words.text("directory");
  if (directory === undefined)
    throw new UsageError("no directory was given", { hint: "A server that is shut down cannot be asked for it." });
  const failed = new AbortController();
  await using repository = await openRepository(until(failed, context));
  const data = resolve(context.workingDirectory, directory);
  return await pushOfflineBackup(data, await pushContext(repository, words, context, failed));
}

/** Once the backup has failed, the store is asked for nothing more. */
const until = (failed: AbortController, context: CommandContext): CommandContext => ({
  ...context,
  signal: AbortSignal.any([context.signal, failed.signal]),
});

async function pushContext(
  { store, archive, identity, proof, zstd }: import("./open-repository.ts").Repository,
  words: Words,
  { settings, log, startProgress, signal, now }: CommandContext,
  failed: AbortController,
) {
  const sendRate = rateOf(settings.networkRateLimit);
  return {
    store,
    archive,
    proof,
    zstd: await zstd(),
    limits: { partsAtOnce: settings.uploadConcurrency, partContentBytes: settings.tarSizeThresholdBytes },
    readRate: rateOf(settings.diskRateLimit),
    maySend: (bytes: number) => sendRate.take(bytes, signal),
    archiveTimeoutMs: settings.archiveTimeoutMs,
    pages: words.isSet("verify") || settings.verifyPageChecksums === "true" ? ("verify" as const) : ("skip" as const),
    permanence: words.isSet("permanent") ? ("permanent" as const) : ("impermanent" as const),
    hostname: hostname(),
    processId: process.pid,
    version: VERSION,
    log,
    startProgress,
    signal,
    giveUp: (reason: unknown) => failed.abort(reason),
    now,
    checkCluster: (systemIdentifier: bigint) => identity.check(systemIdentifier),
  };
}

const rateOf = (bytesPerSecond: number) => (bytesPerSecond === 0 ? UNLIMITED : rateLimit(bytesPerSecond));
