/** libfaketime's programs do not meet what earlier ones with their process ids have left. */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { rm, writeFile } from "node:fs/promises";
import { canFakeClock, fakeClock } from "../../support/fake-clock.ts";
import { temporaryDirectory } from "../../support/temporary-directory.ts";

const [SEMAPHORE, MEMORY] = ["/dev/shm/sem.faketime_sem_", "/dev/shm/faketime_shm_"] as const;

test.skipIf(!canFakeClock)(
  "what a program that has ended left is removed, and what a running one uses is not",
  async () => {
    await using directory = await temporaryDirectory();
    const { pid } = Bun.spawnSync(["true"]);
    const [ended, running] = [pid, process.pid].map((id) => [`${SEMAPHORE}${id}`, `${MEMORY}${id}`] as const);
    for (const path of [...(ended ?? []), ...(running ?? [])]) await writeFile(path, "");
    try {
      await fakeClock(directory.path, "+1h");
      expect([ended, running].map((paths) => paths?.map((path) => existsSync(path)))).toEqual([
        [false, false],
        [true, true],
      ]);
    } finally {
      for (const path of running ?? []) await rm(path, { force: true });
    }
  },
);
