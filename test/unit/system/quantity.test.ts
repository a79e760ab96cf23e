import { expect, test } from "bun:test";
import { formatBytes, formatSeconds } from "../../../src/system/quantity.ts";

test.each([
  [0, "0.0 MiB"],
  [400_000, "0.4 MiB"],
  [2 ** 30 - 1, "1024.0 MiB"], // rounded, like every figure
  [2 ** 30, "1.0 GiB"],
  [1.5 * 2 ** 40, "1.5 TiB"],
  [2 ** 62, "4096.0 PiB"], // nothing above
])("formatBytes(%d) is %s", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

test.each([
  [0, "0 s"],
  [0.2, "1 s"],
  [99, "99 s"],
  [100, "2 min"],
  [5940, "99 min"],
  [6000, "1 h 40 min"],
  [36_240, "10 h 04 min"],
])("formatSeconds(%d) is %s", (seconds, text) => expect(formatSeconds(seconds)).toBe(text));
