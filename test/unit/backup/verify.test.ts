import { describe, expect, test } from "bun:test";
import { type VerifyChoice, verifyBackups } from "../../../src/backup/verify.ts";
import {
  checkReport,
  formatVerifyJson,
  formatVerifyText,
  type VerifyReport,
} from "../../../src/backup/verify-report.ts";
import { decodeContent, encodeContent } from "../../../src/codec/content.ts";
import { TarWriter } from "../../../src/codec/tar.ts";
import { openZstd } from "../../../src/codec/zstd.ts";
import { AccessError, IntegrityError, NotFoundError, StorageError } from "../../../src/errors.ts";
import { backupKeys, partKey, walKey } from "../../../src/repository/keys.ts";
import { openWalArchive } from "../../../src/repository/wal-archive.ts";
import type { ObjectStore } from "../../../src/storage/object-store.ts";
import type { StartProgress } from "../../../src/system/progress.ts";
import { FaultStore } from "../../support/fault-store.ts";
import { readGolden } from "../../support/golden.ts";
import { MemoryObjectStore } from "../../support/memory-object-store.ts";
import { random } from "../../support/random.ts";
import { putBackup, putWal } from "../../support/stored-backup.ts";
import { SYSTEM_IDENTIFIER } from "../../support/wal-content.ts";

const zstd = await openZstd(3);
const OLD = "base_000000010000000000000001";
const NEW = "base_000000010000000000000004";
const KEYS = backupKeys(NEW);
const PARTS = ["part_001.tar.zst", "part_002.tar.zst", "pg_control.tar.zst"] as const;
const ENOUGH = 2 ** 30;

const segment = (number: number, timeline = 1) =>
  `0000000${timeline}00000000${number.toString(16).toUpperCase().padStart(8, "0")}`;
const segments = (first: number, last: number, timeline = 1) =>
  Array.from({ length: last - first + 1 }, (_, n) => segment(first + n, timeline));

/** Two backups on timeline 1, of which recovery goes on to timeline 2 in segment 7; timeline 1 went on by itself to 8. */
const ORIGINAL = await (async () => {
  const store = emptyStore();
  const { bytes } = random(1);
  const parts = () => ({
    "part_001.tar.zst": { "base/1/1": bytes(5000), "base/1/2": bytes(2_500_000) },
    "part_002.tar.zst": { "base/1/3": bytes(70_000), PG_VERSION: Buffer.from("18\n"), "base/1/4": bytes(0) },
    "pg_control.tar.zst": { "global/pg_control": bytes(8192) },
  });
  await putBackup(store, zstd, { startSegment: segment(1), parts: parts(), finishedAt: new Date(1000) });
  await putBackup(store, zstd, { startSegment: segment(4), parts: parts(), finishedAt: new Date(2000) });
  await putWal(store, zstd, [
    ...segments(1, 8),
    "00000002.history=1\t0/750000\tno recovery target",
    ...segments(7, 9, 2),
  ]);
  return store;
})();

/** Objects are one millisecond apart. */
function emptyStore(): MemoryObjectStore {
  let writes = 0;
  return new MemoryObjectStore({ now: () => new Date(writes++), chunkBytes: 50_000 });
}

/** ORIGINAL again, for one test to change. */
async function repository(): Promise<MemoryObjectStore> {
  const store = emptyStore();
  const byAge = (await Array.fromAsync(ORIGINAL.list(""))).toSorted(
    (a, b) => Number(a.lastModified) - Number(b.lastModified),
  );
  for (const { key } of byAge) {
    const { body, metadata } = await ORIGINAL.get(key, ENOUGH);
    await store.putIfAbsent(key, body, metadata);
  }
  return store;
}

type Options = Partial<VerifyChoice>;

