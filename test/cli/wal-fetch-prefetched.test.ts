/** wal-fetch and the prefetcher of the compiled binary beside a data directory without a server: what a hit needs, and what a disk keeps. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { chmod, mkdir, readdir } from "node:fs/promises";
import { join } from "node:path";
import { prefetchDirectoryOf } from "../../src/cli/prefetcher.ts";
import type { Environment } from "../../src/config/envdir.ts";
import { loadSettings } from "../../src/config/settings.ts";
import { crc32c } from "../../src/postgres/crc32c.ts";
import { compressed, onSmallDisk, Site } from "../support/site.ts";
import { MiB, piecesOf, SYSTEM_IDENTIFIER, walContent } from "../support/wal-content.ts";
import { controlFile } from "../unit/postgres/control-file.ts";

const DESTINATION = "pg_wal/RECOVERYXLOG";
/** The tests of other things have it switched off. */
const ON = { WALB_PREFETCH: "8" };
const name = (n: number) => `0000000100000000${n.toString(16).toUpperCase().padStart(8, "0")}`;

/** A cluster with segments of this size. */
function controlFileOf(segmentBytes: number): Uint8Array {
  const bytes = controlFile();
  bytes.writeUInt32LE(segmentBytes, 228);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, 288)), 288);
  return bytes;
}

async function recoveringSite(segmentBytes = 16 * MiB): Promise<Site> {
  const site = await Site.create();
  await site.write("global/pg_control", controlFileOf(segmentBytes));
  await site.write("recovery.signal");
  return site;
}

async function prefetch(site: Site, env: Environment, segment: string, sizeBytes = MiB): Promise<Uint8Array> {
  const destination = join(site.data, DESTINATION);
  const directory = prefetchDirectoryOf(destination, loadSettings({}, env), SYSTEM_IDENTIFIER);
  directory.create(name(1));
  const content = walContent(segment, { sizeBytes });
  await directory.put(segment, piecesOf(content));
  // An alive one: no other is started.
  await Bun.write(join(directory.path, "prefetcher"), String(process.pid));
  return content;
}

describe("a hit", () => {
  const UNREACHABLE = {
    ...ON,
    WALB_S3_PREFIX: "s3://bucket/path",
    AWS_ENDPOINT_URL: "http://127.0.0.1:1",
    AWS_REGION: "us-east-1",
    AWS_ACCESS_KEY_ID: "key",
    AWS_SECRET_ACCESS_KEY: "secret",
  };

  test("needs neither the store nor a temporary directory", async () => {
    await using site = await recoveringSite();
    const content = await prefetch(site, UNREACHABLE, name(2), 16 * MiB);
    const temporary = join(site.directory, "tmp");
    await chmod(temporary, 0o555);
    const env = { WALB_FILE_PREFIX: undefined, ...UNREACHABLE, TMPDIR: temporary };
    const { exitCode, stderr } = await site.walb(["wal-fetch", name(2), DESTINATION], { env });
    expect(stderr).toBe(`wal-b: INFO: restored "${name(2)}" from the archive, prefetched\n`);
    expect(exitCode).toBe(0);
    expect(Buffer.compare(await Bun.file(join(site.data, DESTINATION)).bytes(), content)).toBe(0);
    expect(await readdir(temporary)).toEqual([]);
  });

  test("maps neither the AWS SDK's nor the addon's files, and opens no socket", async () => {
    await using site = await recoveringSite();
    await prefetch(site, UNREACHABLE, name(2));
    // Stopped where it has done all but the telling: nobody reads the pipe it tells through.
    const script = `
      mkfifo told; exec 3<>told; head -c 65536 /dev/zero >&3
      "$WALB" wal-fetch ${name(2)} ${DESTINATION} >/dev/null 2>&3 3>&- &
      for i in $(seq 100); do [ -e ${DESTINATION} ] && break; sleep 0.05; done; sleep 0.3
      ls -l /proc/$!/fd /proc/$!/map_files 2>/dev/null; kill -KILL $!`;
    const env = { WALB_FILE_PREFIX: undefined, ...UNREACHABLE };
    const { stdout } = await site.shell(script, { env });
    expect(stdout).toContain("wal-b");
    expect(stdout).not.toMatch(/\.node\b|socket:/);
  });

  test("calls nothing so often that it is compiled, on threads that would be started for it", async () => {
    await using site = await recoveringSite();
    await prefetch(site, UNREACHABLE, name(2), 16 * MiB);
    const env = { WALB_FILE_PREFIX: undefined, ...UNREACHABLE, BUN_JSC_reportCompileTimes: "1" };
    const { stdout, stderr } = await site.walb(["wal-fetch", name(2), DESTINATION], { env });
    expect(stderr).toContain("prefetched");
    const compiled = (output: { readonly stdout: string; readonly stderr: string }) =>
      `${output.stdout}\n${output.stderr}`.split("\n").filter((line) => line.startsWith("Optimized ")).length;
    // One is Bun's own, in loading node:fs.
    expect(compiled({ stdout, stderr })).toBeLessThan(3);
    // More than that is told where there is more.
    expect(compiled(await site.walb(["--help"], { env }))).toBeGreaterThan(10);
  });
});

