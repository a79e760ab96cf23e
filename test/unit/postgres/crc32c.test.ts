import { expect, test } from "bun:test";
import { crc32c } from "../../../src/postgres/crc32c.ts";

test.each([
  // The check value of the CRC catalogue, then those of RFC 3720, appendix B.4.
  ["the digits 1 to 9", Buffer.from("123456789"), 0xe3069283],
  ["nothing", Buffer.alloc(0), 0],
  ["32 bytes of zeros", Buffer.alloc(32), 0x8a9136aa],
  ["32 bytes of ones", Buffer.alloc(32, 0xff), 0x62a8ab43],
  ["32 rising bytes", Buffer.from(Array.from({ length: 32 }, (_, i) => i)), 0x46dd794e],
])("crc32c() of %s", (_, bytes, expected) => {
  expect(crc32c(bytes)).toBe(expected);
});