async function verify(store: ObjectStore, { backups = "LATEST", walToEnd = "newest" }: Options = {}) {
  const shown: string[] = [];
  const report = await verifyBackups(
    { backups, walToEnd },
    {
      store,
      zstd,
      archive: openWalArchive(store, async () => zstd),
      atOnce: 3,
      gapPauseMs: 1,
      startProgress: recordedIn(shown),
      now: () => new Date(0),
      signal: new AbortController().signal,
    },
  );
  return { report, shown };
}

/** A line for each piece of work when it is left: "what bytes of total". */
const recordedIn =
  (shown: string[]): StartProgress =>
  (first) => {
    let [what, done, total] = [first, 0, 0];
    const leave = () => void (what && shown.push(`${what} ${done} of ${total}`));
    return {
      expect: (bytes) => {
        total = bytes;
      },
      advance: (bytes) => {
        done += bytes;
      },
      turnTo: (next) => {
        leave();
        [what, done, total] = [next, 0, 0];
      },
      [Symbol.dispose]: leave,
    };
  };

const found = (report: VerifyReport) =>
  report.backups.flatMap(({ findings }) => findings.map(({ key, problem }) => `${key}: ${problem}`));

async function bodyOf(store: MemoryObjectStore, key: string): Promise<Uint8Array> {
  return (await store.get(key, ENOUGH)).body;
}

async function change(store: MemoryObjectStore, key: string, body: (before: Uint8Array) => Uint8Array): Promise<void> {
  const { body: before, metadata } = await store.get(key, ENOUGH);
  await store.replace(key, body(before), metadata);
}

const flipped = (at: number) => (body: Uint8Array) => {
  const changed = body.slice();
  const place = at % body.byteLength;
  changed[place] = (changed[place] ?? 0) ^ 1;
  return changed;
};
const cutTo = (end: number) => (body: Uint8Array) => body.slice(0, end);

describe("verifyBackups()", () => {
  test("reads the newest backup, and WAL along both timelines to their ends", async () => {
    const store = await repository();
    const { report } = await verify(store);
    expect(report).toMatchObject({ location: "memory://test", stoppedBy: undefined });
    expect(report.backups).toEqual([
      {
        name: NEW,
        parts: {
          depth: "manifest",
          parts: 3,
          files: 6,
          contentBytes: 2_583_195,
          storedBytes: await storedBytes(store, NEW),
        },
        wal: [
          { timeline: 1, first: segment(4), last: segment(8), segments: 5, contentBytes: 5 * 2 ** 20 },
          { timeline: 2, first: segment(7, 2), last: segment(9, 2), segments: 3, contentBytes: 3 * 2 ** 20 },
        ],
        walReach: "end of the archive",
        findings: [],
        notes: [],
        durationMs: 0,
      },
    ]);
    expect(() => checkReport(report)).not.toThrow();
  });

  test("reads of an older backup the WAL up to its own stop, and with --wal on to the end", async () => {
    const store = await repository();
    const wal = async (options: Options) => (await verify(store, options)).report.backups.map((backup) => backup.wal);
    const own = { timeline: 1, first: segment(1), last: segment(2), segments: 2, contentBytes: 2 * 2 ** 20 };
    const onTwo = { timeline: 2, first: segment(7, 2), last: segment(9, 2), segments: 3, contentBytes: 3 * 2 ** 20 };
    const toEnd = (first: number, count: number) => [
      { timeline: 1, first: segment(first), last: segment(8), segments: count, contentBytes: count * 2 ** 20 },
      onTwo,
    ];
    expect(await wal({ backups: OLD })).toEqual([[own]]);
    expect(await wal({ backups: OLD, walToEnd: "each" })).toEqual([toEnd(1, 8)]);
    expect(await wal({ backups: NEW })).toEqual([toEnd(4, 5)]);
    expect(await wal({ backups: { all: true } })).toEqual([[own], toEnd(4, 5)]);
    expect(await wal({ backups: { all: true }, walToEnd: "each" })).toEqual([toEnd(1, 8), toEnd(4, 5)]);
  });

  test("reads a segment once, however many backups need it, and tells its damage with each", async () => {
    const store = await repository();
    await change(store, walKey(segment(6)), flipped(100));
    const counting = new FaultStore(store);
    const { report } = await verify(counting, { backups: { all: true }, walToEnd: "each" });
    expect(counting.calls.filter((call) => call === `open ${walKey(segment(6))}`)).toHaveLength(1);
    expect(report.backups.map(({ findings }) => findings.map(({ key }) => key))).toEqual([
      [walKey(segment(6))],
      [walKey(segment(6))],
    ]);
  });

  test("changes nothing", async () => {
    const counting = new FaultStore(await repository());
    await verify(counting, { backups: { all: true }, walToEnd: "each" });
    expect(counting.calls.filter((call) => !/^(get|head|list|listLevel|open) /.test(call))).toEqual([]);
  });

  test("tells how far it is, and how much there is to read", async () => {
    const [parts, wal] = [2_583_195, 2 ** 20];
    expect((await verify(await repository())).shown).toEqual([
      "read 0 of 0",
      `parts: read ${parts} of ${parts}`,
      `WAL: read ${8 * wal} of ${8 * wal}`,
    ]);
    // What the first backup has had read is not read again.
    expect((await verify(await repository(), { backups: { all: true }, walToEnd: "each" })).shown).toEqual([
      "read 0 of 0",
      `backup 1 of 2, parts: read ${parts} of ${parts}`,
      `backup 1 of 2, WAL: read ${11 * wal} of ${11 * wal}`,
      `backup 2 of 2, parts: read ${parts} of ${parts}`,
      "backup 2 of 2, WAL: read 0 of 0",
    ]);
  });
});

