/** The clock of the database host is wrong, or is set while a command runs: nothing is lost, nothing waits for ever, nothing is deleted. */
import { afterAll, describe, expect, test } from "bun:test";
import { listedBackups, startArchiving, startWalb, temporaryRepository } from "../support/backups.ts";
import { canFakeClock, fakeClock } from "../support/fake-clock.ts";
import { everyS3Repository } from "../support/repositories.ts";
import { Site } from "../support/site.ts";

const s3 = await everyS3Repository();
afterAll(() => s3.stop());

const A = "000000010000000000000001";

describe.skipIf(!canFakeClock)("a clock that is wrong", () => {
  for (const { name, hostEnv } of s3.repositories) {
    // The last one is before 1970.
    test.each(["+2h", "-400d", "-30000d"])(`by %s, on ${name}: archived and restored`, async (offset) => {
      await using site = await Site.create();
      const content = await site.segment(A);
      const clock = await fakeClock(site.directory, offset);
      const env = { ...hostEnv, WALB_FILE_PREFIX: undefined, ...clock.env };
      for (const words of [["wal-push", `pg_wal/${A}`], ["wal-fetch", A, "fetched"], ["backup-list"]]) {
        const { exitCode, stderr } = await site.walb(["--terse", ...words], { env });
        expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: expect.not.stringContaining("ERROR") });
      }
      expect(Buffer.compare(await Bun.file(`${site.data}/fetched`).bytes(), content)).toBe(0);
    });
  }
});

describe.skipIf(!canFakeClock)("a clock that is set while a backup is taken", () => {
  test.each(["+10d", "-10d"])(
    "by %s: the backup is complete, and what is old is told by no wrong clock",
    async (jump) => {
      await using repository = await temporaryRepository();
      await using server = await startArchiving(repository.env, { walSegmentSizeMiB: 1 });
      await server.query("CREATE TABLE t AS SELECT n, md5(n::text) FROM generate_series(1, 20000) n");
      const clock = await fakeClock(server.directory, "+0");
      await using pushing = await startWalb(server, ["backup-push"], { ...repository.env, ...clock.env });
      await pushing.says("started at");
      await clock.set(jump);
      expect({ ...(await pushing.ended()), stderr: pushing.stderr }).toEqual({
        exitCode: 0,
        signal: null,
        stderr: expect.stringContaining("finished at"),
      });
      expect(await listedBackups(server, repository.env)).toHaveLength(1);
    },
  );
});
