/**
 * A call of the operating system that fails, at every such call that wal-push makes in a repository in a directory: the message
 * names what could not be written and why; what is visible is whole; what is left is garbage; and running it again succeeds.
 */
import { expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { Site } from "../support/site.ts";
import { runWithFailingCall } from "../support/system-calls.ts";
import { walContent } from "../support/wal-content.ts";

const [A, B] = ["000000010000000000000001", "000000010000000000000002"];
const PUSH = ["wal-push", `pg_wal/${A}`];
const TOLD: Record<string, { readonly why: RegExp; readonly hint: string }> = {
  EIO: { why: /EIO: i\/o error/, hint: "" },
  ENOSPC: { why: /ENOSPC: no space left on device/, hint: "HINT: The disk of the repository is full" },
  EDQUOT: { why: /EDQUOT: disk quota exceeded/, hint: "HINT: The quota of the account that runs wal-b" },
};

const CALLS = [
  ["write", "EIO"],
  ["write", "EDQUOT"],
  ...["fsync", "mkdir", "link"].flatMap((call) => Object.keys(TOLD).map((error) => [call, error] as const)),
] as const;

/** Each meets the write(2) of a segment about once: what threads write to wake each other is counted with it. */
const ROUNDS = 20;

/** What the archive holds besides whole segments. */
async function others(site: Site): Promise<readonly string[]> {
  const names = (await readdir(site.archive).catch(() => [])).sort();
  const left: string[] = [];
  for (const name of names) {
    const segment = name.replace(/\.zst$/, "");
    const isOurs = [A, B].includes(segment);
    // A file under its own name is whole, whatever failed.
    if (isOurs) expect(Buffer.compare((await site.archived(segment)) ?? Buffer.alloc(0), walContent(segment))).toBe(0);
    else left.push(name);
  }
  return left;
}

test.each(CALLS)(
  "a %s that fails with %s",
  async (call, error) => {
    const failed = { A: 0, B: 0 };
    let left = 0;
    // Until the program makes no n-th call of this kind in any thread; again where chance decides which thread makes it.
    for (let [when, round] = [1, 1]; ; when++) {
      await using site = await Site.create();
      for (const name of [A, B]) await site.waiting(name);
      const failing = { call, error, when, below: site.repository };
      const options = { env: site.env, cwd: site.data };
      const { hit, exitCode, signal, stderr } = await runWithFailingCall([site.program, ...PUSH], failing, options);
      if (hit.length === 0) {
        if (failed.A > 0 || round++ === ROUNDS) break;
        when = 0;
      }
      if (signal !== null || !hit.some((line) => line.includes(site.repository))) continue;
      const what = { when, hit, exitCode, stderr };
      // B is archived ahead of its turn: what befalls it is told, and is no failure of A's.
      const isAhead = exitCode === 0;
      if (isAhead) expect(stderr).toContain(`WARNING: could not archive "${B}" ahead of its turn\n`);
      else expect(what).toEqual({ ...what, exitCode: 69 });
      const { why, hint } = TOLD[error] as (typeof TOLD)[string];
      expect(stderr).toMatch(/could not write "file:\/\/[^"]+\/wal_005\/0000000100000000000000\d\d\.zst"/);
      expect(stderr).toMatch(why);
      if (!isAhead) expect(stderr).toContain(hint);
      failed[isAhead ? "B" : "A"]++;
      // Nothing is marked as archived but what is.
      for (const mark of await site.marks())
        if (mark.endsWith(".done")) expect(await site.archived(mark.replace(".done", ""))).toBeDefined();
      left += (await others(site)).length;

      expect(await site.walb(PUSH)).toMatchObject({ exitCode: 0 });
      expect(await site.walb(["delete", "garbage", "--min-age", "0s", "--confirm"])).toMatchObject({ exitCode: 0 });
      expect({ ...what, others: await others(site) }).toEqual({ ...what, others: [] });
      expect(await site.archived(A)).toBeDefined();
    }
    console.log(`${call} ${error}: ${failed.A} times of A, ${failed.B} times of B, ${left} temporary files left`);
    expect(failed.A).toBeGreaterThan(0);
    expect(left).toBe(0);
  },
  300_000,
);

test("unlink that fails: both are archived and marked, and the temporary names that stay are garbage", async () => {
  await using site = await Site.create();
  for (const name of [A, B]) await site.waiting(name);
  const failing = { call: "unlink", error: "EIO" };
  const { hit, exitCode, stderr } = await runWithFailingCall([site.program, ...PUSH], failing, {
    env: site.env,
    cwd: site.data,
  });
  expect({ hit: hit.length > 1, exitCode, stderr }).toEqual({ hit: true, exitCode: 0, stderr });
  expect(await site.marks()).toEqual([`${A}.ready`, `${B}.done`]);
  expect(await others(site)).toHaveLength(2);
  expect(await site.walb(["delete", "garbage", "--min-age", "0s", "--confirm"])).toMatchObject({ exitCode: 0 });
  expect(await others(site)).toEqual([]);
  for (const name of [A, B]) expect(await site.archived(name)).toBeDefined();
});
