/** What is true at every moment of a repository and of the server that archives to it, whatever has happened before. */

import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { ListObjectVersionsCommand, type ListObjectVersionsCommandOutput } from "@aws-sdk/client-s3";
import type { PostgresServer } from "../support/postgres-server.ts";
import { type S3Server, s3ClientOf } from "../support/s3-server.ts";

const MAX_SEGMENT = 4096;

export interface Bucket {
  readonly server: S3Server;
  readonly bucket: string;
  /** With a slash at its end. */
  readonly prefix: string;
}

/** Every key below the prefix → what identifies its content. */
export type Contents = ReadonlyMap<string, string>;

/** @throws Error  an object was written twice */
export async function contentsOf({ server, bucket, prefix }: Bucket): Promise<Contents> {
  const client = s3ClientOf(server);
  const contents = new Map<string, string>();
  const seen = new Set<string>();
  try {
    let marker: { KeyMarker?: string; VersionIdMarker?: string } | undefined = {};
    while (marker) {
      const page: ListObjectVersionsCommandOutput = await client.send(
        new ListObjectVersionsCommand({ Bucket: bucket, Prefix: prefix, ...marker }),
      );
      for (const { Key = "", ETag = "", IsLatest } of page.Versions ?? []) {
        if (seen.has(Key)) throw new Error(`"${Key}" was written twice`);
        seen.add(Key);
        if (IsLatest) contents.set(Key.slice(prefix.length), ETag);
      }
      const { NextKeyMarker, NextVersionIdMarker } = page;
      marker = NextKeyMarker
        ? { KeyMarker: NextKeyMarker, ...(NextVersionIdMarker && { VersionIdMarker: NextVersionIdMarker }) }
        : undefined;
    }
    return contents;
  } finally {
    client.destroy();
  }
}

const SENTINEL = /^basebackups_005\/(base_([0-9A-F]{24}))_backup_stop_sentinel\.json$/;

/** Names of the backups that are listed, by where they start. */
export const listedIn = (contents: Contents): readonly string[] =>
  [...contents.keys()].flatMap((key) => SENTINEL.exec(key)?.[1] ?? []).sort();

/** What was there is there as it was, but for what a plan has deleted and what a failed backup has taken back. */
export function checkUnchanged(before: Contents, after: Contents, isDeleting: boolean): void {
  const listed = new Set(listedIn(before));
  for (const [key, content] of before) {
    const now = after.get(key);
    if (now !== undefined && now !== content) throw new Error(`"${key}" has changed`);
    const [, backup = ""] = /^basebackups_005\/(base_[0-9A-F]{24})/.exec(key) ?? [];
    const isUnfinished = key.startsWith("basebackups_005/") && !listed.has(backup);
    if (now === undefined && !isDeleting && !isUnfinished) throw new Error(`"${key}" is gone`);
  }
}

/** Every segment from the oldest backup on is archived, or waits to be; and nothing is marked done that is not archived. */
export async function checkArchive(where: Bucket, server: PostgresServer): Promise<void> {
  const status = join(server.dataDirectory, "pg_wal/archive_status");
  // Before the list: what is marked done then is in it.
  const done = (await readdir(status)).filter((name) => name.endsWith(".done")).map((name) => name.slice(0, -5));
  const contents = await contentsOf(where);
  const oldest = listedIn(contents)[0]?.slice("base_".length);
  if (oldest === undefined) return;

  const isArchived = (name: string) => contents.has(`wal_005/${name}.zst`);
  const lost = done.filter((name) => name >= oldest && !name.endsWith(".history") && !isArchived(name));
  if (lost.length > 0) throw new Error(`marked done, and not archived: ${lost.join(", ")}`);

  const archived = [...contents.keys()].flatMap((key) => /^wal_005\/([0-9A-F]{24})\.zst$/.exec(key)?.[1] ?? []).sort();
  for (let name = oldest; name < (archived.at(-1) ?? ""); name = following(name)) {
    // A server that was killed between filling a segment and marking it marks it with its next checkpoint.
    if (isArchived(name) || existsSync(join(server.dataDirectory, "pg_wal", name))) continue;
    // It may have been archived since the list was read.
    if (!(await contentsOf(where)).has(`wal_005/${name}.zst`)) throw new Error(`"${name}" is missing in the archive`);
  }
}

/** Of 1 MiB. */
function following(name: string): string {
  const [log, segment] = [Number.parseInt(name.slice(8, 16), 16), Number.parseInt(name.slice(16), 16) + 1];
  const next = segment === MAX_SEGMENT ? [log + 1, 0] : [log, segment];
  return name.slice(0, 8) + next.map((n) => n.toString(16).toUpperCase().padStart(8, "0")).join("");
}
