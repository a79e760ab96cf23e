import { expect, test } from "bun:test";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NOTHING_FOUND } from "../../../src/backup/resume.ts";
import { checkSpace } from "../../../src/backup/space.ts";
import { DestinationError, type Failure } from "../../../src/errors.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

const AROUND = tmpdir();
const MISSING = join(AROUND, `walb-${process.pid}-not-there`);
const PLAN = { target: join(MISSING, "restored"), tablespaces: [] };
const PEBIBYTE = 2 ** 50;
const filesOf = (sizes: Readonly<Record<string, number>>) =>
  new Map(Object.entries(sizes).map(([path, sizeBytes]) => [path, { sizeBytes, modifiedAt: new Date(0), sha256: "" }]));

test("what fits is accepted without a word, and a directory that is not there counts as where it will be made", async () => {
  const { log, lines } = recordedLog();
  await checkSpace(PLAN, { totalBytes: 1, files: filesOf({ PG_VERSION: 3 }), log, found: NOTHING_FOUND });
  expect(lines).toEqual([]);
});

test("more than is free is refused with both numbers, by the sizes of the files and not of the sentinel", async () => {
  const { log } = recordedLog();
  const files = filesOf({ "base/1/1": PEBIBYTE, "base/1/2": PEBIBYTE });
  const error = await checkSpace(PLAN, { totalBytes: 1, files, log, found: NOTHING_FOUND }).catch(
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(DestinationError);
  expect((error as Failure).message).toBe(`the backup does not fit into "${AROUND}"`);
  expect((error as Failure).detail).toMatch(/^2\.0 PiB go there, and [\d.]+ [MGT]iB are free\.$/);
  expect((error as Failure).hint).toContain("Nothing was written.");
});

test("files of a tablespace count where it goes; two places in one file system count together", async () => {
  const { log } = recordedLog();
  const plan = { ...PLAN, tablespaces: [{ oid: "16388", place: join(MISSING, "space"), link: "to be made" as const }] };
  const files = filesOf({ "base/1/1": 1, "pg_tblspc/16388/PG_18_202506291/5/1": PEBIBYTE });
  await expect(checkSpace(plan, { totalBytes: 1, files, log, found: NOTHING_FOUND })).rejects.toThrow("does not fit");
});

test("another tool's backup counts as a whole, but with tablespaces nobody knows what goes where", async () => {
  const { log } = recordedLog();
  const needed = { totalBytes: PEBIBYTE, files: undefined, log, found: NOTHING_FOUND };
  await expect(checkSpace(PLAN, needed)).rejects.toThrow("does not fit");
  const tablespaces = [{ oid: "16388", place: join(MISSING, "space"), link: "to be made" as const }];
  await checkSpace({ ...PLAN, tablespaces }, needed);
});
