/**
 * A clock of its own for one program, by libfaketime; what measures durations goes on as it is, as it does when an admin sets a clock.
 *
 * Left to itself, libfaketime gives the monotonic clock the time of day: before 1970 a negative one, which no kernel has, and with
 * which Bun's timers are never due (measured with Bun 1.4.5: a program of nothing but setTimeout() does not end).
 */
import { existsSync } from "node:fs";
import { readdir, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { processIsAlive } from "./process-tree.ts";
import { canInstallPackages, installPackages } from "./system-packages.ts";

const findLibrary = () =>
  ["x86_64-linux-gnu", "aarch64-linux-gnu"]
    .map((machine) => `/usr/lib/${machine}/faketime/libfaketime.so.1`)
    .find((path) => existsSync(path));
if (findLibrary() === undefined && canInstallPackages()) await installPackages(["libfaketime"]);
const LIBRARY = findLibrary();

/** False, said once, where there is no libfaketime: the tests that need it are then skipped, and counted. */
export const canFakeClock = LIBRARY !== undefined;
if (!canFakeClock)
  process.stderr.write("not tested: clocks that are wrong or jump: that needs the package libfaketime\n");

/**
 * @param directory  for the file that says how wrong the clock is
 * @returns the environment for the program; and what sets its clock while it runs
 */
export async function fakeClock(directory: string, offset: string) {
  const path = join(directory, "clock");
  const set = async (by: string) => {
    // The program reads the file each time that it asks for the time, and must not find it empty.
    await writeFile(`${path}.new`, `${by}\n`, { mode: 0o644 });
    await rename(`${path}.new`, path);
  };
  await set(offset);
  await forgetEndedPrograms();
  const env = {
    LD_PRELOAD: LIBRARY as string,
    FAKETIME_TIMESTAMP_FILE: path,
    FAKETIME_NO_CACHE: "1",
    DONT_FAKE_MONOTONIC: "1",
  };
  return { env, set };
}

/**
 * libfaketime gives each program a semaphore and shared memory named after its process id, and a program of Bun's ends without
 * removing them. A later one with the same id fails where it finds the one and not the other (0.9.10: "shm_open failed: File exists").
 */
async function forgetEndedPrograms(): Promise<void> {
  for (const name of await readdir("/dev/shm").catch(() => [])) {
    const [, pid] = /^(?:sem\.faketime_sem|faketime_shm)_(\d+)$/.exec(name) ?? [];
    if (pid === undefined || processIsAlive(Number(pid))) continue;
    // Another account's stays.
    await rm(join("/dev/shm", name), { force: true }).catch(() => undefined);
  }
}
