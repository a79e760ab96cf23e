/** Runs a command with a trouble at its n-th request to the store, for every n. */
import type { Exchange, Fault, FaultProxy, Where } from "./fault-proxy.ts";
import { FAULTS, type NamedFault, s3Error } from "./faults.ts";

/** Whether every fault is tried at every request; otherwise each request gets its share, the same in every run. */
export const SWEEPS_ALL = process.env["WALB_TEST_SWEEP"] === "full";

/**
 * How far it is from one request to the next that meets a trouble: on the first server there is, and in a full sweep, every one
 * does; on the others, whose answers differ little, some.
 */
export const stepOn = (serverIndex: number, step: number): number => (SWEEPS_ALL || serverIndex === 0 ? 1 : step);

/** For one test: a sweep is long where the machine is slow. */
export const SWEEP_LIMIT_MS = (SWEEPS_ALL ? 120 : 5) * 60_000;

/**
 * @param trial  gets n, and runs the command from the same beginning; the proxy has been armed
 * @returns how many requests met the fault: it was tried at every one of them
 */
export async function atEveryRequest(
  proxy: FaultProxy,
  fault: Fault,
  { times = 1, only }: Pick<Where, "times" | "only">,
  trial: (n: number) => Promise<void>,
): Promise<number> {
  for (let n = 1; ; n++) {
    await proxy.arm(fault, { from: n, times, ...(only && { only }) });
    await trial(n);
    // The command came to its end before its n-th request.
    if (proxy.answered === 0) return n - 1;
  }
}

/** Those of all faults that are tried at the n-th request: each request gets `share` of them, and the next one the next. */
export function faultsAt(n: number, share: number, faults: readonly NamedFault[] = FAULTS): readonly NamedFault[] {
  if (SWEEPS_ALL) return faults;
  const first = (n - 1) * share;
  return Array.from(
    { length: Math.min(share, faults.length) },
    (_, i) => faults[(first + i) % faults.length] as NamedFault,
  );
}

/** What a command that meets a fault once may end with. A 200 with other content than the object's cannot be told from damage but by reading it. */
export function exitCodesOf({ name, consequence }: NamedFault): readonly number[] {
  if (/\b200\b/.test(name)) return EXIT_CODES.damage;
  return EXIT_CODES[consequence];
}

const EXIT_CODES = { "asks again": [0], none: [0], access: [77], usage: [64], damage: [0, 65, 69] } as const;

/** HEAD's refusal has no code, so GET is asked for the reason, and answers. */
export const isAskedAgain = (request = ""): boolean => request.startsWith("HEAD ");

/** The first request is carried out and its answer lost; from then on nothing arrives any more. */
export function storeIsGone(): Fault {
  let isFirst = true;
  return async (exchange) => {
    const carriesOut = isFirst;
    isFirst = false;
    if (carriesOut) await exchange.pass();
    else await exchange.read();
    exchange.reset();
  };
}

/** Calls `kill` when the request arrives, or when the server has carried it out; it is never answered. */
export function killing(when: "on arrival" | "carried out", kill: () => void): Fault {
  return async (exchange: Exchange) => {
    if (when === "carried out") await exchange.pass();
    else await exchange.read();
    kill();
    exchange.cut();
  };
}

/** The credentials do not suffice, this once. */
export const refused: Fault = async (exchange) => {
  await exchange.read();
  await exchange.send(s3Error(403, "AccessDenied"));
};
