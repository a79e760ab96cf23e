/**
 * Tests over random cases: each case has a seed of its own, which a failure tells together with the command that repeats it.
 *
 * WALB_TEST_SEED is the first case's seed ("random" takes one by chance), WALB_TEST_CASES how many follow it. Without them a run
 * is the same every time, so that no change is blamed for what another one did; hunts for more are started by hand.
 */
import { test } from "bun:test";
import { relative } from "node:path";
import { ROOT } from "./golden.ts";
import { type Random, random } from "./random.ts";

const CASES = Number(process.env["WALB_TEST_CASES"] ?? 100);
const GIVEN = process.env["WALB_TEST_SEED"] ?? "1";
const FIRST_SEED = GIVEN === "random" ? Math.floor(Math.random() * 2 ** 31) : Number(GIVEN);
const IS_ONE_CASE = process.env["WALB_TEST_CASES"] === "1";

/** Of one case, in time of the processor, which other programs do not take: input that makes a reader slow is a failure too. */
const MAX_CASE_MS = 5_000;

/** Bun's own limit, 5 s, is for one case; test/run.ts ends a file that takes too long. */
const HUNT_MS = 60 * 60_000;

export interface PropertyOptions {
  /** For cases that take long: one instead of so many. */
  readonly oneOf?: number;
}

/** @param check  throws where the property does not hold */
export function property(
  name: string,
  check: (random: Random) => void | Promise<void>,
  { oneOf = 1 }: PropertyOptions = {},
): void {
  const file = relative(ROOT, Bun.main);
  const cases = Math.max(IS_ONE_CASE ? 1 : 3, Math.ceil(CASES / oneOf));
  const checkAll = async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + cases; seed++) {
      const before = process.cpuUsage();
      try {
        await check(random(seed));
        const { user, system } = process.cpuUsage(before);
        const ms = (user + system) / 1000;
        if (ms > MAX_CASE_MS) throw new Error(`the case took ${ms.toFixed(0)} ms of the processor`);
      } catch (cause) {
        const repeat = `WALB_TEST_SEED=${seed} WALB_TEST_CASES=1 bun test ./${file} -t '${name}'`;
        const where = cause instanceof Error ? `\n${cause.stack?.slice(-MAX_TOLD)}` : "";
        throw new Error(`seed ${seed}: ${told(cause)}\nAgain: ${repeat}${where}`);
      }
    }
  };
  test(name, checkAll, HUNT_MS);
}

const told = (cause: unknown) =>
  (cause instanceof Error ? `${cause.name}: ${cause.message}` : String(cause)).slice(0, MAX_TOLD);

/** Random texts are long now and then. */
const MAX_TOLD = 2_000;

type ErrorClass = abstract new (...args: never[]) => Error;

/**
 * @returns what the work answers; undefined when it fails in one of these ways
 * @throws Error  it failed in another way
 */
export async function answerOf<Value>(
  documented: readonly ErrorClass[],
  work: () => Value | Promise<Value>,
): Promise<Value | undefined> {
  try {
    return await work();
  } catch (error) {
    if (documented.some((kind) => error instanceof kind)) return undefined;
    throw error;
  }
}
