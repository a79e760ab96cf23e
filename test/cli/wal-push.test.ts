/** wal-push of the compiled binary on a directory: every kind of file, the segments that wait, two at once, and ends before the end. */
import { describe, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { chmod, mkdir, readdir, unlink, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { ordinaryAccount } from "../support/account.ts";
import { freePort } from "../support/loopback.ts";
import { baseEnvironment } from "../support/run-program.ts";
import { s3Error, scriptedS3Environment, startScriptedS3 } from "../support/scripted-s3.ts";
import { onSmallDisk, Site } from "../support/site.ts";
import { historyContent, MiB, walContent } from "../support/wal-content.ts";

const NAMES = Array.from({ length: 9 }, (_, n) => `00000001000000000000000${n + 1}`);
const [A, B, C] = NAMES as [string, string, string];

const archivedNames = async (site: Site) => (await readdir(site.archive)).sort();
const same = (a: Uint8Array | undefined, b: Uint8Array) => a !== undefined && Buffer.compare(a, b) === 0;

describe("what PostgreSQL archives", () => {
  test.each([
    ["a segment", A, walContent(A)],
    ["a partial segment", `${A}.partial`, walContent(A)],
    ["a timeline history", "00000002.history", historyContent()],
    [
      "a backup history",
      `${A}.00000028.backup`,
      new TextEncoder().encode(`START WAL LOCATION: 0/100028 (file ${A})\n`),
    ],
    ["the first segment of a timeline, with the old one's header", "000000020000000000000001", walContent(A)],
    ["a segment of 16 MiB", B, walContent(B, { sizeBytes: 16 * MiB })],
  ])("%s: archived, and again with the same outcome, and never with other content", async (_, name, content) => {
    await using site = await Site.create();
    await site.write(`pg_wal/${name}`, content);
    const push = () => site.walb(["wal-push", `pg_wal/${name}`]);

    expect(await push()).toMatchObject({ exitCode: 0, stdout: "", stderr: `wal-b: INFO: archived "${name}"\n` });
    expect(await archivedNames(site)).toEqual([`${name}.zst`]);
    expect(same(await site.archived(name), content)).toBe(true);

    const before = await site.listing();
    const again = `wal-b: INFO: "${name}" was already archived with the same content\n`;
    expect(await push()).toMatchObject({ exitCode: 0, stdout: "", stderr: again });
    expect(await site.listing()).toEqual(before);

    const other = Uint8Array.from(content);
    other[other.length - 2] = (other[other.length - 2] ?? 0) ^ 1;
    await site.write(`pg_wal/${name}`, other);
    expect(await push()).toMatchObject({ exitCode: 65, stdout: "" });
    expect(same(await site.archived(name), content)).toBe(true);
  });

  test("an absolute path, as some archive_commands pass it", async () => {
    await using site = await Site.create();
    await site.segment(A);
    const path = join(site.data, "pg_wal", A);
    expect(await site.walb(["wal-push", path], { cwd: "/" })).toMatchObject({ exitCode: 0 });
    expect(await archivedNames(site)).toEqual([`${A}.zst`]);
  });

  test("a damaged segment at the archive's beginning does not stop the archiving of the next one", async () => {
    await using site = await Site.create();
    const damaged = await site.store(`${A}.zst`, new TextEncoder().encode("damaged"));
    const content = await site.segment(B);
    expect(await site.walb(["wal-push", `pg_wal/${B}`])).toMatchObject({ exitCode: 0 });
    expect(same(await site.archived(B), content)).toBe(true);
    expect(await Bun.file(damaged).text()).toBe("damaged");
    // The cluster that the archive belongs to is still found, by the next one in it.
    await site.segment(C, { systemIdentifier: 42n });
    const foreign = await site.walb(["wal-push", `pg_wal/${C}`], { env: { TMPDIR: site.directory } });
    expect(foreign.exitCode).toBe(65);
    expect(foreign.stderr).toContain(
      `It holds "${B}" of the cluster with system identifier 7420325342344323423; this one has 42.`,
    );
  });

  test("a timeline history of another cluster is refused by its data directory's pg_control, and archived from elsewhere", async () => {
    await using site = await Site.create();
    await site.segment(A);
    expect(await site.walb(["wal-push", `pg_wal/${A}`])).toMatchObject({ exitCode: 0 });
    const path = await site.write("pg_wal/00000002.history", historyContent());
    await site.control(42n);
    for (const word of ["pg_wal/00000002.history", path]) {
      const { exitCode, stderr } = await site.walb(["wal-push", word]);
      expect({ exitCode, stderr }).toMatchObject({
        exitCode: 65,
        stderr: expect.stringContaining(`the archive at file://${site.repository} belongs to another cluster\n`),
      });
    }
    expect(await archivedNames(site)).toEqual([`${A}.zst`]);
    const elsewhere = await site.write("00000002.history", historyContent());
    expect(await site.walb(["wal-push", elsewhere])).toMatchObject({ exitCode: 0 });
  });
});

describe("segments that wait", () => {
  test("are archived beside the requested one and marked done; the requested one's mark is PostgreSQL's", async () => {
    await using site = await Site.create();
    for (const name of [A, B, C]) await site.waiting(name);
    await site.write("pg_wal/archive_status/00000002.history.ready");
    await site.write("pg_wal/00000002.history", historyContent());
    const result = await site.walb(["wal-push", `pg_wal/${A}`]);
    expect(result.exitCode).toBe(0);
    expect(result.stderr.trimEnd().split("\n").sort()).toEqual(
      [A, B, C].map((name) => `wal-b: INFO: archived "${name}"`),
    );
    expect(await site.marks()).toEqual([`${A}.ready`, `${B}.done`, `${C}.done`, "00000002.history.ready"]);
    expect(await archivedNames(site)).toEqual([A, B, C].map((name) => `${name}.zst`));
  });

  test.each([
    ["-p 1", ["-p", "1"], {}, 1],
    ["--pool-size=3", ["--pool-size=3"], {}, 3],
    ["WALE_WAL_PUSH_CONCURRENCY=2", [], { WALE_WAL_PUSH_CONCURRENCY: "2" }, 2],
    ["a flag beats the variable", ["-p", "4"], { WALE_WAL_PUSH_CONCURRENCY: "2" }, 4],
  ])("%s archives no more than that, the oldest first", async (_, flags, env, count) => {
    await using site = await Site.create();
    for (const name of NAMES) await site.waiting(name);
    // Not the oldest: it comes first whatever its place is.
    expect(await site.walb(["wal-push", ...flags, `pg_wal/${C}`], { env })).toMatchObject({ exitCode: 0 });
    const expected = [C, ...NAMES.filter((name) => name !== C)].slice(0, count);
    expect(await archivedNames(site)).toEqual(expected.map((name) => `${name}.zst`).sort());
    expect(await site.marks()).toEqual(
      NAMES.map((name) => (expected.includes(name) && name !== C ? `${name}.done` : `${name}.ready`)).sort(),
    );
  });

  test("one that has vanished is passed over in silence, and its mark stays", async () => {
    await using site = await Site.create();
    for (const name of [A, B, C]) await site.waiting(name);
    await unlink(join(site.data, "pg_wal", B));
    const result = await site.walb(["wal-push", `pg_wal/${A}`]);
    expect(result.exitCode).toBe(0);
    expect(result.stderr).not.toContain(B);
    expect(await site.marks()).toEqual([`${A}.ready`, `${B}.ready`, `${C}.done`]);
    expect(await archivedNames(site)).toEqual([A, C].map((name) => `${name}.zst`));
  });

  test("a damaged one is a warning, keeps its mark, and does not hold up the others", async () => {
    await using site = await Site.create();
    for (const name of [A, B, C]) await site.waiting(name);
    await site.write(`pg_wal/${B}`, new Uint8Array(MiB));
    const result = await site.walb(["--terse", "wal-push", `pg_wal/${A}`]);
    expect(result).toMatchObject({
      exitCode: 0,
      stderr: `wal-b: WARNING: could not archive "${B}" ahead of its turn\n  DETAIL: "${B}" is not a valid WAL segment. Its first page has the magic number 0x0000, which no release of PostgreSQL wrote.\n`,
    });
    expect(await site.marks()).toEqual([`${A}.ready`, `${B}.ready`, `${C}.done`]);
  });

  test("one whose name is taken by other content is a warning", async () => {
    await using site = await Site.create();
    await site.segment(B);
    expect(await site.walb(["wal-push", `pg_wal/${B}`])).toMatchObject({ exitCode: 0 });
    await site.waiting(A);
    await site.waiting(B, { fill: 8 });
    const result = await site.walb(["--terse", "wal-push", `pg_wal/${A}`]);
    expect(result).toMatchObject({
      exitCode: 0,
      stderr: `wal-b: WARNING: could not archive "${B}" ahead of its turn\n  DETAIL: "${B}" is already archived with different content. file://${site.archive}/${B}.zst was left as it is.\n`,
    });
    expect(await site.marks()).toEqual([`${A}.ready`, `${B}.ready`]);
    expect(same(await site.archived(B), walContent(B))).toBe(true);
  });

  test("are archived beside a partial segment that conflicts, which stays PostgreSQL's, and its failure is the exit code", async () => {
    await using site = await Site.create();
    const partial = `${A}.partial`;
    const next = `00000003${A.slice(8)}`;
    await site.write(`pg_wal/${partial}`, walContent(A));
    expect(await site.walb(["wal-push", `pg_wal/${partial}`])).toMatchObject({ exitCode: 0 });
    await site.waiting(partial, { fill: 8 });
    await site.waiting(next);
    expect(await site.walb(["--terse", "wal-push", `pg_wal/${partial}`])).toMatchObject({
      exitCode: 65,
      stderr: `wal-b: ERROR: "${partial}" is already archived with different content
  DETAIL: file://${site.archive}/${partial}.zst was left as it is.
  HINT: Two servers were promoted inside this segment, one after the other. Recovery never reads this file: keep a copy if you want one, then rename archive_status/${partial}.ready in pg_wal to ${partial}.done, and archiving goes on.\n`,
    });
    expect(await site.marks()).toEqual([`${partial}.ready`, `${next}.done`]);
    expect(same(await site.archived(partial), walContent(A))).toBe(true);
    expect(same(await site.archived(next), walContent(next))).toBe(true);
  });

  test("the failure of the requested one is the exit code, whatever the others did", async () => {
    await using site = await Site.create();
    for (const name of [A, B]) await site.waiting(name);
    await site.write(`pg_wal/${A}`, new Uint8Array(MiB));
    const result = await site.walb(["wal-push", `pg_wal/${A}`]);
    expect(result.exitCode).toBe(65);
    expect(await site.marks()).toContain(`${A}.ready`);
  });
});

describe("two at once", () => {
  const both = async (first: Site, other: readonly string[], env: Record<string, string>) =>
    await Promise.all([first.walb(["wal-push", `pg_wal/${A}`], { env }), first.walb(["wal-push", ...other], { env })]);

  test.each([1, 2, 3, 4])("the same content: both succeed (round %i)", async () => {
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    const results = await both(site, [`pg_wal/${A}`], {});
    expect(results.map(({ exitCode }) => exitCode)).toEqual([0, 0]);
    expect(same(await site.archived(A), content)).toBe(true);
    expect(await archivedNames(site)).toEqual([`${A}.zst`]);
  });

  test.each([1, 2, 3, 4])("different content: one wins and the other is refused (round %i)", async () => {
    await using site = await Site.create();
    const contents = [
      await site.segment(A, { sizeBytes: 16 * MiB }),
      walContent(A, { sizeBytes: 16 * MiB, fill: 9 }),
    ] as const;
    await mkdir(join(site.directory, "other"));
    const path = join(site.directory, "other", A);
    await writeFile(path, contents[1]);
    const results = await both(site, [path], {});
    const codes = results.map(({ exitCode }) => exitCode);
    expect(codes.toSorted()).toEqual([0, 65]);
    expect(same(await site.archived(A), contents[codes.indexOf(0)] as Uint8Array)).toBe(true);
    expect(await archivedNames(site)).toEqual([`${A}.zst`]);
  });
});

describe("ends before the end", () => {
  /** A server that takes connections and bytes, and never answers. */
  async function stallingServer(): Promise<{ port: number; connected: Promise<void> } & AsyncDisposable> {
    const connected = Promise.withResolvers<void>();
    const sockets = new Set<{ destroy(): void }>();
    const server = createServer((socket) => {
      sockets.add(socket);
      socket.on("error", () => {});
      socket.on("data", () => connected.resolve());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    return {
      port,
      connected: connected.promise,
      [Symbol.asyncDispose]: async () => {
        for (const socket of sockets) socket.destroy();
        await new Promise((resolve) => server.close(resolve));
      },
    };
  }

  const s3Env = (port: number) => scriptedS3Environment(`http://127.0.0.1:${port}`);

  function startPush(site: Site, port: number) {
    return startOn(site, port, [site.program, "wal-push", `pg_wal/${A}`]);
  }

  function startOn(site: Site, port: number, [program = "", ...args]: readonly string[]) {
    const child = spawn(program, args, {
      cwd: site.data,
      env: { ...baseEnvironment(), TMPDIR: join(site.directory, "tmp"), ...s3Env(port) },
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stderr = "";
    child.stderr.setEncoding("utf8").on("data", (text) => {
      stderr += text;
    });
    const ended = new Promise<{ readonly code: number | null; readonly stderr: string }>((resolve) =>
      child.once("close", (code) => resolve({ code, stderr })),
    );
    return { child, ended };
  }

  test.each([
    ["SIGTERM", 143],
    ["SIGINT", 130],
    ["SIGHUP", 129],
    ["SIGQUIT", 131], // what PostgreSQL sends when it is stopped in immediate mode
  ] as const)("%s ends a push that waits for the store at once, with %i", async (signal, code) => {
    await using site = await Site.create();
    await using server = await stallingServer();
    await site.waiting(A);
    await site.waiting(B);
    const before = await site.listing();
    const { child, ended } = startPush(site, server.port);
    await server.connected;
    const start = performance.now();
    child.kill(signal);
    expect(await ended).toEqual({ code, stderr: `wal-b: ERROR: interrupted by ${signal}\n` });
    expect(performance.now() - start).toBeLessThan(2000);
    expect(await site.listing()).toEqual(before);
  });

  test("a signal that comes twice, as to a process and to its group, is one", async () => {
    await using site = await Site.create();
    await site.segment(A);
    for (const pauseMs of [0, 1, 2, 4, 8]) {
      await using server = await stallingServer();
      const { child, ended } = startPush(site, server.port);
      await server.connected;
      child.kill("SIGTERM");
      await Bun.sleep(pauseMs);
      child.kill("SIGTERM");
      expect(await ended).toEqual({ code: 143, stderr: "wal-b: ERROR: interrupted by SIGTERM\n" });
    }
  });

  test("SIGHUP does nothing to what a person starts when it was ignored at the start, as by nohup", async () => {
    await using site = await Site.create();
    await using server = await stallingServer();
    const ignoring = ["/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh", site.program, "verify"];
    const { child, ended } = startOn(site, server.port, ignoring);
    await server.connected;
    child.kill("SIGHUP");
    expect(await Promise.race([ended, Bun.sleep(500)])).toBeUndefined();
    child.kill("SIGTERM");
    expect(await ended).toEqual({ code: 143, stderr: "wal-b: ERROR: interrupted by SIGTERM\n" });
  });

  test("an endpoint that never answers ends by the deadline", async () => {
    await using site = await Site.create();
    await using server = await stallingServer();
    await site.segment(A);
    const env = {
      ...s3Env(server.port),
      WALB_RETRY_DEADLINE: "1s",
      WALB_IDLE_TIMEOUT: "300ms",
    };
    const start = performance.now();
    const result = await site.walb(["wal-push", `pg_wal/${A}`], { env, timeoutMs: 20_000 });
    expect(result).toMatchObject({ exitCode: 69, timedOut: false });
    expect(result.stderr).toMatch(
      /^wal-b: ERROR: could not \w+ "s3:\/\/bucket\/path\/wal_005\/.*"\n {2}DETAIL: http:\/\/127\.0\.0\.1:\d+: ETIMEDOUT: no byte came or went for 300 ms.*\.\n {2}HINT: Check that http:\/\/127\.0\.0\.1:\d+ can be reached from this machine\.\n$/,
    );
    expect(performance.now() - start).toBeLessThan(6000);
  });

  test("an endpoint that nobody listens at ends by the deadline", async () => {
    await using site = await Site.create();
    await site.segment(A);
    const port = await freePort();
    const env = { ...s3Env(port), WALB_RETRY_DEADLINE: "1s" };
    const start = performance.now();
    const result = await site.walb(["wal-push", `pg_wal/${A}`], { env, timeoutMs: 20_000 });
    expect(result).toMatchObject({ exitCode: 69, timedOut: false });
    expect(result.stderr).toStartWith("wal-b: ERROR: could not");
    expect(result.stderr).toContain(`HINT: Check that http://127.0.0.1:${port} can be reached from this machine.\n`);
    expect(performance.now() - start).toBeLessThan(6000);
  });

  test.each([
    ["AuthorizationHeaderMalformed", 400],
    ["PermanentRedirect", 301],
  ])("a bucket of another region (%s): told at once, with the setting that is right", async (code, status) => {
    await using site = await Site.create();
    await site.segment(A);
    await using s3 = await startScriptedS3(() => s3Error(status, code, { "x-amz-bucket-region": "eu-central-1" }));
    const env = scriptedS3Environment(s3.endpoint);
    const before = await site.listing();
    const result = await site.walb(["wal-push", `pg_wal/${A}`], { env });
    expect(result.exitCode).toBe(64);
    expect(result.stderr).toMatch(
      /^wal-b: ERROR: could not \w+ "s3:\/\/bucket\/path\/wal_005\/.*"\n {2}DETAIL: S3 answered \d+ .*\n {2}HINT: Set AWS_REGION=eu-central-1, where the bucket "bucket" is\.\n$/,
    );
    expect(s3.requests).toHaveLength(1);
    expect(await site.listing()).toEqual(before);
  });

  test("killed at any moment, and run again: the segment is archived, whole, and nothing else is", async () => {
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    for (const afterMs of [20, 30, 40, 50, 60, 70, 80, 100]) {
      const child = spawn(site.program, ["wal-push", `pg_wal/${A}`], {
        cwd: site.data,
        env: { ...baseEnvironment(), ...site.env },
        stdio: "ignore",
      });
      const exited = new Promise((resolve) => child.once("exit", resolve));
      await Bun.sleep(afterMs);
      child.kill("SIGKILL");
      await exited;
      const there = await site.archived(A);
      if (there) expect(same(there, content)).toBe(true);
    }
    expect(await site.walb(["wal-push", `pg_wal/${A}`])).toMatchObject({ exitCode: 0 });
    expect(same(await site.archived(A), content)).toBe(true);
    const names = (await archivedNames(site)).filter((name) => !name.startsWith(".wal-b."));
    expect(names).toEqual([`${A}.zst`]);
    // What the killed ones left is named so that it is no archived file, and goes with the garbage.
    const garbage = await site.walb(["delete", "garbage", "--min-age", "0s", "--confirm"]);
    expect(garbage.exitCode).toBe(0);
    expect(await archivedNames(site)).toEqual([`${A}.zst`]);
  });
});

describe("a repository that cannot be written to", () => {
  test("a read-only one: told, and nothing changed", async () => {
    await using site = await Site.create(ordinaryAccount());
    await site.segment(A);
    await chmod(site.repository, 0o555);
    const before = await site.listing();
    const result = await site.walb(["wal-push", `pg_wal/${A}`]);
    expect(result).toMatchObject({
      exitCode: 77,
      stderr: `wal-b: ERROR: could not write "file://${site.archive}/${A}.zst"\n  DETAIL: EACCES: permission denied, mkdir '${site.archive}'.\n  HINT: Check the owner and the mode of the repository's directories.\n`,
    });
    expect(await site.listing()).toEqual(before);
  });

  test("one on a file system that is mounted read-only: told", async () => {
    await using site = await Site.create();
    await site.segment(A);
    const script = `mount -t tmpfs -o ro tmpfs "$DISK"; "$WALB" wal-push pg_wal/${A}`;
    expect(await onSmallDisk(site, site.repository, script)).toMatchObject({
      exitCode: 69,
      stderr: `wal-b: ERROR: could not write "file://${site.archive}/${A}.zst"\n  DETAIL: EROFS: read-only file system, mkdir '${site.archive}'.\n  HINT: The repository is mounted read-only.\n`,
    });
  });

  test("a full disk: told, nothing is left behind, and once there is room it succeeds", async () => {
    await using site = await Site.create();
    const content = await site.segment(A, { sizeBytes: 16 * MiB });
    for (let at = 8192; at < content.byteLength; at += 65536) crypto.getRandomValues(content.subarray(at, at + 65536));
    await site.write(`pg_wal/${A}`, content);
    const result = await onSmallDisk(
      site,
      site.repository,
      `"$WALB" wal-push pg_wal/${A}; echo "exit code $?"
       ls -A "$DISK/wal_005"
       rm "$DISK/taken"
       "$WALB" --terse wal-push pg_wal/${A}; echo "exit code $?"
       ls -A "$DISK/wal_005"
       "$WALB" --terse wal-fetch ${A} fetched`,
    );
    expect(result).toMatchObject({
      exitCode: 0,
      stdout: `exit code 69\nexit code 0\n${A}.zst\n`,
      stderr: `wal-b: ERROR: could not write "file://${site.archive}/${A}.zst"\n  DETAIL: ENOSPC: no space left on device, write.\n  HINT: The disk of the repository is full: free space, or delete old backups.\n`,
    });
    expect(same(await Bun.file(join(site.data, "fetched")).bytes(), content)).toBe(true);
  });
});
