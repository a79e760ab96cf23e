/** What the store is asked for, counted at a real one: one PUT for a pushed segment, one GET for a fetched one, and nothing else. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import {
  type ArchivedHistory,
  archiveSegments,
  PREFETCHED,
  restoreBeside,
  restoredBy,
  rowsOf,
  SEGMENTS,
  startRecovery,
  untilFull,
  untilNothingIsLeft,
  untilPromoted,
  writeSegments,
} from "../support/prefetching.ts";
import { type RecordingProxy, startRecordingProxy } from "../support/recording-proxy.ts";
import { s3Repository } from "../support/repositories.ts";
import { anyS3Server } from "../support/s3-server.ts";

let s3: Awaited<ReturnType<typeof anyS3Server>>;
let proxy: RecordingProxy;
let history: ArchivedHistory;
beforeAll(async () => {
  s3 = await anyS3Server();
  proxy = await startRecordingProxy(s3.server.endpoint);
  const repository = await s3Repository({ ...s3.server, endpoint: proxy.url });
  history = await archiveSegments(18, async () => repository.hostEnv);
});
afterAll(async () => {
  await history?.[Symbol.asyncDispose]();
  await proxy?.[Symbol.asyncDispose]();
  await s3?.stop();
});

/** "GET 0000…" and so on, of the WAL half of the repository. */
const requestsFor = (requests: readonly string[]) =>
  requests.map((request) => request.replace(/^(\S+) .*\/wal_005\/(\w+)(\.history)?\.zst$/, "$1 $2$3"));

test("one PUT for each segment that is pushed", async () => {
  proxy.takeRequests();
  const segments = await writeSegments(history.primary, 6, 900_000);
  expect(requestsFor(proxy.takeRequests()).sort()).toEqual(segments.map((name) => `PUT ${name}`));
});

test("one GET for each segment that recovery fetches, prefetched or not", async () => {
  const expected = await rowsOf(history.primary);
  const data = await restoreBeside(history, "counted");
  proxy.takeRequests();
  const { server } = await startRecovery(data, history);
  await using _ = server;
  await untilPromoted(server);
  await untilNothingIsLeft(data);
  expect(await rowsOf(server)).toBe(expected);

  const { prefetched, direct } = await restoredBy(server);
  expect(prefetched.length).toBeGreaterThan(SEGMENTS / 2);
  const requests = requestsFor(proxy.takeRequests());
  const restored = [...prefetched, ...direct].sort();
  // PostgreSQL asks for the last one again when it knows that it was the last, and gets it again.
  const [last = ""] = restored.slice(-1);
  expect(restored).toEqual([...new Set(restored), last].sort());
  for (const name of new Set(restored))
    expect([name, requests.filter((request) => request === `GET ${name}`).length]).toEqual([
      name,
      name === last ? 2 : 1,
    ]);

  // The end: what PostgreSQL itself asks for in vain, and what the prefetcher had asked for at once.
  const others = requests.filter((request) => !restored.some((name) => request === `GET ${name}`));
  const behind = others.filter((request) => /^GET [0-9A-F]{24}$/.test(request));
  expect(new Set(behind).size).toBeLessThanOrEqual(4);
  expect(others.filter((request) => request.endsWith("?list")).length).toBeLessThanOrEqual(14);
  expect(others.filter((request) => !/^GET \S+(\.history|\?list)?$/.test(request))).toEqual([]);
});

test("nothing is asked for by a prefetcher that waits: neither in a pause nor at the archive's end", async () => {
  const data = await restoreBeside(history, "waiting");
  const { server, reached, open } = await startRecovery(data, { ...history, gateAt: history.segments[4] });
  await using _ = server;
  await reached();
  await untilFull(join(data, "pg_wal", PREFETCHED));
  proxy.takeRequests();
  await Bun.sleep(3_000);
  expect(proxy.takeRequests()).toEqual([]);
  await open();
  await untilPromoted(server);
  await untilNothingIsLeft(data);
});
