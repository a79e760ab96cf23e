/**
 * Retention on every kind of repository there is. The database host has credentials that cannot delete, on a versioned bucket;
 * only retention has more.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { startWalb, stopArchivingDuring } from "../support/backups.ts";
import { type PostgresServer, startPostgres } from "../support/postgres-server.ts";
import { directoryRepository, everyS3Repository, type TestRepository } from "../support/repositories.ts";
import { runWalb, walbBinary } from "../support/walb.ts";

const walb = await walbBinary();
const s3 = await everyS3Repository();
afterAll(() => s3.stop());

describe.each(["directory", ...s3.repositories.map(({ name }) => name)])("on %s", (name) => {
  test("a second backup, and retention with credentials that may delete", async () => {
    await using story = await begin(name);
    const { server, repository } = story;
    for (let n = 0; n < 3; n++) {
      expect(await runWalb(["backup-push"], { as: server, env: repository.hostEnv })).toMatchObject({ exitCode: 0 });
    }
    const listed = await runWalb(["backup-list", "--json"], { as: server, env: repository.hostEnv });
    const names = (JSON.parse(listed.stdout) as { backup_name: string }[]).map(({ backup_name }) => backup_name);
    expect(names).toHaveLength(3);

    const before = await repository.keys();
    const planned = await runWalb(["delete", "retain", "2"], { as: server, env: repository.hostEnv });
    expect(planned.stdout).toContain(`remove  ${names[0]}  3rd newest; 2 are kept`);
    expect(planned.stdout).toContain("nothing was removed: that needs --confirm");
    expect(await repository.keys()).toEqual(before);

    const acted = await runWalb(["delete", "retain", "2", "--confirm"], { as: server, env: repository.env });
    expect(acted).toMatchObject({ exitCode: 0 });
    const after = await repository.keys();
    expect(after.filter((key) => key.includes(names[0] ?? ""))).toEqual([]);
    const horizon = (names[1] ?? "").slice("base_".length);
    const walIn = (keys: readonly string[]) =>
      keys.filter((key) => key.startsWith("wal_005/")).map((key) => key.slice("wal_005/".length));
    const wal = walIn(after);
    expect(wal.filter((file) => file < horizon)).toEqual([]);
    expect(wal).toContain(`${horizon}.zst`);

    // MinIO still lists the folder of the backup that was deleted: it must not be taken for a running one.
    const again = await runWalb(["delete", "retain", "1", "--confirm"], { as: server, env: repository.env });
    expect(again).toMatchObject({ exitCode: 0, stdout: expect.not.stringContaining("not complete") });
    const newest = (names[2] ?? "").slice("base_".length);
    expect(walIn(await repository.keys()).filter((file) => file < newest)).toEqual([]);
  });
});

describe.each(s3.repositories.map(({ name }) => name))("on %s", (name) => {
  test("a failed backup that cannot be removed says so, and delete garbage finds it", async () => {
    await using story = await begin(name);
    const { server, repository } = story;
    await server.switchWal();
    await using running = await startWalb(server, ["backup-push"], {
      ...repository.hostEnv,
      WALB_ARCHIVE_TIMEOUT: "10s",
    });
    await stopArchivingDuring(running, server);

    const { exitCode } = await running.ended();
    const { stderr } = running;
    expect(exitCode).toBe(76);
    expect(stderr).toMatch(/WARNING: could not remove the unfinished backup "base_[0-9A-F]{24}"/);
    expect(stderr).toContain("delete garbage --min-age 0s --confirm");
    expect((await runWalb(["backup-list", "--json"], { env: repository.hostEnv })).stdout).toBe("[]\n");

    const spared = await runWalb(["delete", "garbage", "--confirm"], { env: repository.env });
    expect(spared.stdout).toContain("no unfinished backups or uploads that are old enough");
    const found = await runWalb(["delete", "garbage", "--min-age", "0s", "--confirm"], { env: repository.env });
    expect(found.stdout).toMatch(/^remove {2}base_[0-9A-F]{24} {2}unfinished: \d+ objects/m);
    expect((await repository.keys()).filter((key) => key.startsWith("basebackups_005/"))).toEqual([]);
  });
});

interface Story extends AsyncDisposable {
  readonly server: PostgresServer;
  readonly repository: TestRepository;
}

/** A server that archives to a new repository. */
async function begin(name: string): Promise<Story> {
  const server = await startPostgres({ archiveCommand: "/bin/false" });
  const repository =
    name === "directory"
      ? directoryRepository(await server.makeDirectory("repository"))
      : ((await everyS3Repository()).repositories.find((candidate) => candidate.name === name) as TestRepository);
  await server.configure({ archive_command: `${inline(repository.hostEnv)} ${walb} wal-push %p` });
  return { server, repository, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

const inline = (env: Readonly<Record<string, string>>) =>
  Object.entries(env)
    .map(([variable, value]) => `${variable}='${value}'`)
    .join(" ");