async function storedBytes(store: MemoryObjectStore, name: string): Promise<number> {
  const sizes = await Promise.all(PARTS.map(async (part) => (await bodyOf(store, partKey(name, part))).byteLength));
  return sizes.reduce((sum, size) => sum + size, 0);
}

type Damage = (store: MemoryObjectStore) => Promise<void>;
const [ONE, TWO, CONTROL] = PARTS.map((part) => partKey(NEW, part)) as [string, string, string];

const SENTINEL_DIFFERS = `${KEYS.sentinel}: the parts are not those that the sentinel tells of`;
const contentOf = async (store: MemoryObjectStore, key: string) =>
  decodeContent(await bodyOf(store, key), zstd, ENOUGH);

/** What is done to the repository, and every finding that it must give. */
const DAMAGES: readonly (readonly [what: string, damage: Damage, findings: readonly string[]])[] = [
  ["a part that is missing", (store) => store.delete([TWO]), [`${TWO}: the part is missing`]],
  [
    "a part that is cut off",
    (store) => change(store, ONE, (body) => body.slice(0, -1)),
    [`${ONE}: the part is damaged: the object is cut off`],
  ],
  [
    "a part that is cut off between frames",
    async (store) => store.replace(ONE, await encodeContent((await contentOf(store, ONE)).subarray(0, 2 ** 21), zstd)),
    [`${ONE}: the part is damaged: the tar archive is damaged`],
  ],
  [
    "a part that is cut off between files",
    async (store) =>
      store.replace(TWO, await encodeContent((await contentOf(store, TWO)).subarray(0, 512 + 70_144), zstd)),
    [`${KEYS.manifest}: backup "${NEW}" is incomplete`, `${TWO}: "/PG_VERSION" is not in the part`, SENTINEL_DIFFERS],
  ],
  [
    "a part that is empty",
    (store) => change(store, ONE, cutTo(0)),
    [`${ONE}: the part is damaged: the object is empty`],
  ],
  ["a part with a flipped bit", (store) => change(store, ONE, flipped(1000)), [`${ONE}: the part is damaged`]],
  [
    "a part of another backup",
    async (store) => store.replace(TWO, await bodyOf(store, partKey(OLD, PARTS[1]))),
    [`${TWO}: "base/1/3" is not what was backed up`],
  ],
  [
    "two parts that changed places",
    async (store) => {
      const [one, two] = [await bodyOf(store, ONE), await bodyOf(store, TWO)];
      await store.replace(ONE, two);
      await store.replace(TWO, one);
    },
    [
      `${ONE}: "/base/1/3" is in the part, and files_metadata.json does not list it there`,
      `${ONE}: "/PG_VERSION" is in the part, and files_metadata.json does not list it there`,
      `${ONE}: "/base/1/4" is in the part, and files_metadata.json does not list it there`,
      `${ONE}: "/base/1/1" is not in the part`,
      `${TWO}: "/base/1/1" is in the part, and files_metadata.json does not list it there`,
      `${TWO}: "/base/1/2" is in the part, and files_metadata.json does not list it there`,
      `${TWO}: "/base/1/3" is not in the part`,
    ],
  ],
  [
    "one part too many",
    async (store) => void (await store.putIfAbsent(partKey(NEW, "part_009.tar.zst"), await bodyOf(store, ONE))),
    [`${partKey(NEW, "part_009.tar.zst")}: the part belongs to no file of the backup`, SENTINEL_DIFFERS],
  ],
  [
    "a manifest that is damaged",
    (store) => change(store, KEYS.manifest, flipped(50)),
    [`${KEYS.manifest}: the manifest of backup "${NEW}" cannot be used`],
  ],
  [
    "another backup's manifest",
    async (store) => store.replace(KEYS.manifest, await bodyOf(store, backupKeys(OLD).manifest)),
    [`${KEYS.manifest}: the manifest of backup "${NEW}" cannot be used`],
  ],
  [
    "a manifest that is missing",
    (store) => store.delete([KEYS.manifest]),
    [`${KEYS.manifest}: the manifest of backup "${NEW}" cannot be used`],
  ],
  [
    "files_metadata.json missing",
    (store) => store.delete([KEYS.filesMetadata]),
    [`${KEYS.filesMetadata}: backup "${NEW}" is incomplete`],
  ],
  [
    "a sentinel that is no JSON",
    (store) => change(store, KEYS.sentinel, cutTo(40)),
    [`${KEYS.sentinel}: the newest backup, "${NEW}", cannot be read`],
  ],
  [
    "a sentinel under another name",
    async (store) => {
      await store.putIfAbsent(`${KEYS.sentinel}~`, await bodyOf(store, KEYS.sentinel));
      await store.delete([KEYS.sentinel]);
    },
    [`${KEYS.sentinel}~: the newest backup, "${NEW}_backup_stop_sentinel.json~", cannot be read`],
  ],
  [
    "metadata of a newer version",
    (store) =>
      change(store, KEYS.sentinel, (body) =>
        Buffer.from(Buffer.from(body).toString().replace('"FormatVersion":1', '"FormatVersion":2')),
      ),
    [`${KEYS.sentinel}: the newest backup, "${NEW}", cannot be read`],
  ],
  [
    "a segment with a flipped bit",
    (store) => change(store, walKey(segment(5)), flipped(100)),
    [`${walKey(segment(5))}: archived "${segment(5)}" is damaged`],
  ],
  [
    "a segment that is cut off",
    (store) => change(store, walKey(segment(9, 2)), (body) => body.slice(0, -3)),
    [`${walKey(segment(9, 2))}: archived "${segment(9, 2)}" is damaged`],
  ],
  [
    "a segment under another's name",
    async (store) => store.replace(walKey(segment(6)), await bodyOf(store, walKey(segment(5)))),
    [`${walKey(segment(6))}: archived "${segment(6)}" is damaged`],
  ],
  [
    "a segment of another cluster",
    async (store) => {
      await store.delete([walKey(segment(4))]);
      await putWal(store, zstd, [segment(4)], { systemIdentifier: SYSTEM_IDENTIFIER + 1n });
    },
    [`${walKey(segment(4))}: archived "${segment(4)}" is of another cluster`],
  ],
  [
    "the first segment missing",
    (store) => store.delete([walKey(segment(4))]),
    [`${walKey(segment(4))}: "${segment(4)}" is missing`],
  ],
  [
    "a gap of two segments before the timelines part",
    (store) => store.delete([walKey(segment(5)), walKey(segment(6))]),
    [`${walKey(segment(5))}: "${segment(5)}" … "${segment(6)}" are missing, 2 segments`],
  ],
  [
    "the end of the old timeline missing, before the new one begins",
    (store) => store.delete([6, 7, 8].map((number) => walKey(segment(number)))),
    [`${walKey(segment(6))}: "${segment(6)}" is missing`],
  ],
  [
    "the first segment of the new timeline missing",
    (store) => store.delete([walKey(segment(7, 2))]),
    [`${walKey(segment(7, 2))}: "${segment(7, 2)}" is missing`],
  ],
  [
    "a history that is missing",
    (store) => store.delete([walKey("00000002.history")]),
    [`${walKey("00000002.history")}: "00000002.history" is missing`],
  ],
  [
    "a history that is damaged",
    (store) => change(store, walKey("00000002.history"), flipped(20)),
    [`${walKey("00000002.history")}: archived "00000002.history" is damaged`],
  ],
];

