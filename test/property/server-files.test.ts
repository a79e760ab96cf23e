/** Files that a server writes: what they state is read, and damage is refused or ends the reading. */
import { expect } from "bun:test";
import { IntegrityError, PostgresError } from "../../src/errors.ts";
import { parseBackupLabel } from "../../src/postgres/backup-label.ts";
import { crc32c } from "../../src/postgres/crc32c.ts";
import { asLsn, formatLsn } from "../../src/postgres/lsn.ts";
import { decodePgControl } from "../../src/postgres/pg-control.ts";
import { parsePostmasterPid } from "../../src/postgres/postmaster-pid.ts";
import { formatTime } from "../../src/postgres/recovery-target.ts";
import { formatTablespaceMap, parseTablespaceMap } from "../../src/postgres/tablespace-map.ts";
import { checkSegment } from "../../src/postgres/wal-page-header.ts";
import {
  continuationIn,
  hasKnownRecords,
  restorePointOf,
  transactionEndOf,
  type WalRecord,
} from "../../src/postgres/wal-records.ts";
import { segmentNamed } from "../../src/postgres/wal-segment.ts";
import { checkWalContent } from "../../src/repository/wal-content.ts";
import { anyText, damagedBytes, damagedText } from "../support/damage.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";
import { recordsIn } from "../support/wal-records.ts";
import { type WrittenRecord, writeRecords } from "../support/wal-writer.ts";
import { controlFile } from "../unit/postgres/control-file.ts";

property("pg_control reads as it was written; damaged, it is refused, whatever its checksum", async (random) => {
  const fields = {
    controlVersion: random.pick([1201, 1300, 1700, 1800]),
    catalogVersion: random.below(2 ** 32),
    systemIdentifier: random.bigint(64),
    state: random.below(7),
    redoLsn: random.bigint(60),
  };
  const bytes = controlFile(fields);
  const { systemIdentifier, controlVersion, catalogVersion, redoLsn } = decodePgControl(bytes);
  expect({ systemIdentifier, controlVersion, catalogVersion, redoLsn: BigInt(redoLsn) }).toEqual({
    systemIdentifier: fields.systemIdentifier,
    controlVersion: fields.controlVersion,
    catalogVersion: fields.catalogVersion,
    redoLsn: fields.redoLsn,
  });

  const damaged = damagedBytes(bytes, random);
  const read = await answerOf([IntegrityError, PostgresError], () => decodePgControl(damaged));
  if (read) expect(Buffer.from(damaged).subarray(0, 292).equals(bytes.subarray(0, 292))).toBe(true);

  const resealed = Buffer.from(damagedBytes(bytes.subarray(0, 512), random));
  const checksumAt = fields.controlVersion === 1800 ? 292 : 288;
  if (resealed.byteLength >= 512) resealed.writeUInt32LE(crc32c(resealed.subarray(0, checksumAt)), checksumAt);
  await answerOf([IntegrityError, PostgresError], () => decodePgControl(resealed));
});

property("backup_label reads as it was written; damaged, it has every field or is refused", async (random) => {
  const [start, checkpoint] = [asLsn(random.bigint(64)), asLsn(random.bigint(64))];
  const startSegment = random.bigint(64).toString(16).toUpperCase().padStart(24, "0");
  const label = anyText(random)
    .replace(/[\r\n\0]/g, "")
    .toWellFormed();
  const startTimeline = 1 + random.below(2 ** 32 - 1);
  const text = [
    `START WAL LOCATION: ${formatLsn(start)} (file ${startSegment})`,
    `CHECKPOINT LOCATION: ${formatLsn(checkpoint)}`,
    "BACKUP METHOD: streamed",
    `BACKUP FROM: ${random.pick(["primary", "standby"])}`,
    "START TIME: 2025-11-23 14:26:29 UTC",
    `LABEL: ${label}`,
    `START TIMELINE: ${startTimeline}\n`,
  ].join("\n");
  const read = parseBackupLabel(text);
  expect(read).toMatchObject({ startLsn: start, startSegment, checkpointLsn: checkpoint, startTimeline });
  expect(read.label).toBe(label);

  const bytes = random.once(2) ? damagedText(text, random) : damagedBytes(Buffer.from(text), random);
  const other = await answerOf([IntegrityError], () => parseBackupLabel(bytes));
  if (other) expect(Object.values(other)).not.toContain(undefined);
});

property("tablespace_map reads as it was written; damaged, it is a map or is refused", async (random) => {
  const links = random.list(5, () => ({
    oid: 1 + random.below(2 ** 32 - 1),
    location: `/${anyText(random).toWellFormed()}`,
  }));
  const text = formatTablespaceMap(links);
  expect(parseTablespaceMap(text)).toEqual(links);
  const read = await answerOf([IntegrityError], () => parseTablespaceMap(damagedText(text, random)));
  expect((read ?? []).every(({ oid, location }) => Number.isInteger(oid) && location.length > 0)).toBe(true);
});

