/** The program's own source, as the tests of its rules read it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { ROOT } from "./golden.ts";

export interface SourceFile {
  /** Relative to src/. */
  readonly path: string;
  readonly text: string;
}

export function sourceFiles(): readonly SourceFile[] {
  const src = join(ROOT, "src");
  const paths = [...new Bun.Glob("**/*.ts").scanSync({ cwd: src })].sort();
  return paths.map((path) => ({ path, text: readFileSync(join(src, path), "utf8") }));
}

/** The same text with comments blanked out; line ends stay. Texts and templates are passed over, whatever is in them. */
export function withoutComments(text: string): string {
  return text.replace(
    /("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\[\s\S])*`)|\/\*[\s\S]*?\*\/|(?<![:/\\[])\/\/[^\n]*/g,
    (found, kept: string | undefined) => kept ?? found.replace(/[^\n]/g, " "),
  );
}

/** A text or template of the source that begins at `at`, without its quotes; ${…} stay. undefined when none begins there. */
export function literalAt(text: string, at: number): string | undefined {
  const quote = text[at];
  if (quote !== '"' && quote !== "'" && quote !== "`") return undefined;
  let depth = 0;
  for (let end = at + 1; end < text.length; end++) {
    const [character, next] = [text[end], text[end + 1]];
    if (character === "\\") end++;
    else if (quote === "`" && character === "$" && next === "{") {
      depth++;
      end++;
    } else if (depth > 0 && character === "{") depth++;
    else if (depth > 0 && character === "}") depth--;
    else if (depth === 0 && character === quote) return text.slice(at + 1, end);
  }
  return undefined;
}