describe("verifyBackups() finds", () => {
  test.each(DAMAGES)("%s", async (_, damage, expected) => {
    const store = await repository();
    await damage(store);
    const { report } = await verify(store);
    const findings = found(report);
    expect(findings).toHaveLength(expected.length);
    for (const [n, finding] of findings.entries()) expect(finding).toStartWith(expected[n] ?? "?");
    expect(() => checkReport(report)).toThrow(IntegrityError);
    for (const { url, key } of report.backups.flatMap((backup) => backup.findings)) {
      expect(formatVerifyText(report)).toContain(`      ${url}: `);
      expect(url).toBe(`memory://test/${key}`);
    }
    expect(JSON.parse(formatVerifyJson(report))).toMatchObject({ verdict: "bad" });
  });

  test("everything that is wrong, in one run", async () => {
    const store = await repository();
    await store.delete([TWO, walKey(segment(5)), partKey(OLD, PARTS[0])]);
    await change(store, CONTROL, flipped(30));
    await change(store, walKey(segment(8, 2)), flipped(30));
    const { report } = await verify(store, { backups: { all: true } });
    expect(report.backups.map(({ findings }) => findings.map(({ key }) => key))).toEqual([
      [partKey(OLD, PARTS[0])],
      [TWO, CONTROL, walKey(segment(5)), walKey(segment(8, 2))],
    ]);
    expect(() => checkReport(report)).toThrow("2 of 2 backups are not good");
  });

  test("a flipped bit wherever it is in a part or a segment", async () => {
    const seed = 7;
    const { below } = random(seed);
    const store = await repository();
    for (const key of [ONE, TWO, CONTROL, walKey(segment(4)), walKey(segment(8, 2))]) {
      const body = await bodyOf(store, key);
      for (let turn = 0; turn < 6; turn++) {
        const at = below(body.byteLength);
        await change(store, key, flipped(at));
        expect(found((await verify(store)).report)[0], `byte ${at}, seed ${seed}`).toStartWith(`${key}: `);
        await change(store, key, () => body);
      }
    }
  }, 30_000);
});

