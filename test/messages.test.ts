/** PostgreSQL's message style, held by every message of the program: STYLE, "Errors and exit codes". */
import { describe, expect, test } from "bun:test";
import { literalAt, sourceFiles, withoutComments } from "./support/source-files.ts";

interface Text {
  readonly place: string;
  readonly text: string;
}

/** Literals that stand behind a pattern, wherever it is in the program. */
function literalsAfter(pattern: RegExp, files = sourceFiles()): readonly Text[] {
  return files.flatMap(({ path, text }) => {
    const code = withoutComments(text);
    return [...code.matchAll(pattern)].flatMap((match) => {
      const literal = literalAt(code, match.index + match[0].length);
      const line = code.slice(0, match.index).split("\n").length;
      return literal === undefined ? [] : [{ place: `src/${path}:${line}`, text: literal }];
    });
  });
}

const MESSAGE =
  /\b(?:new (?:Usage|Integrity|SourceMissing|Storage|Destination|NotFound|Postgres|Access)Error\(|log\.(?:warning|info|debug)\()\s*/g;
const SENTENCES = /\b(?:detail|hint):\s*/g;

/** Names that begin with a capital letter wherever they stand. */
const NAMES = /^(PostgreSQL|SSL|TLS|S3|WAL|SIG[A-Z]+|LSN|pg_\w+|PG[A-Z]+|sslmode)\b/;

/** What is wrong with a message: the first part, which stands alone in a log. */
function faultOfMessage(text: string): string | undefined {
  if (/^[A-Z]/.test(text) && !NAMES.test(text)) return "begins with a capital letter";
  if (/[.!]$/.test(text)) return "ends with a full stop";
  if (/\b(failed to|unable to|sorry|illegal|invalid input)\b/i.test(text)) return 'says not "could not" or "cannot"';
  return undefined;
}

/** Names that begin in lower case, even at the beginning of a sentence: of settings, files and programs. */
const LOWER_CASE_NAMES = /^(\w+_\w+|\w+\.\w+|wal-b|sslmode)\b/;

/** A command to copy ends as it is; a full stop would become a part of it. */
const ENDS_WITH_COMMAND = /: (wal-b|GRANT) .*$/;

/** What is wrong with a detail or a hint: whole sentences. One word is none, and no text for a user. */
function faultOfSentences(text: string): string | undefined {
  if (!text.includes(" ")) return undefined;
  if (/^[a-z]/.test(text) && !LOWER_CASE_NAMES.test(text)) return "begins in lower case";
  if (!/[.?]$/.test(text) && !text.endsWith("}") && !ENDS_WITH_COMMAND.test(text))
    return "does not end with a full stop";
  return undefined;
}

describe("messages of the program", () => {
  test("begin in lower case and have no full stop", () => {
    const texts = literalsAfter(MESSAGE);
    expect(texts.length).toBeGreaterThan(80);
    expect(
      texts.flatMap((each) => (faultOfMessage(each.text) ? [{ ...each, fault: faultOfMessage(each.text) }] : [])),
    ).toEqual([]);
  });

  test("have whole sentences as details and hints", () => {
    const texts = literalsAfter(SENTENCES);
    expect(texts.length).toBeGreaterThan(80);
    expect(
      texts.flatMap((each) => (faultOfSentences(each.text) ? [{ ...each, fault: faultOfSentences(each.text) }] : [])),
    ).toEqual([]);
  });

  test("this test notices those that do not", () => {
    const template = "`failed to $" + "{x}`";
    const text = `throw new UsageError("Wrong.", { hint: "do it" });\nlog.info(${template}); // new UsageError("No")`;
    const files = [{ path: "x.ts", text }];
    expect(literalsAfter(MESSAGE, files).map((each) => [each.place, faultOfMessage(each.text)])).toEqual([
      ["src/x.ts:1", "begins with a capital letter"],
      ["src/x.ts:2", 'says not "could not" or "cannot"'],
    ]);
    expect(literalsAfter(SENTENCES, files).map(({ text: hint }) => faultOfSentences(hint))).toEqual([
      "begins in lower case",
    ]);
    expect([faultOfMessage("ends."), faultOfSentences("No end")]).toEqual([
      "ends with a full stop",
      "does not end with a full stop",
    ]);
  });
});
