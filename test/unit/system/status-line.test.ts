import { expect, test } from "bun:test";
import { StatusLine } from "../../../src/system/status-line.ts";

function terminal(columns = 80) {
  let written = "";
  const line = new StatusLine(
    (text) => {
      written += text;
    },
    () => columns,
  );
  /** What was written since the last call. */
  const said = () => {
    const text = written;
    written = "";
    return text;
  };
  return { line, said };
}

test("show() writes over what it showed before", () => {
  const { line, said } = terminal();
  line.show("copied 10");
  line.show("copied 9");
  expect(said()).toBe("\rcopied 10\x1b[K\rcopied 9\x1b[K");
});

test("show() never fills the last column, where a terminal would wrap", () => {
  const { line, said } = terminal(8);
  line.show("12345678");
  expect(said()).toBe("\r1234567\x1b[K");
});

test("writeAbove() puts messages above the line and shows it again", () => {
  const { line, said } = terminal();
  line.show("copied 10");
  said();
  line.writeAbove("wal-b: WARNING: careful\n  HINT: Look.");
  expect(said()).toBe("\r\x1b[Kwal-b: WARNING: careful\n  HINT: Look.\ncopied 10");
});

test("without anything shown, messages are all that is written", () => {
  const { line, said } = terminal();
  line.show("");
  line.writeAbove("one");
  line.show("copied 10");
  line.show("");
  said();
  line.writeAbove("two");
  line.show("");
  expect(said()).toBe("two\n");
});
