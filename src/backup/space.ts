/** Whether a backup fits, asked before anything is written. */
import { stat, statfs } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { DestinationError } from "../errors.ts";
import type { Log } from "../system/log.ts";
import { formatBytes } from "../system/quantity.ts";
import type { Found } from "./resume.ts";
import type { TargetPlan } from "./target.ts";
import type { ExpectedFiles } from "./unpack.ts";

export interface SpaceNeeded {
  readonly totalBytes: number;
  /** undefined: the backup does not say what is in which tablespace */
  readonly files: ExpectedFiles | undefined;
  /** What is there already, and will be used again or removed. */
  readonly found: Pick<Found, "complete" | "leftOverBytes">;
  readonly log: Log;
}

/** Numbers of file systems that may compress: there a backup can be larger than what is free. Source: statfs(2). */
const COMPRESSING: ReadonlyMap<number, string> = new Map([
  [0x2fc12fc1, "ZFS"],
  [0x9123683e, "Btrfs"],
  [0xca451a4e, "bcachefs"],
]);

/** Of one file system. */
export interface SpaceUse {
  /** A directory on it that exists. */
  readonly directory: string;
  /** What goes there. */
  readonly bytes: number;
  readonly freeBytes: number;
}

/** @throws DestinationError  a file system has less space than goes there */
export async function checkSpace(plan: TargetPlan, needed: SpaceNeeded): Promise<readonly SpaceUse[]> {
  const uses: SpaceUse[] = [];
  for (const { directory, bytes } of await bytesOfFileSystems(plan, needed)) {
    const { bavail, blocks, bsize, type } = await statfs(directory);
    // Some file systems do not say how large they are: ramfs, and some of those that FUSE mounts.
    if (blocks === 0) continue;
    const freeBytes = bavail * bsize;
    uses.push({ directory, bytes, freeBytes });
    if (bytes <= freeBytes) continue;
    const detail = `${formatBytes(bytes)} go there, and ${formatBytes(freeBytes)} are free.`;
    const compressing = COMPRESSING.get(type);
    if (compressing === undefined) {
      throw new DestinationError(`the backup does not fit into "${directory}"`, {
        detail,
        hint: "Nothing was written. Free some space, or restore to another file system.",
      });
    }
    needed.log.warning(`the backup may not fit into "${directory}"`, {
      detail: `${detail} ${compressing} may compress.`,
    });
  }
  return uses;
}

async function bytesOfFileSystems({ target, tablespaces }: TargetPlan, { totalBytes, files, found }: SpaceNeeded) {
  // What is where is not known: it may all be in the tablespaces.
  if (files === undefined && tablespaces.length > 0) return [];
  const places = new Map(tablespaces.map(({ oid, place }) => [oid, place]));
  const bytesOf = new Map<string, number>([[target, files === undefined ? totalBytes : 0]]);
  for (const [path, { sizeBytes }] of files ?? []) {
    if (found.complete.has(path)) continue;
    const oid = /^pg_tblspc\/(\d+)\//.exec(path)?.[1];
    const place = (oid !== undefined && places.get(oid)) || target;
    bytesOf.set(place, (bytesOf.get(place) ?? 0) + sizeBytes - (found.leftOverBytes.get(path) ?? 0));
  }

  const fileSystems = new Map<number, { directory: string; bytes: number }>();
  for (const [place, bytes] of bytesOf) {
    const { directory, device } = await fileSystemOf(place);
    const sum = fileSystems.get(device)?.bytes ?? 0;
    fileSystems.set(device, { directory: fileSystems.get(device)?.directory ?? directory, bytes: sum + bytes });
  }
  return fileSystems.values();
}

/** That of the directory, or of the one that it will be made in. */
async function fileSystemOf(place: string): Promise<{ directory: string; device: number }> {
  for (let directory = resolve(place); ; directory = dirname(directory)) {
    const found = await stat(directory).catch(() => undefined);
    if (found || directory === "/") return { directory, device: found?.dev ?? 0 };
  }
}
