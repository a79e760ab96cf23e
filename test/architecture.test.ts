/** Who may import whom, and who may touch the process: the tree as a map that stays true. */
import { describe, expect, test } from "bun:test";
import { posix } from "node:path";
import { type SourceFile, sourceFiles, withoutComments } from "./support/source-files.ts";

/** Folder, or file directly below src/ → what it may import besides itself. errors.ts and version.ts are everybody's. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  "errors.ts": [],
  "version.ts": [],
  config: [],
  system: [],
  codec: [],
  postgres: ["system"],
  storage: ["system"],
  repository: ["storage", "postgres", "codec", "system"],
  wal: ["repository", "postgres", "codec", "system"],
  backup: ["repository", "storage", "postgres", "codec", "system"],
  retention: ["repository", "storage", "postgres", "system"],
  cli: ["wal", "backup", "retention", "repository", "storage", "postgres", "codec", "config", "system"],
  "main.ts": ["cli", "system"],
};
const FOR_EVERYBODY = ["errors.ts", "version.ts"];

/** From these folders others take the interface only; what implements it is wired together in cli/. */
const INTERFACE_ONLY: Readonly<Record<string, readonly string[]>> = {
  storage: ["storage/object-store.ts"],
};

/** Package → the files that may import it, so that another one in its place touches these. */
const PACKAGES: Readonly<Record<string, RegExp>> = {
  "@aws-sdk/client-s3": /^storage\/s3-(client|bucket|read|write|list|delete)\.ts$/,
  "@mongodb-js/zstd": /^codec\/zstd-addon\.ts$/,
  "tar-stream": /^codec\/tar\.ts$/,
  pg: /^postgres\/connection\.ts$/,
  yargs: /^cli\/command-line\.ts$/,
};

/** Only main.ts touches the process; what a process is (its number, account and program) anybody may ask. */
const HARMLESS = "(?:pid|geteuid|getegid|execPath|kill)\\b";
const TOUCHES_PROCESS = new RegExp(
  `\\bprocess\\s*\\??\\.\\s*(?!${HARMLESS})\\w+|\\bprocess\\s*\\[|\\bconsole\\.|\\bBun\\.(?:argv|env|stdin|stdout|stderr|main)\\b|\\bimport\\.meta\\.env\\b|["']node:process["']|["']node:readline`,
);

interface Import {
  readonly from: string;
  /** Relative to src/, or the name of a package. */
  readonly of: string;
}

