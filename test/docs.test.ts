/** Documents that are made from the program: settings, exit codes, and what its commands say of themselves. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { allCommands, GLOBAL_OPTIONS, runProgram } from "../src/cli/program.ts";
import { initialTextOf, SETTING_NAMES, SETTINGS, type SettingName, variablesOf } from "../src/config/settings.ts";
import { EXIT_CODES, EXIT_RECOVERY_MUST_STOP } from "../src/errors.ts";
import { GUARDS } from "./guards/list.ts";
import { withoutGuard } from "./guards/take-out.ts";
import { expectGolden, ROOT } from "./support/golden.ts";

const MADE_BY = "<!-- Made by UPDATE_GOLDEN=1 bun test test/docs.test.ts; do not edit. -->\n";

test("docs/settings.md has every setting", async () => {
  const long = (await allCommands()).filter(({ isLong }) => isLong).map(({ name }) => name);
  const initialOf = (name: SettingName) => {
    const [initial, ofLong] = [initialTextOf(name), initialTextOf(name, { isLong: true })];
    return ofLong === initial ? (initial ?? "") : `${initial}; ${ofLong} for ${long.join(", ")}`;
  };
  const rows = SETTING_NAMES.map((name) => {
    const row = SETTINGS[name];
    const [first = "", ...others] = variablesOf(name);
    const flag = row.flag === undefined ? "" : `\`--${row.flag}\``;
    return `| \`${first}\` | ${flag} | ${cell(row.help)}${row.secret ? " (secret)" : ""} | ${cell(row.allowed())} | ${initialOf(name)} | ${others.map((other) => `\`${other}\``).join(" ")} |`;
  });
  expectGolden(
    "docs/settings.md",
    `# Settings

${MADE_BY}
A flag beats every variable. Then the variable of the first column counts, then those of the last column, in their order. An empty
variable is as good as none. What is wrong is an error that names the variable, what was found and what is allowed; so is a
\`WALB_\` variable that is not listed here. Sizes take \`kB\`, \`MB\` and \`GB\`, which are powers of 1024 as in postgresql.conf; times take
\`ms\`, \`s\`, \`min\` and \`h\`, and a bare number is seconds. Which command takes which flag: \`wal-b COMMAND --help\`.

| variable | flag | what for | allowed | if not set | also read from |
| --- | --- | --- | --- | --- | --- |
${rows.join("\n")}
`,
  );
});

test("a flag that sets a setting is the one that errors and docs/settings.md name", async () => {
  const options = [GLOBAL_OPTIONS, ...(await allCommands()).map((command) => command.options)];
  for (const [flag, { setting }] of options.flatMap((each) => Object.entries(each))) {
    if (setting !== undefined) expect({ setting, flag: SETTINGS[setting].flag }).toEqual({ setting, flag });
  }
});

/** What PostgreSQL's archiver and recovery make of a command's end. */
function postgresqlMakesOf(code: number): {
  readonly archiving: string;
  readonly recovery: string;
  readonly standby: string;
} {
  if (code === 0)
    return {
      archiving: "marks the file done and may recycle it",
      recovery: "replays the file",
      standby: "replays the file",
    };
  if (code === EXIT_RECOVERY_MUST_STOP)
    return {
      archiving: "never used there",
      recovery: "stops; started again, it goes on from there",
      standby: "never used there",
    };
  if (code === 74) {
    return {
      archiving: "tries again, and counts it in pg_stat_archiver",
      recovery: "takes it for the end of WAL: ends recovery there",
      standby: "asks again",
    };
  }
  return {
    archiving: "tries again, and counts it in pg_stat_archiver",
    recovery: `never sees it: wal-fetch ends with ${EXIT_RECOVERY_MUST_STOP}`,
    standby: "asks again",
  };
}

