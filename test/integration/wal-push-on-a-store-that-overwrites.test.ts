/** Some services take the condition of a conditional write and ignore it. Nothing archived may be overwritten there either. */
import { afterAll, expect, test } from "bun:test";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { shortTemporaryDirectory } from "../support/account.ts";
import { everyS3Repository } from "../support/repositories.ts";
import { walContent } from "../support/wal-content.ts";
import { runWalb } from "../support/walb.ts";

const s3 = await everyS3Repository();
afterAll(() => s3.stop());

const [FIRST, SECOND] = ["000000010000000000000001", "000000010000000000000002"] as const;

test.each(s3.repositories.map((repository) => [repository.name, repository] as const))(
  "on %s in a versioned bucket, a segment that is archived is never overwritten with other content",
  async (_, repository) => {
    const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-overwrite-"));
    // The host's memory is in the temporary directory.
    const env = { ...repository.hostEnv, TMPDIR: directory };
    try {
      await writeFile(join(directory, FIRST), walContent(FIRST));
      expect(await runWalb(["wal-push", join(directory, FIRST)], { env })).toMatchObject({ exitCode: 0 });

      await writeFile(join(directory, SECOND), walContent(SECOND, { fill: 1 }));
      expect(await runWalb(["wal-push", join(directory, SECOND)], { env })).toMatchObject({ exitCode: 0 });
      await writeFile(join(directory, SECOND), walContent(SECOND, { fill: 2 }));
      const refused = await runWalb(["wal-push", join(directory, SECOND)], { env });
      expect(refused.exitCode).toBe(65);
      expect(refused.stderr).toContain(`"${SECOND}" is already archived with different content`);

      const fetched = join(directory, "fetched");
      expect(await runWalb(["wal-fetch", SECOND, fetched], { env })).toMatchObject({ exitCode: 0 });
      expect(Buffer.from(await Bun.file(fetched).bytes()).equals(walContent(SECOND, { fill: 1 }))).toBe(true);
    } finally {
      await rm(directory, { recursive: true });
    }
  },
);
