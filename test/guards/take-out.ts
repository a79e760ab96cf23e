/**
 * Takes a guard out of a copy of the program and runs the test that must fail then: `bun test/guards/take-out.ts [all|text…]`.
 *
 * Without words the guards that need no servers, with "all" every one, else those whose file, test or description has the text.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROOT } from "../support/golden.ts";
import type { Guard } from "./guard.ts";
import { GUARDS } from "./list.ts";

const MINUTE = 60_000;
/** What a copy has of its own. */
const COPIED = ["src", "test", "docs", "bench", "package.json", "tsconfig.json", "build.ts", "install.sh", "README.md"];
const SHARED = ["node_modules", ".cache", ".git"];

export interface Outcome {
  /** Names of the tests that failed, of those that are expected to. */
  readonly failed: readonly string[];
  readonly output: string;
}

export const isNoticed = ({ fails }: Guard, { failed }: Outcome): boolean =>
  failed.some((name) => name.includes(fails));

/** @throws Error  the guard's text does not stand in its file exactly once */
export function withoutGuard(source: string, { file, search, replacement }: Guard): string {
  const found = source.split(search).length - 1;
  if (found !== 1) throw new Error(`src/${file} has ${found} times what should be there once: ${search}`);
  return source.replace(search, () => replacement);
}

export async function takeOut(guard: Guard): Promise<Outcome> {
  const copy = await mkdtemp(join(tmpdir(), "walb-guard-"));
  try {
    for (const name of COPIED) await cp(join(ROOT, name), join(copy, name), { recursive: true });
    for (const name of SHARED) if (existsSync(join(ROOT, name))) await symlink(join(ROOT, name), join(copy, name));
    await mkdir(join(copy, "dist"));

    const file = join(copy, "src", guard.file);
    await writeFile(file, withoutGuard(await readFile(file, "utf8"), guard));
    if (guard.needs !== undefined) {
      const built = await run(["build.ts"], copy);
      if (!existsSync(join(copy, "dist/wal-b"))) throw new Error(`it cannot be built:\n${built}`);
    }
    const only = guard.fails === "" ? [] : ["-t", guard.fails.replace(/^.* > /, "").replace(/[^\w\s]/g, ".")];
    const output = await run(["test", `--timeout=${2 * MINUTE}`, `./${guard.test}`, ...only], copy);
    const failed = output.split("\n").filter((line) => line.startsWith("(fail) "));
    return { failed: failed.map((line) => line.slice("(fail) ".length).replace(/ \[[\d.]+ms\]$/, "")), output };
  } finally {
    await rm(copy, { recursive: true, force: true });
  }
}

function run(args: readonly string[], cwd: string): Promise<string> {
  return new Promise((resolve) => {
    const options = { cwd, timeout: 10 * MINUTE, maxBuffer: 2 ** 28, killSignal: "SIGKILL" } as const;
    execFile(process.execPath, [...args], options, (_, stdout, stderr) => resolve(`${stdout}\n${stderr}`));
  });
}

if (import.meta.main) {
  const words = process.argv.slice(2);
  const isWanted = (guard: Guard) =>
    words[0] === "all" ||
    (words.length === 0 ? guard.needs !== "servers" : words.some((word) => JSON.stringify(guard).includes(word)));
  let missed = 0;
  for (const guard of GUARDS.filter(isWanted)) {
    const outcome = await takeOut(guard);
    const { failed, output } = outcome;
    if (!isNoticed(guard, outcome)) missed++;
    const seen = failed.length > 0 ? failed.join("\n    ") : output.slice(-1000);
    console.log(`${isNoticed(guard, outcome) ? "noticed" : "MISSED "} ${guard.promise} ${guard.guards}\n    ${seen}`);
  }
  console.log(missed === 0 ? "the absence of every guard was noticed" : `${missed} could be taken out unnoticed`);
  process.exitCode = missed === 0 ? 0 : 1;
}
