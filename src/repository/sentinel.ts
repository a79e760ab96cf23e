/**
 * The sentinel of a backup, and the metadata beside it: WAL-G's JSON, field by field, with our own under "WalB".
 *
 * docs/repository.md lists the fields. LSNs and the system identifier are plain JSON integers above 2^53. Reading takes what
 * WAL-G and WAL-E wrote too, as far as a full backup goes.
 */
import { IntegrityError, UsageError } from "../errors.ts";
import { asLsn, type Lsn } from "../postgres/lsn.ts";
import { isSegmentSize, type SegmentSize, segmentHolding, segmentNamed } from "../postgres/wal-segment.ts";
import { formatJson, JsonFields } from "./json.ts";
import type { BackupName } from "./keys.ts";

/** Rises when a reader of an older version could not restore what we write. */
export const FORMAT_VERSION = 1;

export interface Tablespace {
  readonly oid: string;
  /** Where it was on the source: an absolute path. */
  readonly location: string;
}

/** What a sentinel tells of its backup. */
export interface Sentinel {
  readonly startLsn: Lsn;
  readonly stopLsn: Lsn;
  readonly systemIdentifier: bigint;
  /** server_version_num, such as 180004. */
  readonly pgVersion: number;
  readonly timeline: number;
  readonly segmentSize: SegmentSize;
  readonly startedAt: Date;
  readonly finishedAt: Date;
  readonly hostname: string;
  readonly dataDirectory: string;
  readonly uncompressedBytes: number;
  readonly compressedBytes: number;
  readonly isPermanent: boolean;
  readonly tablespaces: readonly Tablespace[];
  /** Undefined for what other tools wrote. */
  readonly walB: WalBFields | undefined;
}

export interface WalBFields {
  /** Version of the program that wrote it. */
  readonly version: string;
  /** How many objects are under tar_partitions/. */
  readonly parts: number;
  /** Of backup_manifest, before compression. */
  readonly manifestSha256: string;
  /** The WAL from its start to its stop is among its files, and perhaps not in the archive: the cluster was shut down. */
  readonly holdsWal?: boolean | undefined;
  /** Absent from backups of versions that did not verify pages. */
  readonly pages?: PagesFound | undefined;
}

export interface PagesFound {
  /** "off": not to be verified; "none": the cluster has no data checksums. */
  readonly verification: (typeof PAGE_VERIFICATIONS)[number];
  /** How many did not match their checksums. */
  readonly damaged: number;
}

/** As backup-push found them; undefined where pages were not compared with their checksums, or nobody knows. */
export const damagedPagesOf = ({ walB }: Pick<Sentinel, "walB">): number | undefined =>
  walB?.pages?.verification === "done" ? walB.pages.damaged : undefined;

const PAGE_VERIFICATIONS = ["done", "off", "none"] as const;

/** Go's strftime-like name of the form of times; WAL-G writes it into every file. */
const DATE_FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ";

export function encodeSentinel(sentinel: Sentinel): Uint8Array {
  const { walB, tablespaces, dataDirectory } = sentinel;
  return encode({
    LSN: sentinel.startLsn,
    PgVersion: sentinel.pgVersion,
    FinishLSN: sentinel.stopLsn,
    SystemIdentifier: sentinel.systemIdentifier,
    UncompressedSize: sentinel.uncompressedBytes,
    CompressedSize: sentinel.compressedBytes,
    ...(tablespaces.length > 0 && { Spec: specOf(dataDirectory, tablespaces) }),
    ChkpNum: null,
    Version: 2,
    StartTime: sentinel.startedAt.toISOString(),
    FinishTime: sentinel.finishedAt.toISOString(),
    DateFmt: DATE_FORMAT,
    Hostname: sentinel.hostname,
    DataDir: dataDirectory,
    IsPermanent: sentinel.isPermanent,
    ...(walB && {
      WalB: {
        FormatVersion: FORMAT_VERSION,
        Version: walB.version,
        Timeline: sentinel.timeline,
        WalSegmentBytes: sentinel.segmentSize,
        Parts: walB.parts,
        ManifestSha256: walB.manifestSha256,
        ...(walB.holdsWal && { HoldsWal: true }),
        ...(walB.pages && { PageVerification: walB.pages.verification, DamagedPages: walB.pages.damaged }),
      },
    }),
  });
}

/** metadata.json: the same again for WAL-G's listing, and where backup-mark keeps whether a backup is permanent. */
export function encodeMetadata(sentinel: Sentinel): Uint8Array {
  return encode({
    start_time: sentinel.startedAt.toISOString(),
    finish_time: sentinel.finishedAt.toISOString(),
    date_fmt: DATE_FORMAT,
    hostname: sentinel.hostname,
    data_dir: sentinel.dataDirectory,
    pg_version: sentinel.pgVersion,
    start_lsn: sentinel.startLsn,
    finish_lsn: sentinel.stopLsn,
    is_permanent: sentinel.isPermanent,
    system_identifier: sentinel.systemIdentifier,
    uncompressed_size: sentinel.uncompressedBytes,
    compressed_size: sentinel.compressedBytes,
  });
}

/** @returns undefined when the metadata does not say */
export function decodePermanence(metadata: Uint8Array, url: string): boolean | undefined {
  return JsonFields.parse(new TextDecoder().decode(metadata), url).flag("is_permanent");
}

/** The same metadata with another permanence; fields we do not know stay as they are. */
export function withPermanence(metadata: Uint8Array, url: string, isPermanent: boolean): Uint8Array {
  const text = new TextDecoder().decode(metadata);
  const fields = JsonFields.parse(text, url);
  return encode({ ...fields.raw, is_permanent: isPermanent });
}