test("docs/exit-codes.md has every exit code, and what PostgreSQL makes of it", () => {
  const rows = EXIT_CODES.map(({ code, name, meaning }) => {
    const { archiving, recovery, standby } = postgresqlMakesOf(code);
    return `| ${code} | ${name} | ${meaning} | ${archiving} | ${recovery} | ${standby} |`;
  });
  expectGolden(
    "docs/exit-codes.md",
    `# Exit codes

${MADE_BY}
| code | name | meaning | as archive_command | as restore_command under recovery.signal | under standby.signal |
| --- | --- | --- | --- | --- | --- |
${rows.join("\n")}
| 128 + n | signal n | a signal ended it, such as 143 for SIGTERM | ends the archiver process, which is started again within a minute; not counted | 143: the server shuts down; any other: it stops | the server shuts down |

1 is never used: it is what a runtime ends with when something escapes, and PostgreSQL would take it for the end of WAL.

## Why wal-fetch has two codes for one failure

PostgreSQL takes any code from 1 to 125 of restore_command as "there is no such file". Under \`recovery.signal\` without a target it then
promotes, and everything after that point is lost; with a target it stops with "recovery ended before configured recovery target was
reached", but PostgreSQL 12 promotes then, too. Above 125 it stops and can be started again. A standby is the other way round: it asks again after 1 to 125, and shuts down
on anything above. So a failure that proves nothing ends with ${EXIT_RECOVERY_MUST_STOP} in recovery, and with its usual code on a standby and elsewhere.

Measured on PostgreSQL 12, 15 and 18, with a later segment in the archive:

| restore_command ends with | recovery.signal, no target | recovery.signal and a time as target | standby.signal |
| --- | --- | --- | --- |
| 0, and no file | promotes: data is lost | FATAL, target not reached; 12 promotes | asks again |
| 0, and a file of the wrong size | FATAL | FATAL | asks again when short, shuts down when long |
| 1, 100, 125 | promotes: data is lost | FATAL, target not reached; 12 promotes | asks again |
| 126, 127, 200, killed by signal 9 | FATAL; started again, it goes on | FATAL | shuts down |
| 143, or SIGTERM | shuts down without FATAL | shuts down | shuts down |

## What stands in the server's log

What wal-b says stands above the server's line. The same on PostgreSQL 12, 15 and 18:

| line | what happened, and what comes next |
| --- | --- |
| \`LOG:  archive command failed with exit code 69\` | wal-push failed, here because of the store. The segment stays in pg_wal, and PostgreSQL tries again |
| \`LOG:  archive command failed with exit code 65\` below \`"….partial" is already archived with different content\` | two servers were promoted inside this segment, one after the other. The new timeline's segments are archived all the same, ahead of their turn. Recovery never reads a partial segment: keep a copy if you want one, and rename its mark in pg_wal/archive_status from \`.ready\` to \`.done\` |
| \`LOG:  archive command failed with exit code 65\` below \`"….history" is already archived with different content\` | two servers were promoted to the same timeline. Nothing of the second one is archived: restore it again and promote it with a restore_command that reaches the archive, or give it a prefix of its own and take a base backup |
| \`WARNING:  archiving write-ahead log file "…" failed too many times, will try again later\` | the third time in a row; the next try is within a minute |
| \`FATAL:  archive command failed with exit code 143\` | somebody ended wal-push with SIGTERM. The archiver ends with it, and another one is started within a minute |
| \`FATAL:  archive command was terminated by signal 15: Terminated\` | the same, and the shell between got the signal, too |
| \`FATAL:  could not restore file "…" from archive: child process exited with exit code ${EXIT_RECOVERY_MUST_STOP}\` | wal-fetch could not find out. The server stops; mend what wal-b names, and start it: it goes on from there |
| \`FATAL:  could not restore file "…" from archive: command not found\` | 127, of the shell: there is no wal-b where restore_command says. It stops as well |
| \`FATAL:  could not restore file "…" from archive: child process was terminated by signal 9: Killed\` | the kernel was out of memory, or somebody killed wal-fetch. It stops as well |
| \`FATAL:  recovery ended before configured recovery target was reached\` | 13 and later: the archive ends before the target. The backup is as good as before; choose another target |
| \`LOG:  startup process (PID …) exited with exit code 1\` without a FATAL before it | somebody ended wal-fetch with SIGTERM: the server stops |
| \`LOG:  archive recovery complete\` | recovery is over, and the server has a timeline of its own |

## When the server is stopped while the store hangs

Stopped (fast), PostgreSQL has what is left archived, and waits for it: it does not signal archive_command, and tries a file that fails up to six times
(measured on 12, 15 and 18). One try takes about as long as \`WALB_RETRY_DEADLINE\` and two \`WALB_IDLE_TIMEOUT\` at most: with what they are
initially for wal-push, a store that refuses holds the server for 6 minutes, one that takes connections and says nothing for up to 12. A service manager that has less
patience kills the server. Set the two lower for wal-push alone (a backup would give up as soon, too), or end wal-push: SIGTERM ends it at once, and the server with it. What is not archived stays in pg_wal, and
the next start archives it. Stopped immediately, PostgreSQL ends wal-push itself.

Sources: RestoreArchivedFile() in xlogarchive.c and wait_result_is_any_signal() in wait_error.c; for archive_command, pgarch_archiveXlog() in
pgarch.c and shell_archive_file() in shell_archive.c.
`,
  );
});

