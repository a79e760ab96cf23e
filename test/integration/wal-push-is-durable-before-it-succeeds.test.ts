/** The order of wal-push's calls on a directory: content on the disk, then its name, then the name on the disk, then success. */
import { expect, test } from "bun:test";
import { serverAccount } from "../support/account.ts";
import { Site } from "../support/site.ts";
import { runInSteps } from "../support/system-calls.ts";

const FIRST = "000000010000000000000001";
const SECOND = "000000010000000000000002";

test("content is made durable before its name is given, and the name before wal-push succeeds", async () => {
  await using site = await Site.create(serverAccount());
  await site.segment(FIRST);
  await site.segment(SECOND);
  // The directories are there, and durable, after the first.
  expect(await site.walb(["wal-push", `pg_wal/${FIRST}`])).toMatchObject({ exitCode: 0 });

  const command = [site.program, "wal-push", `pg_wal/${SECOND}`];
  const seen: boolean[] = [];
  const watched = ["fsync", "fdatasync", "link", "linkat", "rename", "renameat", "renameat2"];
  const options = { env: site.env, cwd: site.data, as: site.account, calls: watched };
  const { exitCode, calls } = await runInSteps(command, options, async () => {
    seen.push((await site.archived(SECOND)) !== undefined);
    return "go on";
  });
  expect(exitCode).toBe(0);
  expect(calls.map((call) => /^\w+/.exec(call)?.[0])).toEqual(["fsync", "link", "fsync"]);
  expect(seen).toEqual([false, true, true]);
});
