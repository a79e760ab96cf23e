/** A guard of a promise: what is taken out of the program, and the test that must notice. */

export interface Guard {
  /** Of README.md's list. */
  readonly promise: number;
  /** What it sees to. */
  readonly guards: string;
  /** Below src/. */
  readonly file: string;
  /** Stands in the file exactly once, so that the list cannot rot. */
  readonly search: string;
  readonly replacement: string;
  /** The file that must fail. */
  readonly test: string;
  /** A part of the name of a test that must fail, as seen when the guard was taken out. */
  readonly fails: string;
  /** "servers": PostgreSQL or S3 are started; "program": the executable is built; undefined: neither. */
  readonly needs?: "program" | "servers";
}

export const ofPromise = (promise: number, guards: readonly Omit<Guard, "promise">[]): readonly Guard[] =>
  guards.map((guard) => ({ promise, ...guard }));
