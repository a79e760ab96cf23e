import { afterAll, expect, test } from "bun:test";
import { appendFile, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { asLsn } from "../../../src/postgres/lsn.ts";
import { ServerLog } from "../../../src/postgres/server-log.ts";

const directory = await mkdtemp(join(tmpdir(), "walb-log-"));
afterAll(async () => await rm(directory, { recursive: true }));

test("what recovery tells is read as it comes, also a line that comes in two halves", async () => {
  const log = new ServerLog(join(directory, "growing"));
  const write = async (text: string) => await appendFile(log.path, text);
  await write("2026-11-23 17:27:53.481 UTC LOG:  redo starts at 0/2000028\n2026-11-23 17:27:53.600 UTC LOG:  resto");
  expect(await log.read()).toEqual({
    redoStart: { lsn: asLsn(0x2000028n), at: new Date("2026-11-23T17:27:53.481Z") },
  });
  await write('red log file "000000010000000000000004" from archive\n');
  expect(await log.read()).toMatchObject({ lastRestored: "000000010000000000000004" });
  await write(
    "2026-11-23 17:27:54.000 UTC LOG:  recovery stopping after commit of transaction 731, time 2026-11-23 17:00:00\n" +
      // From 15 on it goes on behind the position.
      "2026-11-23 17:27:54.481 UTC LOG:  redo done at 1/5000110 system usage: CPU: user: 0.01 s\n",
  );
  expect(await log.read()).toMatchObject({
    stoppedAtTarget: true,
    redoDone: { lsn: asLsn(0x1_0500_0110n), at: new Date("2026-11-23T17:27:54.481Z") },
  });
});

test.each([
  "before commit of transaction 731, time 2026-11-23 17:00:00+00",
  "after abort of transaction 731, time 2026-11-23 17:00:00+00",
  'before WAL location (LSN) "0/3000060"',
  'after WAL location (LSN) "0/3000060"',
  'at restore point "before release", time 2026-11-23 17:00:00+00',
  "after reaching consistency",
])("recovery came to its target: %s", async (where) => {
  const log = new ServerLog(join(directory, where.replace(/\W/g, "-")));
  await appendFile(log.path, `2026-11-23 17:27:54.000 UTC LOG:  recovery stopping ${where}\n`);
  expect(await log.read()).toEqual({ stoppedAtTarget: true });
});

test("its end is short, and has what went wrong instead of what is said of each segment", async () => {
  const log = new ServerLog(join(directory, "long"));
  const restored = '2026-11-23 17:27:53.600 UTC LOG:  restored log file "000000010000000000000004" from archive\n';
  const chatter = `wal-b: INFO: restored "000000010000000000000004" from the archive\n${restored}`;
  await appendFile(log.path, `${chatter.repeat(3000)}${"a line\n".repeat(50)}${chatter.repeat(50)}`);
  const fatal =
    '2026-11-23 17:27:54.481 UTC FATAL:  could not restore file "000000010000000000000005" from archive: child process exited with exit code 200';
  await appendFile(log.path, `${fatal}\n`);
  expect(await log.read()).toEqual({
    lastRestored: "000000010000000000000004",
    notRestored: "000000010000000000000005",
  });
  expect(log.lastLines).toBe([...Array.from({ length: 11 }, () => "a line"), fatal].join("\n"));
});
