/** The servers that the other tests stand on: each major answers, as an unprivileged account, and leaves nothing. */
import { describe, expect, test } from "bun:test";
import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { POSTGRES_MAJORS, systemPostgres } from "../support/postgres-binaries.ts";
import { startPostgres, startPostgresOn } from "../support/postgres-server.ts";
import { processIsAlive } from "../support/process-tree.ts";
import { waitFor } from "../support/wait-for.ts";

const MINUTE = 60_000;

describe("startPostgres()", () => {
  for (const major of POSTGRES_MAJORS) {
    test(
      `answers as PostgreSQL ${major} and is gone afterwards`,
      async () => {
        const server = await startPostgres({ major });
        const { pid, directory } = server;
        try {
          expect(await server.psql("SHOW server_version")).toStartWith(`${major}.`);
          expect(await server.psql("SHOW data_checksums")).toBe("on");
          expect(await server.query("SELECT 1 AS one")).toEqual([{ one: 1 }]);
        } finally {
          await server[Symbol.asyncDispose]();
        }

        expect(processIsAlive(pid)).toBe(false);
        expect(existsSync(directory)).toBe(false);
      },
      4 * MINUTE,
    );
  }

  test(
    "runs archive_command with an environment that has nothing of the developer's",
    async () => {
      process.env["AWS_TEST_LEAK"] = "secret";
      await using server = await startPostgres({
        archiveCommand: "env > %p.environment; test ! -e %p.stop",
        walSegmentSizeMiB: 1,
        env: { WALE_S3_PREFIX: "s3://bucket/prefix" },
      });
      const segment = await server.switchWal();

      const path = join(server.dataDirectory, "pg_wal", `${segment}.environment`);
      const environment = await server.waitFor(async () => existsSync(path) && (await Bun.file(path).text()));

      expect(environment).toContain("WALE_S3_PREFIX=s3://bucket/prefix\n");
      expect(environment).not.toContain("AWS_");
      expect(await server.psql("SHOW wal_segment_size")).toBe("1MB");
    },
    MINUTE,
  );

  test(
    "survives crash() and keeps what was committed",
    async () => {
      await using server = await startPostgres({ tablespaces: ["fast"], settings: { fsync: "on" } });
      await server.query("CREATE TABLE kept TABLESPACE fast AS SELECT 42 AS answer");
      await server.crash();
      expect(server.isRunning).toBe(false);

      await server.start();
      expect(await server.psql("SELECT answer FROM kept")).toBe("42");
      expect(await server.logText()).toContain("database system was not properly shut down");
    },
    MINUTE,
  );

  test(
    "ends the server and removes its files when the test process is killed",
    async () => {
      const child = spawn(process.execPath, [join(import.meta.dir, "../support/postgres-server-forever.ts")]);
      const line = Promise.withResolvers<string>();
      child.stdout.once("data", (chunk: Buffer) => line.resolve(chunk.toString()));
      child.once("exit", () => line.reject(new Error("it ended by itself")));
      const { pid, directory } = JSON.parse(await line.promise) as { pid: number; directory: string };
      expect(processIsAlive(pid)).toBe(true);

      child.kill("SIGKILL");

      await waitFor(() => !processIsAlive(pid) && !existsSync(directory), { what: "the watchdog to tidy up" });
    },
    MINUTE,
  );
});

describe("startPostgresOn()", () => {
  test(
    "starts a copy of a stopped cluster and reports a server that ends by itself",
    async () => {
      await using original = await startPostgres();
      await original.query("CREATE TABLE kept AS SELECT 42 AS answer");
      await original.stop();
      const copy = join(original.directory, "copy");
      expect((await original.runAs(["cp", "-a", original.dataDirectory, copy])).exitCode).toBe(0);
      {
        await using restored = await startPostgresOn(copy, { settings: { work_mem: "1MB" } });
        expect(await restored.psql("SELECT answer FROM kept")).toBe("42");
        expect(await restored.psql("SHOW work_mem")).toBe("1MB");
      }
      await Bun.file(join(copy, "global/pg_control")).delete();

      await using damaged = await startPostgresOn(copy, { until: "spawned" });
      expect((await damaged.exited()).exitCode).not.toBe(0);
      expect(await damaged.logText()).toContain("pg_control");
    },
    MINUTE,
  );
});

test(
  "systemPostgres() is a PostgreSQL that a server can be started with",
  async () => {
    const binaries = systemPostgres();
    if (!binaries) return console.error("this machine has no PostgreSQL of its own: nothing to test");
    await using server = await startPostgres({ binaries });
    expect(await server.psql("SHOW server_version")).toStartWith(`${binaries.major}.`);
  },
  MINUTE,
);
