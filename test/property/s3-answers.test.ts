/** Lists and answers of S3, through the SDK's own parser: entries that can be, or a failure of the store. */
import { afterAll, beforeAll, expect } from "bun:test";
import { AccessError, IntegrityError, NotFoundError, StorageError, UsageError } from "../../src/errors.ts";
import { readCatalog } from "../../src/repository/backup-catalog.ts";
import { backupOfContent, backupOfSentinel, nameOfLookalike } from "../../src/repository/keys.ts";
import { readLeftovers } from "../../src/retention/inventory.ts";
import type { ObjectStore } from "../../src/storage/object-store.ts";
import { openS3Store } from "../../src/storage/s3.ts";
import { anyText, damagedBytes, damagedText } from "../support/damage.ts";
import { recordingLog } from "../support/expect-log.ts";
import { MemoryObjectStore } from "../support/memory-object-store.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";
import { answer, type ScriptedS3, startScriptedS3 } from "../support/scripted-s3.ts";

const DOCUMENTED = [StorageError, AccessError, NotFoundError, IntegrityError, UsageError];

let server: ScriptedS3;
let store: ObjectStore & AsyncDisposable;
let now = 0;
let respond: () => string;

beforeAll(async () => {
  server = await startScriptedS3(() => respond());
  store = await openS3Store({
    ...{ bucket: "bucket", prefix: "main", endpoint: server.endpoint, region: "us-east-1" },
    ...{ accessKeyId: "key", secretAccessKey: "secret", partSizeBytes: 5 * 2 ** 20 },
    ...{ retryDeadlineMs: 1000, connectTimeoutMs: 5000, idleTimeoutMs: 5000 },
    signal: new AbortController().signal,
    log: recordingLog().log,
    now: () => now,
    random: () => 0.5,
    // No time passes but the store's own.
    delay: async (ms) => {
      now += ms;
    },
  });
});

