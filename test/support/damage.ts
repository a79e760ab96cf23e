/** Damage as disks, networks and attackers do it: to bytes, to text, and to JSON that stays JSON. */
import type { Random } from "./random.ts";

/** 1 to 4 changes. @param others  what pieces of other content are taken from */
export function damagedBytes(bytes: Uint8Array, random: Random, others: readonly Uint8Array[] = []): Uint8Array {
  let damaged = Buffer.from(bytes);
  for (let changes = 1 + random.below(4); changes > 0; changes--) damaged = changed(damaged, random, others);
  return damaged;
}

function changed(bytes: Buffer, random: Random, others: readonly Uint8Array[]): Buffer<ArrayBuffer> {
  const at = random.below(bytes.byteLength + 1);
  const end = Math.min(bytes.byteLength, at + random.pick([1, 4, 8, 100, 512, 1 + random.below(bytes.byteLength + 1)]));
  const [before, piece, after] = [bytes.subarray(0, at), bytes.subarray(at, end), bytes.subarray(end)];
  switch (random.below(9)) {
    case 0: {
      const copy = Buffer.from(bytes);
      if (at < copy.byteLength) copy[at] = (copy[at] as number) ^ (1 << random.below(8));
      return copy;
    }
    case 1:
      return Buffer.from(before);
    case 2:
      return Buffer.concat([before, piece, piece, after]);
    case 3:
      return Buffer.concat([before, after]);
    case 4:
      return Buffer.concat([before, random.bytes(piece.byteLength), after]);
    case 5:
      return Buffer.concat([before, Buffer.alloc(piece.byteLength, random.pick([0, 0xff, 0x20, 0x0a])), after]);
    case 6: {
      const number = Buffer.alloc(random.pick([1, 2, 4, 8]), 0xff);
      if (random.once(2)) number.fill(0).writeUInt8(0x80, random.pick([0, number.byteLength - 1]));
      return Buffer.concat([before, number, bytes.subarray(at + number.byteLength)]);
    }
    case 7: {
      const other = random.pick([...others, bytes]);
      const from = random.below(other.byteLength + 1);
      return Buffer.concat([before, other.subarray(from, from + 1 + random.below(other.byteLength + 1)), after]);
    }
    default:
      return Buffer.concat([before, random.bytes(random.below(64)), bytes.subarray(at)]);
  }
}

/** What breaks readers that believe in well-meant text. */
const PIECES = [
  ...[
    "",
    "\0",
    "\n",
    "\r\n",
    "\t",
    " ",
    "\u2028",
    "\ufeff",
    "\ud800",
    "é",
    "💥",
    "/",
    "..",
    "\\",
    '"',
    "'",
    ":",
    "=",
    "%",
    "-",
  ],
  ...[
    "-1",
    "0",
    "00",
    "1e309",
    "0x10",
    "18446744073709551616",
    "9007199254740993",
    "99999999999999999999999999999999999",
  ],
  ...[
    "FFFFFFFF/FFFFFFFF",
    "100000000/0",
    "ffffffffffffffffffffffff",
    "NaN",
    "null",
    "true",
    "__proto__",
    "constructor",
  ],
];

export function damagedText(text: string, random: Random): string {
  let damaged = text;
  for (let changes = 1 + random.below(3); changes > 0; changes--) {
    const at = random.below(damaged.length + 1);
    const end = at + random.pick([0, 1, 8, 1 + random.below(damaged.length + 1)]);
    const words = damaged.split(/(\s+|[^\w\s])/);
    switch (random.below(6)) {
      case 0:
        damaged = damaged.slice(0, at);
        break;
      case 1:
        damaged = damaged.slice(0, end) + damaged.slice(at);
        break;
      case 2:
        damaged = damaged.slice(0, at) + damaged.slice(end);
        break;
      case 3:
        words[random.below(words.length)] = random.pick(PIECES);
        damaged = words.join("");
        break;
      case 4:
        damaged = damaged.slice(0, at) + random.pick(PIECES).repeat(random.pick([1, 2, 20_000])) + damaged.slice(at);
        break;
      default:
        damaged = new TextDecoder().decode(damagedBytes(new TextEncoder().encode(damaged), random));
    }
  }
  return damaged;
}

/** A text of any letters, of every kind that a name or value can have. */
export const anyText = (random: Random, most = 12): string =>
  random.list(most, () => (random.once(4) ? random.pick(PIECES) : String.fromCharCode(33 + random.below(94)))).join("");

/** The same document with some of its values, names or members changed; numbers as they are written. */
export function damagedJson(text: string, random: Random): string {
  const tokens = text.match(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[[\]{}:,]/g) ?? [];
  for (let changes = 1 + random.below(3); changes > 0; changes--) {
    const values = tokens.flatMap((token, at) => (/^[[\]{}:,]$/.test(token) ? [] : [at]));
    if (values.length === 0) break;
    const at = random.pick(values);
    if (tokens[at + 1] === ":")
      tokens[at] = random.pick(['"__proto__"', '"constructor"', '""', `"${"x".repeat(20_000)}"`]);
    else if (random.once(3)) tokens[at] = tokens[random.pick(values)] as string;
    else tokens[at] = valueOfAnyKind(random);
  }
  return tokens.join("");
}

function valueOfAnyKind(random: Random): string {
  const depth = random.pick([1, 1_000, 50_000]);
  return random.pick([
    ...[
      "null",
      "true",
      "0",
      "-1",
      "1.5",
      "1e309",
      "-0",
      "{}",
      "[]",
      '""',
      '"text"',
      '"\\u0000"',
      '"\\ud800"',
      "[null]",
      "[[]]",
    ],
    ...["18446744073709551616", "9007199254740993", "-9223372036854775809", "9".repeat(5_000)],
    ...[
      '{"__proto__":{"a":1}}',
      '"2026-11-23T00:00:00Z"',
      '"275760-09-14"',
      '"-000001-01-01T00:00:00Z"',
      `"${"x".repeat(100_000)}"`,
    ],
    ...[`${"[".repeat(depth)}${"]".repeat(depth)}`, `${'{"a":'.repeat(depth)}1${"}".repeat(depth)}`],
  ]);
}
