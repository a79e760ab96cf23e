/** verify --drill of a backup in S3: with the rights of a database host, settings that only root can read, and few requests for a listing. */
import { expect, test } from "bun:test";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { archiveEverything, pushBackup, startArchiving } from "../support/backups.ts";
import { documentOf, ScratchParent } from "../support/drills.ts";
import { startRecordingProxy } from "../support/recording-proxy.ts";
import { s3Repository } from "../support/repositories.ts";
import { anyS3Server } from "../support/s3-server.ts";
import { runWalb } from "../support/walb.ts";

test("it restores, stores its result, and a listing asks once more for each backup", async () => {
  const s3 = await anyS3Server();
  const envdir = await mkdtemp(join(tmpdir(), "walb-envdir-"));
  try {
    const repository = await s3Repository(s3.server);
    await using server = await startArchiving(repository.hostEnv, { walSegmentSizeMiB: 1 });
    await using scratch = await ScratchParent.create(server);
    const older = await pushBackup(server, repository.hostEnv);
    const newer = await pushBackup(server, repository.hostEnv);
    await archiveEverything(server, repository);
    await server.stop();

    // For nobody but whoever runs this: for root, not for the account that the server runs as.
    for (const [name, value] of Object.entries(repository.hostEnv)) {
      await writeFile(join(envdir, name), `${value}\n`, { mode: 0o600 });
    }
    const before = await repository.keys();
    const result = await scratch.drill({}, ["--envdir", envdir, "--keep"]);
    expect(result).toMatchObject({ exitCode: 0 });
    const { backup_name, verdict, stored, kept } = documentOf(result);
    expect({ backup_name, verdict }).toEqual({ backup_name: newer, verdict: "good" });
    const added = (await repository.keys()).filter((key) => !before.includes(key));
    expect(added).toEqual([expect.stringMatching(new RegExp(`^basebackups_005/${newer}/walb_drill_.*_good\\.json$`))]);
    expect(stored).toEndWith(added[0] ?? "");
    const secret = repository.hostEnv["AWS_SECRET_ACCESS_KEY"] ?? "";
    for (const file of ["postgresql.conf", "server.log", "data/postgresql.auto.conf"]) {
      expect(await readFile(join(kept ?? "", file), "utf8")).not.toContain(secret);
    }

    await using proxy = await startRecordingProxy(s3.server.endpoint);
    const env = { ...repository.hostEnv, AWS_ENDPOINT_URL_S3: proxy.url };
    const listing = async (...args: string[]) => {
      expect(await runWalb(["backup-list", ...args], { env })).toMatchObject({ exitCode: 0, stderr: "" });
      return proxy
        .takeRequests()
        .map((request) =>
          request.replace(/^(\w+) .*\/(.*?)(\?list)?$/, (_, verb, name, list) => (list ? "LIST" : `${verb} ${name}`)),
        )
        .sort();
    };
    const everyListing = [
      "GET metadata.json",
      "GET metadata.json",
      ...[newer, older].map((name) => `GET ${name}_backup_stop_sentinel.json`).sort(),
      "LIST",
      "LIST",
      "LIST",
    ];
    expect(await listing()).toEqual(everyListing.sort());
    expect(await listing("--detail")).toEqual([...everyListing, `GET ${added[0]?.split("/").at(-1)}`].sort());
  } finally {
    await rm(envdir, { recursive: true });
    await s3.stop();
  }
}, 180_000);
