/** docs/tree.md is the tree: every file of src/ with the first sentence of its own header. */
import { expect, test } from "bun:test";
import { expectGolden } from "./support/golden.ts";
import { type SourceFile, sourceFiles } from "./support/source-files.ts";

/** The first sentence of the comment that a file begins with, on one line; undefined when it has none. */
function purposeOf({ text }: SourceFile): string | undefined {
  const [, header] = /^\/\*\*([\s\S]*?)\*\//.exec(text) ?? [];
  const [first = ""] = (header ?? "")
    .replace(/\n\s*\*( |$)/gm, "\n")
    .trim()
    .split("\n\n");
  const paragraph = first.replace(/\s+/g, " ").trim();
  return /^.+?[.?!](?=\s|$)/.exec(paragraph)?.[0] ?? (paragraph || undefined);
}

const FOLDERS: Readonly<Record<string, string>> = {
  "": "the process and its failures",
  cli: "words on the command line → a call",
  wal: "FLOW one file of pg_wal ⇄ the archive",
  backup: "FLOW a data directory ⇄ the repository",
  retention: "FLOW what may go",
  repository: "WORDS where PostgreSQL's names become keys and formats",
  postgres: "WORDS facts about PostgreSQL; knows nothing of S3",
  storage: "WORDS facts about stores; knows nothing of PostgreSQL",
  codec: "TOOLS bytes ⇄ bytes",
  config: "TOOLS settings",
  system: "TOOLS the operating system",
};

function tree(files: readonly SourceFile[]): string {
  const sections = Object.entries(FOLDERS).map(([folder, what]) => {
    const rows = files
      .filter(({ path }) => (path.includes("/") ? path.split("/")[0] : "") === folder)
      .map((file) => `| \`${file.path.split("/").at(-1)}\` | ${purposeOf(file)?.replaceAll("|", "\\|")} |`);
    return `## src/${folder && `${folder}/`}: ${what}\n\n| file | purpose |\n| --- | --- |\n${rows.join("\n")}\n`;
  });
  const head =
    "# Map of src/\n\nBuilt by `UPDATE_GOLDEN=1 bun test test/tree.test.ts` from the first sentence of each file. Who may import whom: `test/architecture.test.ts`.\n";
  return [head, ...sections].join("\n");
}

test("docs/tree.md is the tree", () => {
  expectGolden("docs/tree.md", tree(sourceFiles()));
});

test("every file says in its first sentence what it is for", () => {
  const files = sourceFiles();
  expect(files.filter((file) => purposeOf(file) === undefined).map(({ path }) => path)).toEqual([]);
  const folders = new Set(files.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
  expect([...folders].filter((folder) => !((folder ?? "?") in FOLDERS))).toEqual([]);
});

test("a file without a header, or with another first sentence, is noticed", () => {
  expect(purposeOf({ path: "x.ts", text: 'import "y";\n/** Later. */' })).toBeUndefined();
  expect(
    purposeOf({ path: "x.ts", text: "/**\n * One thing, over\n * two lines. And more.\n *\n * Even more.\n */" }),
  ).toBe("One thing, over two lines.");
  expect(purposeOf({ path: "x.ts", text: "/** archive_command = 'wal-b wal-push %p' */" })).toBe(
    "archive_command = 'wal-b wal-push %p'",
  );
});
