/**
 * wal-push as archive_command of real servers: what PostgreSQL's archiver makes of each failure, two hosts that archive the same WAL,
 * and clusters that archive where another one does.
 */
import { describe, expect, test } from "bun:test";
import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../support/account.ts";
import { type PostgresServer, startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { untilArchived, writeEnvdir } from "../support/prefetching.ts";
import { walbBinary } from "../support/walb.ts";

const walb = await walbBinary();
/** Variables come from files beside the data directory, so that they can change while the server runs. */
const archiveCommand = `${walb} --envdir ../env wal-push %p`;

/** @param repository  a directory; one of the server's own if left out */
async function archivingServer(major: number, repository?: string): Promise<PostgresServer & { repository: string }> {
  const server = await startPostgres({ major, walSegmentSizeMiB: 1, archiveCommand });
  const directory = repository ?? (await server.makeDirectory("repository"));
  await writeEnvdir(server, { WALB_FILE_PREFIX: directory });
  return Object.assign(server, { repository: directory });
}

async function setVariable(server: PostgresServer, name: string, value: string): Promise<void> {
  const file = join(server.directory, "env", name);
  await writeFile(file, value, { mode: 0o640 });
  await giveTo(server.account, file);
}

const failures = async (server: PostgresServer) =>
  Number(await server.psql("SELECT failed_count FROM pg_stat_archiver"));
const archivedKeys = async (repository: string) => (await readdir(join(repository, "wal_005"))).sort();

async function untilFailed(server: PostgresServer, before: number): Promise<void> {
  await server.waitFor(async () => (await failures(server)) > before, { what: "a failure", timeoutMs: 90_000 });
}

async function systemIdentifierOf(server: PostgresServer): Promise<string> {
  return await server.psql("SELECT system_identifier FROM pg_control_system()");
}

test.each([14, 18])(
  "PostgreSQL %i: the archiver lives through every failure, counts it, and archives in the end",
  async (major) => {
    await using server = await archivingServer(major);
    const archiver = () => server.psql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'archiver'");
    await untilArchived(server, await server.switchWal());
    const pid = await archiver();

    const failsWith = async (code: number) => {
      const told = async () => (await server.logText()).split(`archive command failed with exit code ${code}`).length;
      const [before, toldBefore] = [await failures(server), await told()];
      const segment = await server.switchWal();
      await server.waitFor(async () => (await told()) > toldBefore, { what: `exit code ${code}`, timeoutMs: 90_000 });
      await untilFailed(server, before);
      expect(await archiver()).toBe(pid);
      return segment;
    };

    await setVariable(server, "WALB_UPLOAD_CONCURRENCY", "many");
    await failsWith(64);
    await setVariable(server, "WALB_UPLOAD_CONCURRENCY", "");
    // Nobody listens at port 1.
    const dead = {
      WALB_S3_PREFIX: "s3://bucket/path",
      AWS_ENDPOINT_URL: "http://127.0.0.1:1",
      AWS_REGION: "us-east-1",
    };
    const credentials = { AWS_ACCESS_KEY_ID: "key", AWS_SECRET_ACCESS_KEY: "secret", WALB_RETRY_DEADLINE: "0" };
    await setVariable(server, "WALB_FILE_PREFIX", "");
    for (const [name, value] of Object.entries({ ...dead, ...credentials })) await setVariable(server, name, value);
    await failsWith(69);
    for (const name of Object.keys({ ...dead, ...credentials })) await setVariable(server, name, "");
    await setVariable(server, "WALB_FILE_PREFIX", join(server.repository, "missing"));
    const last = await failsWith(64);

    await setVariable(server, "WALB_FILE_PREFIX", server.repository);
    await untilArchived(server, last);
    expect(await archiver()).toBe(pid);
    expect(await server.logText()).not.toContain("archiver process");
    const segments = (await archivedKeys(server.repository)).map((key) => key.slice(0, 24));
    expect(segments).toContain(last);
    // Each from the first on.
    const numbers = segments.map((name) => Number.parseInt(name.slice(16), 16));
    expect(numbers).toEqual(numbers.map((_, n) => (numbers[0] ?? 0) + n));
  },
);

test.each([12, 18])(
  "PostgreSQL %i, archive_mode=always: a primary and its standby archive the same WAL, neither fails, and a promotion adds its own",
  async (major) => {
    await using primary = await archivingServer(major);
    const env = { WALB_FILE_PREFIX: primary.repository };
    for (const args of [
      ["backup-push", primary.dataDirectory],
      ["backup-fetch", join(primary.directory, "standby"), "LATEST"],
    ]) {
      const { exitCode, stderr } = await primary.runAs([walb, ...args], { env });
      expect(exitCode, stderr).toBe(0);
    }
    const directory = join(primary.directory, "standby");
    await writeFile(join(directory, "standby.signal"), "");
    await giveTo(primary.account, join(directory, "standby.signal"));
    await using standby = await startPostgresOn(directory, {
      settings: {
        primary_conninfo: `host=${primary.socketDirectory} port=${primary.port} user=${primary.user}`,
        archive_mode: "always",
        archive_command: archiveCommand,
        restore_command: "",
      },
    });
    await primary.query("CREATE TABLE kept (id int)");
    let last = "";
    for (let n = 0; n < 6; n++) {
      await primary.query(`INSERT INTO kept SELECT generate_series(${n * 100 + 1}, ${n * 100 + 100})`);
      last = await primary.switchWal();
    }
    for (const server of [primary, standby]) {
      await untilArchived(server, last);
      expect(await failures(server)).toBe(0);
      expect(await readdir(join(server.dataDirectory, "pg_wal/archive_status"))).not.toContain(`${last}.ready`);
    }
    expect(await standby.logText()).toContain("was already archived with the same content");

    // In the middle of a segment, so that the old timeline's last one is left partial.
    await primary.query("INSERT INTO kept SELECT generate_series(1001, 1100)");
    const caughtUp = async () => (await standby.psql("SELECT count(*) FROM kept")) === "700";
    await standby.waitFor(caughtUp, { what: "the standby to catch up" });
    // One that is stopped finishes its segment.
    await primary.crash();
    await standby.query("SELECT pg_promote()");
    await standby.query("CREATE TABLE promoted (id int)");
    const own = await standby.switchWal();
    await untilArchived(standby, own);
    expect(own.slice(0, 8)).toBe("00000002");
    // Segments may be archived ahead of their turn, which other files are not.
    for (const ending of ["00000002.history.zst", ".partial.zst", ".backup.zst"]) {
      const keys = async () => (await archivedKeys(primary.repository)).filter((key) => key.endsWith(ending));
      await standby.waitFor(async () => (await keys()).length === 1, { what: ending });
    }
    expect(await failures(standby)).toBe(0);
  },
);

describe("an archive of another cluster", () => {
  test.each([12, 18])(
    "of PostgreSQL %i: is refused to a new cluster of 18 with both identifiers, and nothing in it changes",
    async (major) => {
      await using owner = await archivingServer(major);
      await untilArchived(owner, await owner.switchWal());
      const before = await archivedKeys(owner.repository);
      await using other = await archivingServer(18, owner.repository);
      await other.switchWal();
      await untilFailed(other, 0);
      const log = await other.logText();
      expect(log).toContain(`${owner.repository} belongs to another cluster`);
      expect(log).toContain(`with system identifier ${await systemIdentifierOf(owner)}`);
      expect(log).toContain(`this one has ${await systemIdentifierOf(other)}`);
      expect(log).toContain("archive command failed with exit code 65");
      expect(await archivedKeys(owner.repository)).toEqual(before);
    },
  );

  test.each([12, 18])(
    "of PostgreSQL %i: is refused to a copy that went its own way: the first one's WAL stays as it is",
    async (major) => {
      await using original = await archivingServer(major);
      await untilArchived(original, await original.switchWal());
      await original.stop();
      const directory = join(original.directory, "copy");
      await cp(original.dataDirectory, directory, { recursive: true, preserveTimestamps: true });

      await using copy = await startPostgresOn(directory);
      await copy.query("CREATE TABLE of_the_copy (id int)");
      const segment = await copy.switchWal();
      await untilArchived(copy, segment);
      await copy.stop();
      const first = await readFile(join(original.repository, "wal_005", `${segment}.zst`));

      await original.start();
      await original.query("CREATE TABLE of_the_original (id int, text text)");
      await original.switchWal();
      await untilFailed(original, 0);
      const log = await original.logText();
      expect(log).toContain(`"${segment}" is already archived with different content`);
      expect(log).toContain("archive command failed with exit code 65");
      expect(await readFile(join(original.repository, "wal_005", `${segment}.zst`))).toEqual(first);
    },
  );
});