afterAll(async () => {
  await store[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

/** Scripts answer in bytes, one for a letter. */
function respondWith(status: number, body: string, type = "application/xml"): void {
  const bytes = Buffer.from(body);
  const whole = answer(status, bytes.toString("latin1"), {
    "content-type": type,
    "content-length": String(bytes.byteLength),
  });
  respond = () => whole;
}

const xml = (text: string) => text.replace(/[\p{Cc}&<>"']/gu, (character) => `&#${character.charCodeAt(0)};`);

interface Listed {
  readonly key: string;
  readonly sizeBytes: number;
}

const listed = (random: Random): Listed[] =>
  [
    ...new Set(
      random.list(
        8,
        () =>
          `a/${anyText(random)
            .replace(/\p{Cc}/gu, "")
            .toWellFormed()}x`,
      ),
    ),
  ]
    .filter((key) => key.split("/").every((part) => part !== "" && part !== "." && part !== ".."))
    .sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
    .map((key) => ({ key, sizeBytes: Number(random.bigint(random.pick([3, 40]))) }));

const listXml = (entries: readonly Listed[]) =>
  `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name><IsTruncated>false</IsTruncated>${entries
    .map(
      ({ key, sizeBytes }) =>
        `<Contents><Key>${xml(`main/${key}`)}</Key><LastModified>2026-11-23T14:42:40.000Z</LastModified><ETag>"e"</ETag><Size>${sizeBytes}</Size><StorageClass>STANDARD</StorageClass></Contents>`,
    )
    .join("")}</ListBucketResult>`;

const uploadsXml = (entries: readonly Listed[]) =>
  `<?xml version="1.0" encoding="UTF-8"?><ListMultipartUploadsResult><Bucket>bucket</Bucket><IsTruncated>false</IsTruncated>${entries
    .map(
      ({ key }) =>
        `<Upload><Key>${xml(`main/${key}`)}</Key><UploadId>u</UploadId><Initiated>2026-11-23T14:42:40.000Z</Initiated></Upload>`,
    )
    .join("")}</ListMultipartUploadsResult>`;

const collect = async <Item>(items: AsyncIterable<Item>): Promise<Item[]> => {
  const found: Item[] = [];
  for await (const item of items) found.push(item);
  return found;
};

property(
  "a list reads as S3 wrote it; a damaged one has entries that can be, or is a failure",
  async (random) => {
    const entries = listed(random);
    respondWith(200, listXml(entries));
    const read = await collect(store.list("a/"));
    expect(read.map(({ key, sizeBytes }) => ({ key, sizeBytes }))).toEqual(entries);

    const damagedBodies = [listXml(entries), uploadsXml(entries)].map((body) =>
      random.once(2)
        ? damagedText(body, random)
        : Buffer.from(damagedBytes(Buffer.from(body), random)).toString("latin1"),
    );
    const [list = "", uploads = ""] = damagedBodies;
    respondWith(200, list);
    for (const { key, sizeBytes, lastModified } of (await answerOf(DOCUMENTED, () => collect(store.list("a/")))) ??
      []) {
      expect(key.startsWith("a/")).toBe(true);
      expect(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0).toBe(true);
      expect(Number.isNaN(lastModified.getTime())).toBe(false);
    }
    await answerOf(DOCUMENTED, () => store.listLevel("a/"));
    respondWith(200, uploads);
    for (const upload of (await answerOf(DOCUMENTED, () => collect(store.listUnfinishedUploads("")))) ?? []) {
      expect(typeof upload.key === "string" && typeof upload.uploadId === "string").toBe(true);
      expect(Number.isNaN(upload.initiated.getTime())).toBe(false);
    }
  },
  { oneOf: 4 },
);

property(
  "any answer is content or a failure, and only the store's own word says that there is no such object",
  async (random) => {
    const status = random.pick([200, 200, 206, 204, 301, 307, 400, 403, 404, 404, 409, 412, 416, 429, 500, 503, 599]);
    const error = `<?xml version="1.0"?><Error><Code>${random.pick(["NoSuchKey", "NoSuchBucket", "AccessDenied", "SlowDown", "InternalError", "RequestTimeTooSkewed"])}</Code><Message>m</Message></Error>`;
    const body = random.once(3) ? error : damagedText(error, random);
    const type = random.pick(["application/xml", "text/html", ""]);
    respondWith(status, body, type);
    let failure: unknown;
    const read = await answerOf(DOCUMENTED, async () => {
      try {
        return (await store.get("a/x", 1000)).body;
      } catch (error) {
        failure = error;
        throw error;
      }
    });
    // What comes is checked by who reads it.
    if (read) expect(status).toBe(200);
    if (failure instanceof NotFoundError) {
      expect(status).toBe(404);
      expect(body).toContain("NoSuchKey");
    }
    await answerOf(DOCUMENTED, () => store.putIfAbsent("a/x", Buffer.from("x")));
    await answerOf(DOCUMENTED, () => store.delete(["a/x", "a/y"]));
  },
  { oneOf: 4 },
);

property("a catalogue from any keys has backups, and what cannot be read is told", async (random) => {
  const memory = new MemoryObjectStore();
  const usual = [
    "base_000000010000000000000004",
    "base_000000010000000000000004_D_000000010000000000000002",
    "base_000000010000000000000004_00000028",
  ];
  const name = () => random.pick([...usual, damagedText(random.pick(usual), random).replaceAll("/", "")]).slice(0, 200);
  for (const key of random.list(
    12,
    () =>
      `basebackups_005/${name()}${random.pick(["_backup_stop_sentinel.json", "/metadata.json", "/tar_partitions/part_001.tar.zst", ""])}`,
  )) {
    await answerOf([UsageError, RangeError, IntegrityError], () =>
      memory.putIfAbsent(key, Buffer.from(random.pick(["", "{}", "[]", "null", '{"LSN":1}']))),
    );
  }
  const { backups, unreadable } = await readCatalog(memory);
  expect(backups).toEqual([]);
  const { objects } = await memory.listLevel("basebackups_005/");
  expect(unreadable.length).toBe(objects.filter(({ key }) => backupOfSentinel(key) ?? nameOfLookalike(key)).length);
  const { backups: unfinished } = await readLeftovers(memory);
  for (const { keys, name: of } of unfinished)
    expect(keys.every((key) => backupOfContent(key)?.name === of)).toBe(true);
});
