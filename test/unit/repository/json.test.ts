import { describe, expect, test } from "bun:test";
import { IntegrityError } from "../../../src/errors.ts";
import { formatJson, JsonFields, parseJson } from "../../../src/repository/json.ts";

describe("formatJson() and parseJson()", () => {
  test.each([
    ["2^53, which a number still holds", 9007199254740991n, 9007199254740991],
    ["more than that", 7420325342344323423n, 7420325342344323423n],
    ["the largest of 64 bits", 18446744073709551615n, 18446744073709551615n],
    ["a negative one", -9223372036854775808n, -9223372036854775808n],
  ])("keep %s to the last digit", (_, value, expected) => {
    expect(formatJson({ value })).toBe(`{"value":${value}}`);
    expect(parseJson(`{"value":${value}}`, "it")).toEqual({ value: expected });
  });

  test("keep small integers, fractions and texts as they are", () => {
    const text = '{"a":1,"b":1.5,"c":"7420325342344323423","d":null,"e":[true,-0.25]}';
    expect(formatJson(parseJson(text, "it"))).toBe(text);
  });

  test("parseJson() names what is no JSON", () => {
    for (const text of ["", "{", "[1,]", "\0", '{"a":01}']) {
      expect(() => parseJson(text, "s3://bucket/key")).toThrow(IntegrityError);
      expect(() => parseJson(text, "s3://bucket/key")).toThrow("s3://bucket/key is not valid JSON");
    }
  });
});

describe("JsonFields", () => {
  const fields = JsonFields.parse(
    '{"text":"t","number":7,"big":7420325342344323423,"float":1.5,"flag":false,"date":"2025-01-02T03:04:05.123456789Z","object":{"x":1},"texts":["a"],"mixed":["a",1],"null":null,"__proto__":{"y":2}}',
    "the sentinel",
  );

  test("reads each type", () => {
    expect(fields.text("text")).toBe("t");
    expect(fields.integer("number")).toBe(7);
    expect(fields.bigint("number")).toBe(7n);
    expect(fields.bigint("big")).toBe(7420325342344323423n);
    expect(fields.flag("flag")).toBe(false);
    expect(fields.date("date")?.toISOString()).toBe("2025-01-02T03:04:05.123Z"); // Go's nine digits
    expect(fields.object("object")?.integer("x")).toBe(1);
    expect(fields.texts("texts")).toEqual(["a"]);
  });

  test("takes null and what is not there as not said", () => {
    expect([
      fields.text("null"),
      fields.integer("none"),
      fields.text("toString"),
      fields.object("constructor"),
    ]).toEqual([undefined, undefined, undefined, undefined]);
    expect(() => fields.required("none", fields.text("none"))).toThrow('the sentinel has no "none"');
  });

  test.each([
    ["text", () => fields.text("number"), '"number" of the sentinel is not a text'],
    ["integer", () => fields.integer("float"), '"float" of the sentinel is not an integer'],
    ["integer", () => fields.integer("big"), '"big" of the sentinel is not an integer'],
    ["bigint", () => fields.bigint("text"), '"text" of the sentinel is not an integer'],
    ["flag", () => fields.flag("number"), '"number" of the sentinel is not true or false'],
    ["date", () => fields.date("text"), '"text" of the sentinel is not a time'],
    ["object", () => fields.object("texts"), '"texts" of the sentinel is not a JSON object'],
    ["object", () => fields.object("text"), '"text" of the sentinel is not an object'],
    ["texts", () => fields.texts("mixed"), '"mixed" of the sentinel is not a list of texts'],
  ])("%s() refuses another type by name", (_, read, message) => {
    expect(read).toThrow(IntegrityError);
    expect(read).toThrow(message);
  });

  test.each(["[]", "null", "1", '"text"'])("refuses %s where an object belongs", (text) => {
    expect(() => JsonFields.parse(text, "the sentinel")).toThrow("the sentinel is not a JSON object");
  });
});
