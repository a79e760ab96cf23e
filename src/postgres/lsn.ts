/** A position in the write-ahead log, as PostgreSQL counts it: bytes since the log began. */

export type Lsn = bigint & { readonly brand: "Lsn" };

const LSN_TEXT = /^([0-9A-Fa-f]{1,8})\/([0-9A-Fa-f]{1,8})$/;

/** "16/B374D848" → its value; undefined for anything else. */
export function parseLsn(text: string): Lsn | undefined {
  const [, high, low] = LSN_TEXT.exec(text) ?? [];
  if (high === undefined || low === undefined) return undefined;
  return ((BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`)) as Lsn;
}

/** The way PostgreSQL prints it: "16/B374D848". */
export function formatLsn(lsn: Lsn): string {
  return `${(lsn >> 32n).toString(16).toUpperCase()}/${(lsn & 0xffff_ffffn).toString(16).toUpperCase()}`;
}

/** @throws RangeError  not an unsigned 64-bit number */
export function asLsn(value: bigint): Lsn {
  if (value < 0n || value >= 1n << 64n) throw new RangeError(`${value} is not an LSN`);
  return value as Lsn;
}
