/** verify --drill --to: recovery comes to whatever kind of target was said, and the verdict is good. */
import { describe, expect, test } from "bun:test";
import { archiveEverything, pushBackup, startArchiving, temporaryRepository } from "../support/backups.ts";
import { documentOf, oncePerMajor, ScratchParent } from "../support/drills.ts";
import { NEWEST_MAJOR, POSTGRES_MAJORS } from "../support/postgres-binaries.ts";

const storyOf = oncePerMajor(async (major: number) => {
  const repository = await temporaryRepository();
  const server = await startArchiving(repository.env, { major, walSegmentSizeMiB: 1 });
  const scratch = await ScratchParent.create(server);
  await server.query("CREATE TABLE steps (id serial)");
  await pushBackup(server, repository.env);
  await server.query("SELECT pg_create_restore_point('before release')");
  const lsn = await server.psql("SELECT pg_current_wal_insert_lsn()");
  const time = await server.psql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')");
  await Bun.sleep(20);
  const xid = await server.psql("INSERT INTO steps DEFAULT VALUES RETURNING xmin");
  await server.query("INSERT INTO steps DEFAULT VALUES");
  await archiveEverything(server, repository);
  await server.stop();
  const targets = {
    "a restore point": "name:before release",
    "a position": lsn,
    "a time": `${time}+00`,
    "a transaction": `xid:${xid}`,
    immediate: "immediate",
    latest: "latest",
  };
  return { server, repository, scratch, targets };
});

describe.each([POSTGRES_MAJORS[0] ?? 12, NEWEST_MAJOR])("PostgreSQL %i", (major) => {
  test.each(["a restore point", "a position", "a time", "a transaction", "immediate", "latest"] as const)(
    "to %s",
    async (kind) => {
      const { server, repository, scratch, targets } = await storyOf(major);
      const result = await scratch.drill(repository.env, ["--to", targets[kind]], server);
      expect({ exitCode: result.exitCode, stderr: result.stderr }).toEqual({
        exitCode: 0,
        stderr: expect.not.stringContaining("ERROR"),
      });
      expect(documentOf(result)).toMatchObject({ verdict: "good", findings: [] });
      expect(await scratch.left()).toEqual([]);
    },
    120_000,
  );
});
