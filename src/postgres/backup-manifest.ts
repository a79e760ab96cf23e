/**
 * PostgreSQL's backup_manifest: size and checksum of every file of a base backup, as pg_verifybackup reads it.
 * Source: manual, "Backup Manifest Format"; basebackup's backup_manifest.c.
 */
import { IntegrityError, reasonOf } from "../errors.ts";
import { FileListLimit } from "./file-list-limit.ts";
import { formatLsn, type Lsn } from "./lsn.ts";

export const BACKUP_MANIFEST = "backup_manifest";

/** A restore reads no more, so no more is written. */
export const MAX_MANIFEST_BYTES = 2 ** 30;

export interface ManifestFile {
  /** Relative to the data directory: "base/1/1259", "pg_tblspc/16388/PG_18_202506291/5/16390". */
  readonly path: string;
  readonly sizeBytes: number;
  readonly modifiedAt: Date;
  /** 64 hex digits, lower case. */
  readonly sha256: string;
}

export interface WalRange {
  readonly timeline: number;
  readonly startLsn: Lsn;
  readonly endLsn: Lsn;
}

const SEPARATOR = ",\n";

/** Files are added as they are read; what is kept of each is its line of text. */
export class BackupManifestWriter {
  readonly #lines: string[] = [];
  readonly #limit: FileListLimit;

  constructor(maxBytes = MAX_MANIFEST_BYTES) {
    this.#limit = new FileListLimit(BACKUP_MANIFEST, maxBytes);
  }

  /** @throws PostgresError  no restore would read what it became */
  add({ path, sizeBytes, modifiedAt, sha256 }: ManifestFile): void {
    // The form of times is that of pg_strftime "%Y-%m-%d %H:%M:%S %Z" in GMT.
    const time = `${modifiedAt.toISOString().slice(0, 19).replace("T", " ")} GMT`;
    const line = `{ "Path": ${JSON.stringify(path)}, "Size": ${sizeBytes}, "Last-Modified": "${time}", "Checksum-Algorithm": "SHA256", "Checksum": "${sha256}" }`;
    this.#limit.take(line, SEPARATOR);
    this.#lines.push(line);
  }

  /** @param systemIdentifier  written from major 17 on, which introduced version 2 of the format */
  finish({
    major,
    systemIdentifier,
    wal,
  }: {
    readonly major: number;
    readonly systemIdentifier: bigint;
    readonly wal: WalRange;
  }): string {
    const head =
      major >= 17
        ? `"PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": ${systemIdentifier},\n`
        : `"PostgreSQL-Backup-Manifest-Version": 1,\n`;
    const range = `{ "Timeline": ${wal.timeline}, "Start-LSN": "${formatLsn(wal.startLsn)}", "End-LSN": "${formatLsn(wal.endLsn)}" }`;
    const body = `{ ${head}"Files": [\n${this.#lines.join(SEPARATOR)}\n],\n"WAL-Ranges": [\n${range}\n],\n`;
    return `${body}"Manifest-Checksum": "${sha256(body)}"}\n`;
  }
}

/**
 * @returns the files, by path
 * @throws IntegrityError  damaged: not a manifest, or its own checksum is wrong
 */
export function parseBackupManifest(text: string): ReadonlyMap<string, Omit<ManifestFile, "path">> {
  const refuse = (detail: string, cause?: unknown): never => {
    throw new IntegrityError("the backup manifest is damaged", { detail, cause });
  };
  const end = text.lastIndexOf('"Manifest-Checksum": "');
  if (end === -1 || text.slice(end) !== `"Manifest-Checksum": "${sha256(text.slice(0, end))}"}\n`)
    return refuse("Its own checksum is wrong.");

  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (cause) {
    return refuse(`${reasonOf(cause)}.`, cause);
  }
  const entries = (parsed as { readonly Files?: unknown }).Files;
  if (!Array.isArray(entries)) return refuse('It has no "Files".');
  const files = new Map<string, Omit<ManifestFile, "path">>();
  for (const [index, entry] of (entries as readonly Readonly<Record<string, unknown> | null>[]).entries()) {
    const { Path: path, Size: sizeBytes, Checksum: hash, "Checksum-Algorithm": algorithm } = entry ?? {};
    const modifiedAt = new Date(String(entry?.["Last-Modified"]).replace(/^(\S+) (\S+) GMT$/, "$1T$2Z"));
    if (
      typeof path !== "string" ||
      !Number.isSafeInteger(sizeBytes) ||
      typeof hash !== "string" ||
      algorithm !== "SHA256" ||
      Number.isNaN(modifiedAt.getTime())
    ) {
      return refuse(`Entry ${index + 1} of its "Files" is not that of a file with a SHA-256.`);
    }
    files.set(path, { sizeBytes: sizeBytes as number, modifiedAt, sha256: hash });
  }
  return files;
}

const sha256 = (text: string) => new Bun.CryptoHasher("sha256").update(text).digest("hex");
