/**
 * `tar | zstd -3 -T2` and `zstd` alone: what the copying costs without a repository, WAL, checksums of files or a manifest. What
 * they write is synced, because the others' is; what they restore is not.
 */
import { mkdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "../../test/support/account.ts";
import type { Workload } from "../workload.ts";
import type { Missing, Peer } from "./peer.ts";
import { dataDirectoryToRestoreInto, expectRestored, expectSameFile, runOrThrow } from "./place.ts";

const NAME = "tar, zstd";
const THREADS = 2;

export async function openTarZstd(workload: Workload): Promise<Peer | Missing> {
  const missing = ["tar", "zstd"].filter((program) => Bun.which(program) === null);
  if (missing.length > 0) return { name: NAME, why: `${missing.join(" and ")} not installed` };

  const { server, segments } = workload;
  const [, segment] = segments;
  const place = await server.makeDirectory("tar and zstd");
  const restored = join(place, "restored");
  const [archivedSegment, archive] = [join(place, "segment.zst"), join(place, "backup.tar.zst")];
  const fetched = await dataDirectoryToRestoreInto("zstd", server);
  const shell = (script: string) => ["/bin/sh", "-c", script];

  const exclude = ["./pg_wal/*", "./postmaster.pid"].map((name) => `--exclude='${name}'`).join(" ");
  const pack = `tar -C '${server.dataDirectory}' ${exclude} -cf - .`;
  return {
    name: NAME,
    version: (await runOrThrow(server, ["zstd", "--version"])).match(/v[\d.]+/)?.[0] ?? "",
    trials: {
      pushSegment: {
        command: shell(`zstd -3 -q '${segment.path}' -o '${archivedSegment}' && sync '${archivedSegment}'`),
        prepare: () => rm(archivedSegment, { force: true }),
        storedBytes: async () => (await stat(archivedSegment)).size,
      },
      fetchSegment: {
        command: ["zstd", "-d", "-q", archivedSegment, "-o", fetched],
        prepare: () => rm(fetched, { force: true }),
        check: () => expectSameFile(fetched, segment.path),
      },
      pushBackup: {
        command: shell(`${pack} | zstd -3 -T${THREADS} -q -o '${archive}' && sync '${archive}'`),
        prepare: () => rm(archive, { force: true }),
        storedBytes: async () => (await stat(archive)).size,
      },
      fetchBackup: {
        command: shell(`zstd -d -q -c '${archive}' | tar -C '${restored}' -xf -`),
        async prepare() {
          await rm(restored, { recursive: true, force: true });
          await mkdir(restored);
          await giveTo(server.account, restored);
        },
        check: () => expectRestored(restored, workload),
      },
    },
  };
}
