import { expect, test } from "bun:test";
import { asLsn, formatLsn, parseLsn } from "../../../src/postgres/lsn.ts";

test.each([
  ["0/0", 0n],
  ["0/1", 1n],
  ["16/B374D848", 0x16_b374_d848n],
  ["1/0", 1n << 32n],
  ["FFFFFFFF/FFFFFFFF", (1n << 64n) - 1n],
])("parseLsn() and formatLsn(): %s", (text, value) => {
  expect(parseLsn(text)).toBe(asLsn(value));
  expect(formatLsn(asLsn(value))).toBe(text);
});

test("parseLsn() takes lower case and leading zeros, as pg_lsn does", () => {
  expect(parseLsn("00000016/b374d848")).toBe(asLsn(0x16_b374_d848n));
});

test.each(["", "/", "0", "0/", "/0", "0/0/0", "123456789/0", "0/123456789", "G/0", "0x1/0", " 0/0", "0/0\n", "-1/0"])(
  "parseLsn() refuses %p",
  (text) => expect(parseLsn(text)).toBeUndefined(),
);

test("asLsn() refuses what has no 64 bits", () => {
  expect(() => asLsn(-1n)).toThrow(RangeError);
  expect(() => asLsn(1n << 64n)).toThrow(RangeError);
});
