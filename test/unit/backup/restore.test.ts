import { describe, expect, test } from "bun:test";
import { readdir, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { writeRecoverySettings } from "../../../src/backup/recovery-settings.ts";
import { carryOutRestore, planRestore } from "../../../src/backup/restore.ts";
import type { RestoreRequest } from "../../../src/backup/restore-request.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { AccessError, type Failure, IntegrityError, NotFoundError, StorageError } from "../../../src/errors.ts";
import { parseRecoveryTarget } from "../../../src/postgres/recovery-target.ts";
import { walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import type { ObjectStore } from "../../../src/storage/object-store.ts";
import { NO_PROGRESS } from "../../../src/system/progress.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { random } from "../../support/random.ts";
import { putBackup, putWal } from "../../support/stored-backup.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";
import { recordedLog } from "../postgres/recorded-log.ts";

const zstd = await openZstd(3);
/** A segment has 1 MiB, so that number 4 is at LSN 0/400000. */
const named = (number: number, timeline = 1) =>
  `${String(timeline).padStart(8, "0")}00000000${number.toString(16).toUpperCase().padStart(8, "0")}`;
const between = (first: number, last: number, timeline = 1) =>
  Array.from({ length: last - first + 1 }, (_, n) => named(first + n, timeline));

/** Two backups on timeline 1, which was left in segment 7 for timeline 2 and went on to 8. */
async function repository(): Promise<MemoryObjectStore> {
  const store = new MemoryObjectStore();
  const { bytes } = random(1);
  for (const [at, start] of [1, 4].entries()) {
    const parts = {
      "part_001.tar.zst": {
        PG_VERSION: Buffer.from("18\n"),
        "postgresql.auto.conf": Buffer.from("work_mem = '7MB'\n"),
      },
      "pg_control.tar.zst": { "global/pg_control": bytes(8192) },
    };
    await putBackup(store, zstd, { startSegment: named(start), parts, finishedAt: new Date((at + 1) * 1000) });
  }
  await putWal(store, zstd, [...between(1, 8), "00000002.history=1\t0/750000\tno reason", ...between(7, 9, 2)]);
  return store;
}

const ORIGINAL = await repository();

const requestOf = (to: string, more: Partial<RestoreRequest> = {}): RestoreRequest => ({
  target: parseRecoveryTarget(to),
  timeline: "latest",
  action: "pause",
  role: "primary",
  backup: undefined,
  restoreCommand: 'wal-b wal-fetch %f "%p"',
  ...more,
});

function contextOf(store: ObjectStore) {
  const { log, lines: records } = recordedLog();
  const context = {
    store,
    zstd,
    log,
    archive: openWalArchive(store, async () => zstd),
    partsAtOnce: 2,
    tablespaces: { kind: "prepared links" } as const,
    signal: new AbortController().signal,
    interrupted: undefined,
    startProgress: NO_PROGRESS,
    now: () => new Date(0),
  };
  return { context, records };
}

describe("planRestore()", () => {
  test.each([
    ["latest", {}, named(4), named(9, 2), 6, "2"],
    ["latest", { timeline: 1 }, named(4), named(8), 5, "1"],
    ["latest", { backup: `base_${named(1)}` }, named(1), named(9, 2), 9, "2"],
    ["latest", { role: "standby" }, named(4), named(9, 2), 6, "latest"],
    ["immediate", {}, named(4), named(5), 2, "1"],
    ["0/600000", {}, named(4), named(6), 3, "2"],
    ["0/400000", {}, named(1), named(4), 4, "2"],
    ["0/760000", { timeline: 1 }, named(4), named(7), 4, "1"],
    ["0/760000", {}, named(4), named(7, 2), 4, "2"],
  ] as const)("to %s, %p: from %s to %s", async (to, more, first, last, segments, timeline) => {
    await using directory = await temporaryDirectory();
    const plan = await planRestore(join(directory.path, "new"), requestOf(to, more), contextOf(ORIGINAL).context);
    expect({ first: plan.wal.first.name, last: plan.wal.last.name, segments: plan.wal.segments }).toEqual({
      first,
      last,
      segments,
    });
    expect(new Map(plan.settings).get("recovery_target_timeline")).toBe(timeline);
    expect(await readdir(directory.path)).toEqual([]);
  });

  test.each([
    ["primary", "0"],
    ["standby", undefined],
  ] as const)("takes the delay of a standby from a %s: %p", async (role, delay) => {
    await using directory = await temporaryDirectory();
    const request = requestOf("latest", { role });
    const plan = await planRestore(join(directory.path, "new"), request, contextOf(ORIGINAL).context);
    expect(new Map(plan.settings).get("recovery_min_apply_delay")).toBe(delay);
  });

  test("refuses a directory that is not empty before it reads anything", async () => {
    await using directory = await temporaryDirectory();
    await writeFile(join(directory.path, "precious"), "");
    const counting = new FaultStore(ORIGINAL);
    const failure = await planRestore(directory.path, requestOf("latest"), contextOf(counting).context).catch(
      (error: unknown) => error,
    );
    expect((failure as Failure).message).toBe(`"${directory.path}" is not empty`);
    expect(counting.calls).toEqual([]);
  });

  test.each([
    ["latest", new StorageError("time-out")],
    ["0/860000", new AccessError("403")],
    ["name:nowhere", new StorageError("time-out")],
  ])("to %s: never takes a failure of the store for absence, whichever call it is", async (to, error) => {
    await using directory = await temporaryDirectory();
    const plan = (store: ObjectStore) =>
      planRestore(join(directory.path, "new"), requestOf(to), contextOf(store).context).then(
        () => "planned",
        (failure: unknown) => failure,
      );
    const counting = new FaultStore(ORIGINAL);
    const good = await plan(counting);
    expect(good === "planned" || good instanceof NotFoundError).toBe(true);
    expect(counting.calls.length).toBeGreaterThan(8);
    for (let atCall = 1; atCall <= counting.calls.length; atCall++) {
      const faulty = new FaultStore(ORIGINAL, { atCall, when: "before", error });
      expect([atCall, await plan(faulty)]).toEqual([atCall, error]);
    }
    expect(await readdir(directory.path)).toEqual([]);
  });

  test("looks three times at a gap, and takes one that closes for none", async () => {
    await using directory = await temporaryDirectory();
    const store = await repository();
    const { body, metadata } = await store.get(walKey(named(6)), 2 ** 20);
    await store.delete([walKey(named(6))]);
    const plan = () => planRestore(join(directory.path, "new"), requestOf("latest"), contextOf(store).context);
    const failure = await plan().catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(IntegrityError);
    expect((failure as Failure).message).toBe(
      `the archive has a gap before the end of the archive: "${named(6)}" is missing`,
    );
    const planning = plan();
    await Bun.sleep(100);
    await store.putIfAbsent(walKey(named(6)), body, metadata);
    expect((await planning).wal.last.name).toBe(named(9, 2));
  });

  /** Its history is there, and none of its segments; timeline 1 went on to 8. */
  test.each([
    ["latest", {}],
    ["latest", { role: "standby" }],
    ["name:x", {}],
    ["2099-01-01 00:00:00Z", {}],
  ] as const)(
    "to %s, %p: does not go past the fork to a timeline of which nothing is archived yet",
    async (to, more) => {
      await using directory = await temporaryDirectory();
      const store = await repository();
      await store.delete([...between(7, 9, 2), named(6)].map(walKey));
      // Of a release whose records nobody here knows: where the target is, PostgreSQL alone finds out.
      await putWal(store, zstd, [named(6)], { change: (view) => view.setUint16(0, 0xd1f0, true) });
      const plan = planRestore(join(directory.path, "new"), requestOf(to, more), contextOf(store).context);
      await expect(plan).rejects.toMatchObject({
        exitCode: 65,
        message: `"${named(7, 2)}" is not archived yet, and recovery would take "${named(7)}" for it`,
        detail: expect.stringContaining("Timeline 1 was left at LSN 0/750000 on the way to timeline 2"),
      });
      await store.delete([walKey(named(7))]);
      await store.putIfAbsent(walKey(`${named(7)}.partial`), Buffer.from("?"));
      const planned = await planRestore(join(directory.path, "new"), requestOf(to, more), contextOf(store).context);
      expect(planned.wal.last.name).toBe(named(6));
    },
  );

  describe("where WAL-G archived with lz4", () => {
    /** These segments are there in that form alone. */
    async function withLz4(...names: readonly string[]): Promise<MemoryObjectStore> {
      const store = await repository();
      await store.delete(names.map(walKey));
      for (const name of names) await store.putIfAbsent(`wal_005/${name}.lz4`, Buffer.from("lz4"));
      return store;
    }
    const UNSUPPORTED = (name: string) => ({
      exitCode: 65,
      message: `archived "${name}" is in a format that is not supported`,
      detail: `memory://test/wal_005/${name}.lz4 is compressed with lz4. Recovery would stop there.`,
    });

    test.each([
      ["the end", "latest", [named(9, 2)], named(9, 2)],
      ["the middle", "latest", [named(6)], named(6)],
      ["what the backup itself needs", "immediate", [named(5)], named(5)],
      ["what a time is looked for in", "2099-01-01 00:00:00Z", [named(8, 2), named(9, 2)], named(8, 2)],
      ["what an LSN is looked for in", "0/9F0000", [named(9, 2)], named(9, 2)],
      ["what a restore point is looked for in", "name:nowhere", [named(9, 2)], named(9, 2)],
    ])("%s: to %s is refused by name", async (_, to, lz4, refused) => {
      await using directory = await temporaryDirectory();
      const { context } = contextOf(await withLz4(...lz4));
      const plan = planRestore(join(directory.path, "new"), requestOf(to), context);
      await expect(plan).rejects.toMatchObject(UNSUPPORTED(refused));
      expect(await readdir(directory.path)).toEqual([]);
    });

    test("behind the target: is not asked for", async () => {
      await using directory = await temporaryDirectory();
      const { context } = contextOf(await withLz4(named(8, 2), named(9, 2)));
      const plan = await planRestore(join(directory.path, "new"), requestOf("0/600000"), context);
      expect(plan.wal.last.name).toBe(named(6));
    });

    test("a standby waits there, and is told", async () => {
      await using directory = await temporaryDirectory();
      const { context, records } = contextOf(await withLz4(named(9, 2)));
      const plan = await planRestore(join(directory.path, "new"), requestOf("latest", { role: "standby" }), context);
      expect(plan.wal.last.name).toBe(named(8, 2));
      expect(records.join("\n")).toContain(UNSUPPORTED(named(9, 2)).message);
    });
  });

  test("refuses another cluster's segment on the way to a restore point", async () => {
    await using directory = await temporaryDirectory();
    const store = await repository();
    await store.delete([walKey(named(9, 2))]);
    await putWal(store, zstd, [named(9, 2)], { systemIdentifier: 7n });
    const plan = planRestore(join(directory.path, "new"), requestOf("name:x"), contextOf(store).context);
    expect(((await plan.catch((error: unknown) => error)) as Failure).message).toBe(
      `archived "${named(9, 2)}" is of another cluster`,
    );
  });

  test("cannot tell where a restore point is in records of an unknown release, says so, and goes on", async () => {
    await using directory = await temporaryDirectory();
    const store = await repository();
    await store.delete([walKey(named(9, 2))]);
    await putWal(store, zstd, [named(9, 2)], { change: (view) => view.setUint16(0, 0xd1f0, true) });
    const { context, records } = contextOf(store);
    const plan = await planRestore(join(directory.path, "new"), requestOf("name:x"), context);
    expect(plan.backup.name).toBe(`base_${named(4)}`);
    expect(records.join("\n")).toContain('cannot tell where restore point "x" is');
  });
});

describe("carryOutRestore()", () => {
  test("has settings and signal file in place before pg_control gets its name", async () => {
    await using directory = await temporaryDirectory();
    const target = join(directory.path, "new");
    const { context } = contextOf(ORIGINAL);
    const plan = await planRestore(target, requestOf("immediate"), context);
    await carryOutRestore(plan, context);
    expect(await readFile(join(target, "postgresql.auto.conf"), "utf8")).toBe(
      [
        "work_mem = '7MB'",
        `# Written by wal-b restore, 1970-01-01T00:00:00.000Z, backup "base_${named(4)}" to the end of the backup:`,
        "restore_command = 'wal-b wal-fetch %f \"%p\"'",
        "recovery_target = 'immediate'",
        "recovery_target_action = 'pause'",
        "recovery_target_timeline = '1'",
        "recovery_min_apply_delay = '0'",
        "",
      ].join("\n"),
    );
    expect((await readdir(target)).toSorted()).toEqual([
      "PG_VERSION",
      "backup_manifest",
      "global",
      "postgresql.auto.conf",
      "recovery.signal",
    ]);
    expect(await readdir(join(target, "global"))).toEqual(["pg_control"]);
    expect((await stat(join(target, "recovery.signal"))).mode & 0o777).toBe(0o600);
  });

  test("leaves a directory that cannot be started when the settings cannot be written", async () => {
    await using directory = await temporaryDirectory();
    const target = join(directory.path, "new");
    const { context } = contextOf(ORIGINAL);
    const plan = await planRestore(target, requestOf("immediate"), context);
    const impossible = { ...plan, settings: [["restore_command", "two\nlines"]] as const };
    expect(await carryOutRestore(impossible, context).catch((error: unknown) => error)).toBeInstanceOf(RangeError);
    expect(await readdir(join(target, "global"))).toEqual(["pg_control.walb-incomplete"]);
  });
});

describe("writeRecoverySettings()", () => {
  const settings = { settings: [["restore_command", "x"]], signalFile: "standby.signal", note: "a test" } as const;

  test("keeps the mode of the file, and leaves one signal file", async () => {
    await using directory = await temporaryDirectory();
    const { log, lines: records } = recordedLog();
    await writeFile(join(directory.path, "postgresql.auto.conf"), "port = 1\n", { mode: 0o640 });
    await writeFile(join(directory.path, "recovery.signal"), "");
    await writeRecoverySettings({ target: directory.path, owner: undefined }, settings, log);
    expect((await readdir(directory.path)).toSorted()).toEqual(["postgresql.auto.conf", "standby.signal"]);
    expect((await stat(join(directory.path, "postgresql.auto.conf"))).mode & 0o777).toBe(0o640);
    expect(records).toEqual([]);
  });

  test("keeps bytes that are not UTF-8, and writes its own lines in UTF-8", async () => {
    await using directory = await temporaryDirectory();
    const path = join(directory.path, "postgresql.auto.conf");
    await writeFile(path, "archive_command = 'cp %p /m\xfcnchen'\nrestore_command = 'cp /m\xfcnchen'\n", "latin1");
    const german = { ...settings, settings: [["recovery_target_name", "größer"]], note: "to größer" } as const;
    await writeRecoverySettings({ target: directory.path, owner: undefined }, german, recordedLog().log);
    expect(await readFile(path, "latin1")).toBe(
      [
        "archive_command = 'cp %p /m\xfcnchen'",
        "# Before to gr\xc3\xb6\xc3\x9fer: restore_command = 'cp /m\xfcnchen'",
        "# Written by to gr\xc3\xb6\xc3\x9fer:",
        "recovery_target_name = 'gr\xc3\xb6\xc3\x9fer'",
        "",
      ].join("\n"),
    );
  });

  test("says that postgresql.conf has a target, which a server would follow", async () => {
    await using directory = await temporaryDirectory();
    const { log, lines: records } = recordedLog();
    await writeFile(
      join(directory.path, "postgresql.conf"),
      "#recovery_target_time = ''\nrecovery_target_xid = '7' # old\nrestore_command = 'overridden'\n",
    );
    await writeRecoverySettings({ target: directory.path, owner: undefined }, settings, log);
    expect(records.join("\n")).toContain("postgresql.conf sets recovery_target_xid");
  });
});
