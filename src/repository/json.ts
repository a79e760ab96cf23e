/** JSON with 64-bit integers: WAL-G writes system identifiers and LSNs as plain JSON numbers above 2^53. */
import { IntegrityError, reasonOf } from "../errors.ts";
import { escapedJson } from "../system/printable.ts";

declare global {
  interface JSON {
    /** ECMAScript: JSON.parse source text access. */
    rawJSON(text: string): unknown;
  }
}

/** bigints become plain integers. */
export function formatJson(value: unknown, indent?: number): string {
  const withIntegers = (_: string, part: unknown) => (typeof part === "bigint" ? JSON.rawJSON(part.toString()) : part);
  return escapedJson(JSON.stringify(value, withIntegers, indent));
}

type Reviver = (this: unknown, key: string, value: unknown, context: { readonly source?: string }) => unknown;

/** Integers that a number cannot hold become bigints; all others stay numbers. */
const keepLargeIntegers: Reviver = (_, value, { source }) =>
  typeof value === "number" && !Number.isSafeInteger(value) && source !== undefined && /^-?\d+$/.test(source)
    ? BigInt(source)
    : value;

/**
 * @param what      how messages name the text
 * @param integers  "large" keeps those that a number cannot hold, and takes several times the memory
 * @throws IntegrityError  not JSON
 */
export function parseJson(text: string, what: string, integers: "large" | "small" = "large"): unknown {
  try {
    return integers === "small"
      ? JSON.parse(text)
      : JSON.parse(text, keepLargeIntegers as (key: string, value: unknown) => unknown);
  } catch (cause) {
    throw new IntegrityError(`${what} is not valid JSON`, { detail: `${reasonOf(cause)}.`, cause });
  }
}

/**
 * Reads the fields of a JSON object that came from the archive, and refuses what has the wrong type by name.
 * Names are matched as they are written; WAL-G and WAL-E use different ones.
 */
export class JsonFields {
  readonly #fields: Readonly<Record<string, unknown>>;
  readonly #what: string;

  constructor(value: unknown, what: string) {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw new IntegrityError(`${what} is not a JSON object`);
    this.#fields = value as Record<string, unknown>;
    this.#what = what;
  }

  static parse(text: string, what: string, integers: "large" | "small" = "large"): JsonFields {
    return new JsonFields(parseJson(text, what, integers), what);
  }

  /** Everything, also what we do not know. */
  get raw(): Readonly<Record<string, unknown>> {
    return this.#fields;
  }

  text(name: string): string | undefined {
    return this.#read(name, "a text", (value) => (typeof value === "string" ? value : undefined));
  }

  integer(name: string): number | undefined {
    return this.#read(name, "an integer", (value) => (Number.isSafeInteger(value) ? (value as number) : undefined));
  }

  number(name: string): number | undefined {
    return this.#read(name, "a number", (value) => (typeof value === "number" ? value : undefined));
  }

  bigint(name: string): bigint | undefined {
    return this.#read(name, "an integer", (value) =>
      typeof value === "bigint" ? value : Number.isSafeInteger(value) ? BigInt(value as number) : undefined,
    );
  }

  flag(name: string): boolean | undefined {
    return this.#read(name, "true or false", (value) => (typeof value === "boolean" ? value : undefined));
  }

  date(name: string): Date | undefined {
    return this.#read(name, "a time", (value) => {
      const date = new Date(typeof value === "string" ? value : Number.NaN);
      return Number.isNaN(date.getTime()) ? undefined : date;
    });
  }

  object(name: string): JsonFields | undefined {
    return this.#read(name, "an object", (value) =>
      typeof value === "object" && value !== null ? new JsonFields(value, `"${name}" of ${this.#what}`) : undefined,
    );
  }

  texts(name: string): readonly string[] | undefined {
    return this.#read(name, "a list of texts", (value) =>
      Array.isArray(value) && value.every((item) => typeof item === "string") ? (value as string[]) : undefined,
    );
  }

  names(): readonly string[] {
    return Object.keys(this.#fields);
  }

  /** @param value  what one of the readers above returned */
  required<Value>(name: string, value: Value | undefined): Value {
    if (value === undefined) throw new IntegrityError(`${this.#what} has no "${name}"`);
    return value;
  }

  #read<Value>(name: string, expected: string, convert: (value: unknown) => Value | undefined): Value | undefined {
    const value = Object.hasOwn(this.#fields, name) ? this.#fields[name] : undefined;
    if (value === undefined || value === null) return undefined;
    const converted = convert(value);
    if (converted === undefined) throw new IntegrityError(`"${name}" of ${this.#what} is not ${expected}`);
    return converted;
  }
}