property("postmaster.pid tells a number of a process, or nothing", (random) => {
  const text = `${1 + random.below(99999)}\n/data\n1700000000\n5432\n/tmp\nlocalhost\n  5432001  32768\nready   \n`;
  expect(parsePostmasterPid(text, "/data")).toMatchObject({ port: 5432, socketDirectory: "/tmp", status: "ready" });
  const read = parsePostmasterPid(random.once(3) ? anyText(random, 40) : damagedText(text, random), "/data");
  if (read) expect(read.pid).toBeGreaterThan(0);
});

const RM_XLOG = 0;
const RM_XACT = 1;

function anyRecord(random: Random): WrittenRecord {
  const xid = 3 + random.below(2 ** 31);
  const mainData = (bytes: Uint8Array) => Buffer.concat([Buffer.from([0xff, bytes.byteLength]), bytes]);
  switch (random.below(5)) {
    case 0: {
      const time = Buffer.alloc(8);
      time.writeBigInt64LE(BigInt(random.below(2 ** 31)) * 1_000_000n);
      return { xid, resourceManager: RM_XACT, info: random.pick([0, 0x20, 0x30, 0x40]), data: mainData(time) };
    }
    case 1: {
      const name = Buffer.concat([Buffer.alloc(8), Buffer.from(`point${xid}`), Buffer.alloc(40)]);
      return { xid: 0, resourceManager: RM_XLOG, info: 0x70, data: mainData(name) };
    }
    case 2:
      return { xid, resourceManager: 10, info: 0, data: random.bytes(random.below(30_000)) };
    case 3:
      // Over all of a segment, now and then.
      return { xid, resourceManager: 21, info: 0, data: random.bytes(random.once(20) ? 1_500_000 : 9_000) };
    default:
      return { xid, resourceManager: 10, info: 0, data: random.bytes(random.below(100)) };
  }
}

/** Everything that recovery's end is found by. */
function factsOf(records: Iterable<WalRecord>): readonly string[] {
  return [...records].map((record) => {
    const end = transactionEndOf(record);
    const text = end && `${end.xid ?? "prepared"} at ${formatTime(end.at)}`;
    return `${formatLsn(record.lsn)} ${record.xid} ${text ?? restorePointOf(record) ?? ""}`;
  });
}

property(
  "records read as they were written, over pages and segments",
  (random) => {
    const written = random.list(120, () => anyRecord(random), 1);
    const { segments, lsns } = writeRecords(written, 1n + random.bigint(20));
    const contents = [...segments.values()];
    for (const [name, content] of segments) checkSegment(name, segmentNamed(name), content);
    // The next one is known as well, or what lies over the end is left out.
    const read = contents.flatMap((content, n) => {
      const next = contents[n + 1];
      const pieceBytes = random.pick([content.byteLength, 2 * 8192, 10_000, 1 + random.below(300_000)]);
      return factsOf(recordsIn(content, next && continuationIn(next), pieceBytes));
    });
    const expected = written.map(({ xid, resourceManager, info, data }, n) => {
      const lsn = formatLsn(asLsn(lsns[n] as bigint));
      if (resourceManager === RM_XACT) {
        const at = new Date(Date.UTC(2000, 0, 1) + Number(Buffer.from(data).readBigInt64LE(2) / 1000n));
        const time = at.toISOString().replace("T", " ").replace(".000Z", "+00");
        return `${lsn} ${xid} ${info < 0x30 ? xid : "prepared"} at ${time}`;
      }
      const point = Buffer.from(data.subarray(10)).toString("latin1").replace(/\0+$/, "");
      return `${lsn} ${xid} ${resourceManager === RM_XLOG ? point : ""}`;
    });
    expect(read).toEqual(expected);
  },
  { oneOf: 3 },
);

property(
  "a damaged segment is refused, or its records end somewhere",
  async (random) => {
    const { segments } = writeRecords(
      random.list(60, () => anyRecord(random), 1),
      5n,
    );
    const contents = [...segments];
    const [name, content] = random.pick(contents);
    // The checked header stays as it is, or nothing would be left to read; its other fields do not.
    const damaged = Buffer.concat([content.subarray(0, 16), damagedBytes(content.subarray(16), random)]);
    const padded = Buffer.concat([damaged, Buffer.alloc(content.byteLength)]).subarray(0, content.byteLength);
    padded.set(content.subarray(24, 36), 24);
    if (random.once(4)) padded.writeUInt32LE(random.pick([0, 1, 7, 8191, 65536, 2 ** 31, 2 ** 32 - 1]), 36);
    const file = segmentNamed(name);
    const checked = await answerOf([IntegrityError], () => {
      checkWalContent(file, padded, padded.byteLength);
      return "as it should be";
    });
    if (checked === undefined || !hasKnownRecords(padded)) return;
    const continuation = continuationIn(padded);
    const facts = factsOf(recordsIn(padded, random.pick([undefined, continuation, random.bytes(random.below(200))])));
    expect(facts.length).toBeLessThanOrEqual(content.byteLength / 24);
  },
  { oneOf: 2 },
);