/**
 * @param url  of the sentinel, for messages
 * @throws IntegrityError  a field is missing or of the wrong type
 * @throws UsageError      of a newer format than this program knows, or a kind of backup it cannot restore
 */
export function decodeSentinel(backup: BackupName, body: Uint8Array, url: string): Sentinel {
  const fields = JsonFields.parse(new TextDecoder().decode(body), url);
  if (backup.parentSegment !== undefined || fields.text("DeltaFrom") !== undefined) {
    throw new UsageError(`backup "${backup.name}" is a delta backup, which is not supported`, {
      hint: "Restore it with the tool that wrote it.",
    });
  }
  if (backup.madeBy === "wal-e") {
    throw new UsageError(`backup "${backup.name}" was made by WAL-E, which cannot be restored yet`, {
      hint: "Restore it with the tool that wrote it.",
    });
  }

  const own = fields.object("WalB");
  if ((own?.integer("FormatVersion") ?? 0) > FORMAT_VERSION) {
    throw new UsageError(
      `backup "${backup.name}" has format version ${own?.integer("FormatVersion")}, this program knows ${FORMAT_VERSION}`,
      {
        hint: "Install a newer wal-b.",
      },
    );
  }
  const [startLsn, stopLsn] = [lsn(fields, "LSN", url), lsn(fields, "FinishLSN", url)];
  if (stopLsn < startLsn) throw new IntegrityError(`${url} is damaged`, { detail: "Its FinishLSN is before its LSN." });
  return {
    startLsn,
    stopLsn,
    systemIdentifier: fields.required("SystemIdentifier", fields.bigint("SystemIdentifier")),
    pgVersion: fields.required("PgVersion", fields.integer("PgVersion")),
    timeline: segmentNamed(backup.startSegment).timeline,
    segmentSize: segmentSizeOf(backup, startLsn, own ? [ownSegmentSize(own)] : LIKELY_SEGMENT_SIZES, url),
    startedAt: fields.required("StartTime", fields.date("StartTime")),
    finishedAt: fields.required("FinishTime", fields.date("FinishTime")),
    hostname: fields.text("Hostname") ?? "",
    dataDirectory: fields.text("DataDir") ?? "",
    uncompressedBytes: fields.integer("UncompressedSize") ?? 0,
    compressedBytes: fields.integer("CompressedSize") ?? 0,
    isPermanent: fields.flag("IsPermanent") ?? false,
    tablespaces: tablespacesOf(fields.object("Spec")),
    walB: own && {
      version: own.required("Version", own.text("Version")),
      parts: own.required("Parts", own.integer("Parts")),
      manifestSha256: own.required("ManifestSha256", own.text("ManifestSha256")),
      ...(own.flag("HoldsWal") && { holdsWal: true }),
      ...pagesOf(own),
    },
  };
}

function pagesOf(own: JsonFields): Pick<WalBFields, "pages"> {
  const verification = PAGE_VERIFICATIONS.find((known) => known === own.text("PageVerification"));
  return verification === undefined ? {} : { pages: { verification, damaged: own.integer("DamagedPages") ?? 0 } };
}

function lsn(fields: JsonFields, name: string, url: string): Lsn {
  const value = fields.required(name, fields.bigint(name));
  if (value !== BigInt.asUintN(64, value))
    throw new IntegrityError(`${url} is damaged`, { detail: `Its ${name} is ${value}, which is no LSN.` });
  return asLsn(value);
}

function ownSegmentSize(own: JsonFields): SegmentSize {
  const bytes = own.required("WalSegmentBytes", own.integer("WalSegmentBytes"));
  if (!isSegmentSize(bytes)) throw new IntegrityError(`${bytes} bytes is not the size of a WAL segment`);
  return bytes;
}

/** WAL-G does not say it, but the name and the LSN of the start agree for one size; 16 MiB, where they do for more. */
const LIKELY_SEGMENT_SIZES = [16, 1, 2, 4, 8, 32, 64, 128, 256, 512, 1024].map(
  (mebibytes) => (mebibytes * 2 ** 20) as SegmentSize,
);

/** What WAL a backup needs is counted from its LSN, so one that does not fit its name is not believed. */
function segmentSizeOf(
  { startSegment }: BackupName,
  startLsn: Lsn,
  possible: readonly SegmentSize[],
  url: string,
): SegmentSize {
  const { timeline } = segmentNamed(startSegment);
  const size = possible.find((candidate) => segmentHolding(timeline, startLsn, candidate).name === startSegment);
  if (size !== undefined) return size;
  throw new IntegrityError(`${url} is damaged`, {
    detail: "Its LSN is not in the segment that the backup is named after.",
  });
}

/** WAL-G's form: a list of OIDs, and an entry for each. */
function specOf(dataDirectory: string, tablespaces: readonly Tablespace[]) {
  return {
    base_prefix: dataDirectory,
    tablespaces: tablespaces.map(({ oid }) => oid),
    ...Object.fromEntries(tablespaces.map(({ oid, location }) => [oid, { loc: location, link: `pg_tblspc/${oid}` }])),
  };
}

function tablespacesOf(spec: JsonFields | undefined): readonly Tablespace[] {
  return (spec?.texts("tablespaces") ?? []).map((oid) => {
    const entry = spec?.object(oid);
    const location = entry?.text("loc");
    if (!/^\d+$/.test(oid) || location === undefined)
      throw new IntegrityError(`the tablespace "${oid}" of the backup has no location`);
    return { oid, location };
  });
}

const encode = (value: unknown) => new TextEncoder().encode(formatJson(value));
