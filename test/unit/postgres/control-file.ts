/** Makes pg_control files for tests, by the offsets that pg_controldata's own sources give. */
import { crc32c } from "../../../src/postgres/crc32c.ts";

export interface ControlFields {
  readonly controlVersion?: number;
  readonly catalogVersion?: number;
  readonly systemIdentifier?: bigint;
  readonly state?: number;
  readonly redoLsn?: bigint;
  readonly dataChecksums?: number;
}

export function controlFile(fields: ControlFields = {}): Buffer {
  const { controlVersion = 1300, catalogVersion = 202209061, systemIdentifier = 7420325342344323423n } = fields;
  const { state = 1, redoLsn = 0x3000028n, dataChecksums = 1 } = fields;
  const bytes = Buffer.alloc(8192);
  bytes.writeBigUInt64LE(systemIdentifier, 0);
  bytes.writeUInt32LE(controlVersion, 8);
  bytes.writeUInt32LE(catalogVersion, 12);
  bytes.writeUInt32LE(state, 16);
  bytes.writeBigUInt64LE(redoLsn + 0x38n, 32);
  bytes.writeBigUInt64LE(redoLsn, 40);
  bytes.writeUInt32LE(2, 48);
  bytes.writeUInt32LE(1, 52);
  bytes.writeBigUInt64LE(0x1_0000_0000n, 136);
  bytes.writeUInt32LE(2, 144);
  bytes.writeBigUInt64LE(0x2000000n, 152);
  bytes.writeBigUInt64LE(0x2000100n, 160);
  bytes.writeUInt8(1, 168);
  [100, 8, 10, 2, 64].forEach((limit, index) => void bytes.writeUInt32LE(limit, 180 + 4 * index));
  bytes.writeUInt32LE(8192, 216);
  bytes.writeUInt32LE(131072, 220);
  bytes.writeUInt32LE(8192, 224);
  bytes.writeUInt32LE(16 * 1024 * 1024, 228);
  bytes.writeUInt32LE(dataChecksums, 252);
  const checksumOffset = controlVersion >= 1800 ? 292 : 288;
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, checksumOffset)), checksumOffset);
  return bytes;
}