/** Static, side-effect, re-exported, multi-line, dynamic, type-only and required ones, and types by import(). */
const IMPORT = /\b(?:from|import|require(?:\.resolve|Resolve)?|resolve)\s*\(?\s*(["'])([^"'\n]+)\1/g;

function importsOf({ path, text }: SourceFile): readonly Import[] {
  return [...withoutComments(text).matchAll(IMPORT)].flatMap(([, , what = ""]) => {
    if (what.startsWith("node:") || what.startsWith("bun:")) return [];
    if (what.startsWith(".")) {
      const of = posix.normalize(posix.join(posix.dirname(path), what));
      // What a package is asked for by its own inner path is no file of ours.
      return of.endsWith(".ts") ? [{ from: path, of }] : [];
    }
    return /^[@a-z]/.test(what) ? [{ from: path, of: what }] : [];
  });
}

const isOurs = (of: string) => of.endsWith(".ts");
const areaOf = (path: string) => (path.includes("/") ? (path.split("/")[0] ?? "") : path);

function forbiddenImports(files: readonly SourceFile[]): readonly string[] {
  return files.flatMap(importsOf).flatMap(({ from, of }) => {
    const told = `${from} imports ${of}`;
    if (!isOurs(of)) {
      const [name] = Object.keys(PACKAGES).filter((known) => of === known || of.startsWith(`${known}/`));
      return name !== undefined && PACKAGES[name]?.test(from) ? [] : [told];
    }
    const [here, there] = [areaOf(from), areaOf(of)];
    if (here === there || FOR_EVERYBODY.includes(of)) return [];
    if (!MAY_IMPORT[here]?.includes(there)) return [told];
    const allowed = INTERFACE_ONLY[there];
    return allowed === undefined || here === "cli" || allowed.includes(of) ? [] : [told];
  });
}

const whoTouchesProcess = (files: readonly SourceFile[]) =>
  files
    .filter(({ path }) => path !== "main.ts")
    .flatMap(({ path, text }) => {
      const found = TOUCHES_PROCESS.exec(withoutComments(text));
      return found ? [`${path}: ${found[0]}`] : [];
    });

/** A way from a folder back to itself; undefined when there is none. */
function cycle(imports: readonly Import[]): readonly string[] | undefined {
  const next = new Map<string, Set<string>>();
  for (const { from, of } of imports.filter((each) => isOurs(each.of) && areaOf(each.from) !== areaOf(each.of))) {
    next.set(areaOf(from), (next.get(areaOf(from)) ?? new Set()).add(areaOf(of)));
  }
  const search = (way: readonly string[]): readonly string[] | undefined => {
    for (const area of next.get(way.at(-1) ?? "") ?? []) {
      if (way.includes(area)) return [...way.slice(way.indexOf(area)), area];
      const found = search([...way, area]);
      if (found) return found;
    }
    return undefined;
  };
  for (const start of next.keys()) {
    const found = search([start]);
    if (found) return found;
  }
  return undefined;
}

const FILES = sourceFiles();

describe("src/", () => {
  test("has folders that are all in the table, and no others are", () => {
    expect([...new Set(FILES.map(({ path }) => areaOf(path)))].sort()).toEqual(Object.keys(MAY_IMPORT).sort());
  });

  test("imports only what may be imported, and each package in one file", () => {
    expect(forbiddenImports(FILES)).toEqual([]);
  });

  test("imports only files that are there", () => {
    const paths = new Set(FILES.map(({ path }) => path));
    expect(FILES.flatMap(importsOf).filter(({ of }) => isOurs(of) && !paths.has(of))).toEqual([]);
  });

  test("has no cycle between folders", () => {
    expect(cycle(FILES.flatMap(importsOf))).toBeUndefined();
  });

  test("touches arguments, environment, streams, signals and the exit in main.ts only", () => {
    expect(whoTouchesProcess(FILES)).toEqual([]);
  });

  test("uses every package that package.json has", async () => {
    const { dependencies } = (await Bun.file(`${import.meta.dir}/../package.json`).json()) as { dependencies: object };
    expect(Object.keys(dependencies).sort()).toEqual(Object.keys(PACKAGES).sort());
    const imported = new Set(FILES.flatMap(importsOf).map(({ of }) => of));
    expect(Object.keys(PACKAGES).filter((name) => !imported.has(name))).toEqual([]);
  });

  test("exports nothing as default and has no index.ts", () => {
    expect(FILES.filter(({ path, text }) => /(^|\/)index\.ts$/.test(path) || /^export default/m.test(text))).toEqual(
      [],
    );
  });
});

describe("these tests notice", () => {
  const file = (path: string, text: string): SourceFile => ({ path, text });

  test.each([
    ["a static import", "postgres/x.ts", 'import { y } from "../storage/object-store.ts";'],
    ["one over several lines", "postgres/x.ts", 'import {\n  y,\n  type Z,\n} from "../storage/object-store.ts";'],
    ["a type", "storage/x.ts", 'import type { Lsn } from "../postgres/lsn.ts";'],
    ["a dynamic import", "wal/x.ts", 'const { y } = await import("../backup/push.ts");'],
    ["a dynamic import over several lines", "wal/x.ts", 'await import(\n  "../backup/push.ts"\n);'],
    ["a type by import()", "retention/x.ts", 'type Y = import("../wal/push.ts").Y;'],
    ["a re-export", "system/x.ts", 'export { y } from "../cli/program.ts";'],
    ["an import for its effect", "config/x.ts", 'import "../system/log.ts";'],
    ["a store's implementation", "repository/x.ts", 'import { openS3Store } from "../storage/s3.ts";'],
    ["a package in a second file", "cli/x.ts", 'import yargs from "yargs";'],
    ["a part of a package", "wal/x.ts", 'import { y } from "tar-stream/pack.js";'],
    ["a package that nobody agreed on", "wal/x.ts", 'const lodash = require("lodash");'],
  ])("%s", (_, path, text) => {
    expect(forbiddenImports([file(path, text)])).toHaveLength(1);
    expect(forbiddenImports([file(path, `// ${text.replaceAll("\n", " ")}`)])).toEqual([]);
  });

  test.each([
    ["process.exit(1);"],
    ["const path = process.env['PATH'];"],
    ["process.on('SIGTERM', stop);"],
    ["process?.stdout.write('x');"],
    ["process['argv'];"],
    ["console.error('x');"],
    ["Bun.env.PATH;"],
    ['import { argv } from "node:process";'],
  ])("%s", (text) => {
    expect(whoTouchesProcess([file("wal/x.ts", text)])).toHaveLength(1);
    expect(whoTouchesProcess([file("main.ts", text), file("wal/x.ts", `/* ${text} */ process.pid;`)])).toEqual([]);
  });

  test("a cycle", () => {
    const files = [
      file("a/x.ts", 'import "../b/x.ts";'),
      file("b/x.ts", 'import "../c/x.ts";'),
      file("c/x.ts", 'import "../b/y.ts";'),
    ];
    expect(cycle(files.flatMap(importsOf))).toEqual(["b", "c", "b"]);
    expect(cycle(files.slice(0, 2).flatMap(importsOf))).toBeUndefined();
  });
});