describe("verifyBackups() does not take for damage", () => {
  test("a gap that closes while it looks", async () => {
    const store = await repository();
    const body = await bodyOf(store, walKey(segment(8, 2)));
    await store.delete([walKey(segment(8, 2))]);
    const late = new FaultStore(store);
    const open = late.open.bind(late);
    let looks = 0;
    late.open = async (key) => {
      if (key === walKey(segment(8, 2)) && ++looks === 3) await store.putIfAbsent(key, body);
      return await open(key);
    };
    expect(found((await verify(late)).report)).toEqual([]);
  });

  test("a timeline that left before the backup ended, but says that recovery cannot follow it", async () => {
    const store = await repository();
    await putWal(store, zstd, ["00000003.history=1\t0/410000\tno recovery target", segment(4, 3)]);
    const [backup] = (await verify(store)).report.backups;
    expect(backup?.findings).toEqual([]);
    expect(backup?.notes).toEqual([expect.stringContaining("cannot follow timeline 3")]);
  });

  test("segments before the backup, of timelines before it, and objects that are no WAL", async () => {
    const store = await repository();
    await store.delete([walKey(segment(1)), walKey(segment(3))]);
    await store.putIfAbsent("wal_005/notes.txt", Buffer.from("mine"));
    expect(found((await verify(store)).report)).toEqual([]);
  });

  test("a third timeline, from the second or from the first by way of none of the second's segments", async () => {
    const store = await repository();
    await putWal(store, zstd, ["00000003.history=1\t0/750000\tx\n2\t0/980000\ty", ...segments(9, 10, 3)]);
    await putWal(store, zstd, ["00000004.history=1\t0/800000\tz", ...segments(8, 8, 4)]);
    const { report } = await verify(store);
    expect(found(report)).toEqual([]);
    expect(report.backups[0]?.wal.map(({ timeline, first }) => [timeline, first])).toEqual([
      [1, segment(4)],
      [2, segment(7, 2)],
      [3, segment(9, 3)],
      [4, segment(8, 4)],
    ]);
  });

  test("what retention deletes while it reads", async () => {
    const store = await repository();
    const late = new FaultStore(store);
    const open = late.open.bind(late);
    late.open = async (key) => {
      await store.delete([KEYS.sentinel, ONE, TWO]);
      return await open(key);
    };
    const { report } = await verify(late);
    expect(report.backups).toMatchObject([{ findings: [], notes: ["It was deleted while it was read."] }]);
  });
});

