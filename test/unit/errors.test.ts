import { describe, expect, test } from "bun:test";
import * as errors from "../../src/errors.ts";
import {
  EXIT_CODES,
  EXIT_RECOVERY_MUST_STOP,
  exitCodeOf,
  Failure,
  InterruptedError,
  reasonOf,
  systemCodeOf,
  textOf,
} from "../../src/errors.ts";

/** Every class of failure there is, by its name. */
const CLASSES = Object.entries(errors).filter(
  ([, value]) => typeof value === "function" && value.prototype instanceof Failure && value !== InterruptedError,
) as unknown as [string, new (message: string, text?: errors.FailureText) => Failure][];

describe("exit codes", () => {
  test("are unique, never 1, and below 126 but for the one that stops recovery", () => {
    const codes = EXIT_CODES.map(({ code }) => code);
    expect(new Set(codes).size).toBe(codes.length);
    expect(codes).not.toContain(1);
    expect(codes.filter((code) => code > 125)).toEqual([EXIT_RECOVERY_MUST_STOP]);
    // 126 and 127 are the shell's, 128 + n a signal's, and 255 is what ssh and others end with.
    expect(EXIT_RECOVERY_MUST_STOP).toBeGreaterThan(128 + 64);
    expect(EXIT_RECOVERY_MUST_STOP).toBeLessThan(255);
  });

  test("every class of failure stands in the table under its own name, and nothing else does", () => {
    expect(CLASSES.length).toBeGreaterThanOrEqual(8);
    const ofClasses = CLASSES.map(([name, Class]) => ({ name, code: new Class("x").exitCode }));
    const inTable = EXIT_CODES.map(({ name, code }) => ({ name, code })).filter(({ name }) => name.endsWith("Error"));
    expect(inTable).toEqual(ofClasses.toSorted((a, b) => a.code - b.code));
  });

  test("what is no failure of ours is a bug", () => {
    for (const thrown of [new Error("x"), "x", undefined, null, 1]) expect(exitCodeOf(thrown)).toBe(70);
  });

  test.each([
    ["SIGHUP", 1, 129],
    ["SIGINT", 2, 130],
    ["SIGTERM", 15, 143],
  ])("%s is 128 + its number", (name, number, code) =>
    expect(exitCodeOf(new InterruptedError(name, number))).toBe(code),
  );
});

describe("textOf()", () => {
  test("shows PostgreSQL's three parts", () => {
    const failure = new errors.StorageError("could not write", { detail: "It is full.", hint: "Free some space." });
    expect(textOf(failure)).toBe("could not write\nDETAIL: It is full.\nHINT: Free some space.");
    expect(textOf(new errors.StorageError("could not write"))).toBe("could not write");
  });

  test("shows the stack of a bug", () => {
    expect(textOf(new TypeError("oops"))).toMatch(
      /^unexpected failure, please report it: TypeError: oops\n[\s\S]*errors\.test\.ts/,
    );
    expect(textOf("oops")).toBe("unexpected failure, please report it: oops");
  });
});

test("reasonOf() is a cause in short, with its code once", () => {
  expect(reasonOf(Object.assign(new Error("no space left"), { code: "ENOSPC" }))).toBe("ENOSPC: no space left");
  expect(reasonOf(Object.assign(new Error("ENOSPC: no space left"), { code: "ENOSPC" }))).toBe("ENOSPC: no space left");
  expect(reasonOf(new Error("plain"))).toBe("plain");
  expect(reasonOf("text")).toBe("text");
});

test("systemCodeOf() knows codes that are texts", () => {
  expect(systemCodeOf(Object.assign(new Error("x"), { code: "ENOENT" }))).toBe("ENOENT");
  expect(systemCodeOf(Object.assign(new Error("x"), { code: 7 }))).toBeUndefined();
  expect(systemCodeOf({ code: "ENOENT" })).toBeUndefined();
});