test("the program and each command tell what they do", async () => {
  expectGolden("test/golden/help.txt", await outputOf(["--help"]));
  for (const { name } of await allCommands())
    expectGolden(`test/golden/help-${name}.txt`, await outputOf([name, "--help"]));
});

async function outputOf(argv: readonly string[]): Promise<string> {
  const output: string[] = [];
  await runProgram(argv, {
    env: {},
    workingDirectory: "/",
    signal: new AbortController().signal,
    now: () => new Date(0),
    adoptVariables: () => {},
    output: { isTerminal: false, write: (text) => output.push(text) },
    writeLog: (record) => {
      throw new Error(record);
    },
    statusLine: undefined,
  });
  return output.join("");
}

test("docs/promises.md has every promise, its guards, and the tests that fail without them", () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const relied = readme.slice(readme.indexOf("## What you can rely on"));
  const promises = [...relied.slice(0, relied.indexOf("\n## ", 1)).matchAll(/^(\d+)\. (.*)$/gm)];
  const sections = promises.map(([, number, text]) => {
    const rows = GUARDS.filter(({ promise }) => promise === Number(number)).map(
      ({ guards, file, test, fails, needs }) =>
        `| ${cell(guards)} | \`${file}\` | \`${test.replace(/^test\//, "")}\`${needs === "servers" ? " (servers)" : ""} | ${cell(fails)} |`,
    );
    return `## ${number}. ${text?.replaceAll("](docs/", "](")}\n\n| guard | in src/ | attacked by, in test/ | seen to fail without it |\n| --- | --- | --- | --- |\n${rows.join("\n")}\n`;
  });
  expect(sections).toHaveLength(10);
  expectGolden(
    "docs/promises.md",
    `# Promises, guards, and the tests that fail without them

${MADE_BY}
Each guard was taken out of a copy of the program, and the test in the last column failed. \`bun run test\` does that again for every guard
that needs no servers, \`bun run test:guards all\` for all of them. What is taken out exactly: \`test/guards/\`. Besides these, random
values and random damage go through every parser (\`test/property/\`), and random faults through everything at once (\`test/soak/\`).

${sections.join("\n")}
${readFileSync(join(ROOT, "test/guards/by-hand.md"), "utf8")}`,
  );
});

test("what the guards' list would take out stands in its file once", () => {
  for (const guard of GUARDS) withoutGuard(readFileSync(join(ROOT, "src", guard.file), "utf8"), guard);
});

const cell = (text: string) => text.replaceAll("|", "\\|");
