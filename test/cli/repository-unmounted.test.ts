/**
 * A repository on a file system that goes away. What is left is its mount point: a directory in which every file is missing, which
 * proves nothing, and in which nothing may be archived.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readdir } from "node:fs/promises";
import { canMount, withOwnMounts } from "../support/mounts.ts";
import { Site } from "../support/site.ts";

const [A, B] = ["000000010000000000000001", "000000010000000000000002"] as const;
const FETCH = "pg_wal/RECOVERYXLOG";

let site: Site;
beforeEach(async () => {
  site = await Site.create();
  for (const name of [A, B]) await site.segment(name);
});
afterEach(async () => await site[Symbol.asyncDispose]());

/** Runs a script while the repository is a file system of its own, in which A is archived. "$DISK" is where it is. */
const mounted = (script: string) =>
  withOwnMounts(
    `set -e; mkdir ../disk; mount -t tmpfs tmpfs ../disk; mount --bind ../disk "$DISK"
     "$WALB" --terse wal-push pg_wal/${A}; "$WALB" --terse wal-push pg_wal/${A}; set +e\n${script}`,
    { cwd: site.data, env: { ...site.env, WALB: site.program, DISK: site.repository } },
  );

describe.skipIf(!(await canMount()))("when it is unmounted", () => {
  test("nothing is archived in its place, and once it is mounted again, all goes on", async () => {
    const result = await mounted(`
      umount "$DISK"
      "$WALB" wal-push pg_wal/${B}; echo "push $?"
      "$WALB" wal-push pg_wal/${A}; echo "push again $?"
      "$WALB" --terse backup-list > /dev/null 2>&1; echo "list $?"
      find "$DISK" -mindepth 1
      mount --bind ../disk "$DISK"
      "$WALB" --terse wal-push pg_wal/${B}; echo "mounted $?"
      ls "$DISK/wal_005"`);
    const refused = `wal-b: ERROR: the repository file://${site.repository} is empty, and was in use on another file system before
  DETAIL: The file system that it was on does not seem to be mounted.
  HINT: Mount it. To begin a new repository there all the same, make the directory "${site.repository}/wal_005/".\n`;
    expect(result).toMatchObject({
      stdout: `push 69\npush again 69\nlist 69\nmounted 0\n${A}.zst\n${B}.zst\n`,
      stderr: refused + refused,
    });
  });

  test("a new repository begins there when that is said, or on the same file system", async () => {
    const result = await mounted(`
      umount "$DISK"; mkdir "$DISK/wal_005"
      "$WALB" --terse wal-push pg_wal/${B}; echo "said $?"
      rm -r "$DISK/wal_005"
      "$WALB" --terse wal-push pg_wal/${B}; echo "emptied $?"`);
    expect(result).toMatchObject({ stdout: "said 0\nemptied 0\n", stderr: "" });
  });

  test.each([
    ["nothing", "true"],
    ["somebody's note", 'touch "$DISK/not mounted"'],
    ["a directory as of a repository", 'mkdir "$DISK/wal_005" "$DISK/basebackups_005"'],
  ])("recovery does not end, with %s at the mount point", async (_, leave) => {
    await site.write("recovery.signal");
    const result = await mounted(`
      "$WALB" --terse wal-fetch ${A} ${FETCH}; echo "mounted $?"; rm ${FETCH}
      "$WALB" --terse wal-fetch ${B} ${FETCH}; echo "absent $?"
      umount "$DISK"; ${leave}
      for memory in tmp other; do
        mkdir -p "$TMPDIR/../$memory"; export TMPDIR="$TMPDIR/../$memory"
        "$WALB" --terse wal-fetch ${A} ${FETCH} 2>/dev/null; echo "unmounted $?"
        "$WALB" --terse wal-fetch 00000002.history pg_wal/RECOVERYHISTORY 2>/dev/null; echo "unmounted $?"
      done`);
    expect(result.stdout).toBe(`mounted 0\nabsent 74\n${"unmounted 200\n".repeat(4)}`);
    expect((await readdir(`${site.data}/pg_wal`)).sort()).toEqual([A, B, "archive_status"]);
  });
});