describe("verifyBackups() of a backup that WAL-G made", () => {
  const name = "base_0000000200000016000000BA";
  const { sentinel, filesMetadata } = backupKeys(name);
  const [part, control] = [partKey(name, "part_001.tar.zst"), partKey(name, "pg_control.tar.zst")];

  /** As WAL-G 3.0 writes it: the directory itself is a member, and the part of pg_control is named nowhere. */
  async function ofWalG(): Promise<MemoryObjectStore> {
    const store = emptyStore();
    await store.putIfAbsent(sentinel, readGolden("test/golden/wal-g-3.0-sentinel.json"));
    await store.putIfAbsent(filesMetadata, Buffer.from('{"TarFileSets":{"part_001.tar.zst":["/PG_VERSION"]}}'));
    await store.putIfAbsent(part, await tarOf(["/", "/base/", "/PG_VERSION"]));
    await store.putIfAbsent(control, await tarOf(["/global/pg_control"]));
    return store;
  }

  async function tarOf(names: readonly string[]): Promise<Uint8Array> {
    const pieces: Uint8Array[] = [];
    const tar = new TarWriter(async (bytes) => void pieces.push(bytes.slice()));
    for (const each of names) {
      const type = each.endsWith("/") ? ("directory" as const) : ("file" as const);
      const content = type === "file" ? [Buffer.from("18")] : [];
      const owner = { uid: 0, gid: 0, mode: 0o700, modifiedAt: new Date(0) };
      await tar.add({ ...owner, name: each, type, sizeBytes: content.length * 2 }, content);
    }
    await tar.end();
    return await encodeContent(Buffer.concat(pieces), zstd);
  }

  const ofItsParts = (report: VerifyReport) => found(report).filter((finding) => !finding.startsWith("wal_005/"));

  test("reads all of it, and says what it cannot know", async () => {
    const { report } = await verify(await ofWalG(), { backups: name });
    expect(ofItsParts(report)).toEqual([]);
    expect(report.backups).toMatchObject([{ parts: { depth: "part", parts: 2, files: 2 } }]);
    expect(report.backups[0]?.notes).toEqual([expect.stringContaining("kept no checksums of its files")]);
    expect(formatVerifyText(report)).toContain("without checksums to compare with");
  });

  test("misses pg_control, and finds a part that is missing, damaged, or in another tool's format", async () => {
    const store = await ofWalG();
    await store.delete([control]);
    const parts = async () => ofItsParts((await verify(store, { backups: name })).report);
    expect(await parts()).toEqual([`${sentinel}: the backup has no global/pg_control`]);
    await change(store, part, (body) => body.slice(0, -9));
    expect(await parts()).toEqual([expect.stringContaining(`${part}: the part is damaged`)]);
    await store.delete([part]);
    expect(await parts()).toEqual([`${part}: the part is missing`]);
    const lz4 = partKey(name, "pg_control.tar.lz4");
    await store.putIfAbsent(lz4, Buffer.from("lz4"));
    expect(await parts()).toContain(`${lz4}: the part is in a format that is not supported`);
  });
});

