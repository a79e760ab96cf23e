/** Where a restore may put tablespaces. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdir, mkdtemp, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { planTarget } from "../../../src/backup/target.ts";

const TABLESPACES = [
  { oid: "16388", location: "/source/one" },
  { oid: "16389", location: "/source/two" },
];

let around: string;

beforeEach(async () => {
  around = await mkdtemp(join(tmpdir(), "walb-target-"));
});
afterEach(async () => {
  await rm(around, { recursive: true, force: true });
});

const plan = async (one: string, two: string) =>
  await planTarget(join(around, "main"), TABLESPACES, {
    kind: "mapping",
    places: new Map([
      ["16388", join(around, one)],
      ["/source/two", join(around, two)],
    ]),
  });

describe("planTarget() refuses two tablespaces in one place", () => {
  const refusal = (one: string, two: string) => ({
    exitCode: 64,
    message: "tablespaces 16388 and 16389 cannot go to one place",
    detail: `Tablespace 16388 is to go to "${join(around, one)}", and 16389 to "${join(around, two)}".`,
  });

  test("that is not there yet", async () => {
    await expect(plan("space", "space")).rejects.toMatchObject(refusal("space", "space"));
  });

  test("that is there under two names", async () => {
    await mkdir(join(around, "space"));
    await symlink("space", join(around, "alias"));
    await expect(plan("space", "alias")).rejects.toMatchObject(refusal("space", "alias"));
  });

  test("and not two places", async () => {
    expect((await plan("space", "other")).tablespaces.map(({ oid }) => oid)).toEqual(["16388", "16389"]);
  });
});