test("another repository's segment is not taken, and the right one is fetched", async () => {
  await using site = await recoveringSite();
  await prefetch(site, { WALB_FILE_PREFIX: "/elsewhere" }, name(2));
  await site.store(`${name(2)}.zst`, compressed(walContent(name(2), { fill: 9 })));
  const { exitCode, stderr } = await site.walb(["wal-fetch", name(2), DESTINATION], { env: ON });
  expect(exitCode).toBe(0);
  expect(stderr).toBe(
    `wal-b: WARNING: discarded "${name(2)}": it was damaged after it was prefetched\nwal-b: INFO: restored "${name(2)}" from the archive\n`,
  );
  expect((await Bun.file(join(site.data, DESTINATION)).bytes()).at(-1)).toBe(9);
});

test("the prefetcher gets wal-fetch's own number of segments, and ends when the server does", async () => {
  await using site = await recoveringSite();
  for (let n = 1; n <= 12; n++)
    await site.store(`${name(n)}.zst`, compressed(walContent(name(n), { sizeBytes: 16 * MiB })));
  const script = `
    printf '%s\\n' $$ "$PWD" 1700000000 5432 /tmp '' '1 1' 'ready   ' > postmaster.pid
    "$WALB" wal-fetch -p 3 ${name(1)} ${DESTINATION}
    for i in $(seq 200); do [ $(ls pg_wal/pgsql_tmp_wal-b | grep -c '\\.[0-9a-f]\\{16\\}$') = 3 ] && ! ls pg_wal/pgsql_tmp_wal-b | grep -q loading && break; sleep 0.05; done; sleep 0.5
    ls pg_wal/pgsql_tmp_wal-b | cut -c1-24`;
  const { stdout } = await site.shell(script);
  expect(stdout.trim().split("\n").sort()).toEqual([name(2), name(3), name(4), "position", "prefetcher"]);
  for (let waits = 0; existsSync(join(site.data, "pg_wal/pgsql_tmp_wal-b")) && waits < 100; waits++)
    await Bun.sleep(50);
  expect((await readdir(join(site.data, "pg_wal"))).sort()).toEqual(["RECOVERYXLOG", "archive_status"]);
});

test("a disk with too little room is not filled, and recovery goes on", async () => {
  await using site = await recoveringSite(MiB);
  for (let n = 1; n <= 4; n++) await site.store(`${name(n)}.zst`, compressed(walContent(name(n))));
  const disk = join(site.directory, "disk");
  await mkdir(disk);
  // 4 MiB: room for 2 segments and as much again when it is empty, for 1 when one is there; never for 8.
  const script = `
    server() { printf '%s\\n' $$ "$PWD" 1700000000 5432 /tmp '' '1 1' 'ready   ' > postmaster.pid; }
    export WALB_PREFETCH_DIR="$DISK"
    for count in 8 1; do
      server; "$WALB" wal-fetch -p $count ${name(1)} ${DESTINATION}
      [ $count = 8 ] && sleep 2 || for i in $(seq 100); do [ "$(find "$DISK" -name '*.????????????????')" ] && break; sleep 0.1; done
      echo "$count: $(find "$DISK" -name '*.????????????????' | wc -l)"
      rm postmaster.pid; for i in $(seq 100); do [ -z "$(ls "$DISK" | grep wal-b)" ] && break; sleep 0.05; done
    done
    server; head -c 5M /dev/zero > "$DISK/full" 2>/dev/null
    "$WALB" wal-fetch -p 8 ${name(2)} ${DESTINATION}; echo "full: $?"`;
  const { stdout, stderr } = await onSmallDisk(site, disk, script);
  expect(stdout.trim().split("\n")).toEqual(["8: 0", "1: 1", "full: 0"]);
  expect(stderr).toContain(`restored "${name(2)}" from the archive`);
});