test.each([["LATEST"], [NEW], [{ all: true as const }]])("verifyBackups() of %j that is not there", async (backups) => {
  await expect(verify(new MemoryObjectStore(), { backups })).rejects.toThrow(NotFoundError);
});

test("verifyBackups() ends with the store's own failure, wherever it comes, and never with a verdict", async () => {
  const store = await repository();
  const counting = new FaultStore(store);
  await verify(counting);
  for (let atCall = 1; atCall <= counting.calls.length; atCall++) {
    for (const error of [new StorageError("time-out"), new AccessError("denied")]) {
      const outcome = await verify(new FaultStore(store, { atCall, when: "cut", error })).then(
        ({ report }) => {
          expect(JSON.parse(formatVerifyJson(report))).toMatchObject({
            verdict: "unknown",
            stopped_by: expect.any(String),
          });
          return report.stoppedBy;
        },
        (thrown: unknown) => thrown,
      );
      expect(outcome, counting.calls[atCall - 1]).toBe(error);
    }
  }
});

test("formatVerifyText() gives a line to each backup", async () => {
  const { report } = await verify(await repository(), { backups: { all: true } });
  expect(formatVerifyText(report)).toBe(
    [
      `good  ${OLD}  6 files, 2.5 MiB in 3 parts, compared with the manifest; WAL to the stop of the backup: 2 segments, ${segment(1)} … ${segment(2)}; 0.0 s\n`,
      `good  ${NEW}  6 files, 2.5 MiB in 3 parts, compared with the manifest; WAL to the end of the archive: 5 segments, ${segment(4)} … ${segment(8)}, and 3 segments, ${segment(7, 2)} … ${segment(9, 2)}; 0.0 s\n`,
    ].join(""),
  );
});

test("what one list alone has is told by its name, which gives no lines of its own and nothing for a terminal to obey", async () => {
  const store = await repository();
  const list = store.listLevel.bind(store);
  const name = `base_\ngood  ${OLD}\u001b[2K`;
  const changed = { key: `basebackups_005/${name}`, sizeBytes: 1, lastModified: new Date(1e6) };
  store.listLevel = async (prefix) => {
    store.listLevel = list;
    const level = await list(prefix);
    return { ...level, objects: [...level.objects, changed] };
  };
  const { report } = await verify(store);
  const shown = `base_\ufffdgood  ${OLD}\ufffd[2K`;
  const url = `memory://test/basebackups_005/${shown}`;
  expect(formatVerifyText(report).split("\n")).toEqual([
    `bad   ${shown}  not read; 0.0 s`,
    expect.stringContaining(`      ${url}: the newest backup, "${shown}", cannot be read. ${url} looks like`),
    "",
  ]);
  expect(JSON.parse(formatVerifyJson(report)).backups[0].findings[0].key).toBe(changed.key);
});

test("formatVerifyText() says so where no WAL was read, as of a backup that holds its own", async () => {
  const { report } = await verify(await repository(), { backups: { all: true } });
  const backups = report.backups.map((backup) => ({ ...backup, wal: [] }));
  expect(formatVerifyText({ ...report, backups })).toContain("WAL to the end of the archive: none; ");
});
