/** What people and their tools write for wal-b: every text has a meaning, or an error that says so. */
import { expect } from "bun:test";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { parseWords } from "../../src/cli/command-line.ts";
import { parsePlainWords } from "../../src/cli/plain-words.ts";
import { parseCustomerKey, parseEndpoint, parsePrefix } from "../../src/cli/prefix.ts";
import { allCommands, GLOBAL_OPTIONS } from "../../src/cli/program.ts";
import { readEnvdir } from "../../src/config/envdir.ts";
import { loadSettings, SETTING_NAMES, variablesOf } from "../../src/config/settings.ts";
import { UsageError } from "../../src/errors.ts";
import { isOfRecovery, quoteValue, settingOfLine, withRecoverySettings } from "../../src/postgres/auto-conf.ts";
import { libpqSettings } from "../../src/postgres/libpq-settings.ts";
import { findPassword } from "../../src/postgres/password-file.ts";
import { parseServiceFile } from "../../src/postgres/service-file.ts";
import { anyText, damagedBytes, damagedText } from "../support/damage.ts";
import { answerOf, property } from "../support/property.ts";
import type { Random } from "../support/random.ts";
import { temporaryDirectory } from "../support/temporary-directory.ts";

const COMMANDS = await allCommands();

const line = (random: Random) => anyText(random, 20).replace(/[\r\n]/g, "");
/** A variable of the environment cannot hold NUL. */
const variable = (random: Random, values: readonly string[] = []) =>
  (values.length === 0 || random.once(2) ? anyText(random, 20) : damagedText(random.pick(values), random)).replaceAll(
    "\0",
    "",
  );
const VARIABLES = [...new Set(SETTING_NAMES.flatMap(variablesOf))];
const PG_VARIABLES = [
  "HOST",
  "HOSTADDR",
  "PORT",
  "USER",
  "DATABASE",
  "PASSWORD",
  "SSLMODE",
  "CONNECT_TIMEOUT",
  "OPTIONS",
  "APPNAME",
  "SSLROOTCERT",
  "CHANNELBINDING",
  "REQUIREAUTH",
].map((name) => `PG${name}`);

property(
  "an envdir reads as envdir(8) reads it; any file in it is a variable or an error",
  async (random) => {
    await using directory = await temporaryDirectory();
    const value = variable(random)
      .replace(/[ \t\r\n]+$/, "")
      .replaceAll("\n", "")
      .toWellFormed();
    const path = join(directory.path, "NAME");
    await writeFile(path, `${value}${random.pick(["", "\n", " \t\n", "\nsecond line", "\n\0\n"])}`);
    if (value !== "") expect(readEnvdir(directory.path).variables).toEqual({ NAME: value });
    await writeFile(path, damagedBytes(Buffer.from(`${value}\0${value}\n`), random));
    expect(typeof (readEnvdir(directory.path).variables["NAME"] ?? "")).toBe("string");

    const name = line(random).replace(/[\0/]/g, "").slice(0, 40);
    if (name === "" || name === "." || name === "..") return;
    await rm(path);
    await writeFile(join(directory.path, name), "value");
    const read = await answerOf([UsageError], () => readEnvdir(directory.path));
    if (read && !name.startsWith(".")) expect(Object.hasOwn(read.variables, name.toWellFormed())).toBe(true);
  },
  { oneOf: 2 },
);

property("a setting is within its bounds, or is refused by the name of its variable", async (random) => {
  const values = [
    "1",
    "16MB",
    "5 GiB",
    "10min",
    "0",
    "s3://bucket/path",
    "file://localhost/dir",
    "text",
    "json",
    "require",
    "AES256",
  ];
  const env = Object.fromEntries(random.list(3, () => [random.pick(VARIABLES), variable(random, values)], 1));
  const failing = await answerOf([], () => {
    try {
      const settings = loadSettings({}, env);
      for (const value of Object.values(settings))
        if (typeof value === "number") expect(Number.isFinite(value)).toBe(true);
      return undefined;
    } catch (error) {
      if (!(error instanceof UsageError)) throw error;
      return error;
    }
  });
  if (failing) expect(Object.keys(env).some((name) => failing.message.includes(name))).toBe(true);
});

property("a prefix, an endpoint and a key are ones, or are refused", async (random) => {
  const text = random.once(3)
    ? variable(random)
    : damagedText(random.pick(["s3://bucket/path", "https+path://host:9000", "file://localhost/dir", "/dir"]), random);
  const prefix = await answerOf([UsageError], () => parsePrefix({ s3Prefix: text, filePrefix: undefined }));
  if (prefix?.kind === "s3") expect(prefix.prefix.split("/")).not.toContain("..");
  await answerOf([UsageError], () => parsePrefix({ s3Prefix: undefined, filePrefix: text }));
  const endpoint = await answerOf([UsageError], () => parseEndpoint({ endpoint: text, forcePathStyle: undefined }));
  if (endpoint?.endpoint !== undefined) expect(URL.canParse(endpoint.endpoint)).toBe(true);
  const key = await answerOf([UsageError], () => parseCustomerKey(text));
  expect(key?.byteLength ?? 32).toBe(32);
});

/** Every part of a line, as passwordFromFile() in fe-connect.c wants it. */
const escaped = (text: string) => text.replace(/[\\:]/g, "\\$&");

property("a password reads as it was written, and no line of .pgpass breaks the others", (random) => {
  const [host, database, user] = [line(random), line(random), line(random)].map((text) => text || "x") as [
    string,
    string,
    string,
  ];
  const port = 1 + random.below(65535);
  const password = line(random) || "x";
  const fields = [host, String(port), database, user].map((field) => (random.once(4) ? "*" : escaped(field)));
  const own = [...fields, escaped(password)].join(":");
  const key = { host, port, database, user };
  const others = random.list(5, () => `#${anyText(random, 30).replace(/[\r\n]/g, "")}`);
  expect(findPassword([...others, own, ...others].join("\n"), key)).toBe(own.startsWith("#") ? undefined : password);
  const found = findPassword(damagedText([own, anyText(random, 30)].join("\n"), random), key);
  expect(typeof (found ?? "")).toBe("string");
});

property("a service reads as it was written; other lines are refused without being quoted", async (random) => {
  const name = line(random).trim().replaceAll("]", "") || "main";
  const value = line(random).replaceAll("\0", "").trim();
  const text = `[other]\nnonsense\n[${name}]\n# comment\nhost=${value}\nport = 5433\n\n[${name}2]\nhost=no\n`;
  if (name !== "other")
    expect([...(parseServiceFile(text, name, "f") ?? [])]).toEqual([
      ["host", value],
      ["port", "5433"],
    ]);
  const secret = "mYsEcReT";
  const damaged = damagedText(`[main]\nhost=db1\npassword${random.pick(["=", "", "\t", " = "])}${secret}\n`, random);
  try {
    parseServiceFile(damaged, "main", "f");
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    // Before a "=" it is the name of a parameter that there is not, and is told.
    const isName = (line: string) => line.split("=", 1)[0]?.includes(secret) && line.includes("=");
    if (!damaged.split("\n").some(isName))
      expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toContain(secret);
  }
});

property("where the server is follows from the environment, or is refused", async (random) => {
  const values = ["db1,db2", "5432,5433", "127.0.0.1", "/tmp", "@abstract", "disable", "prefer", "60", "", "-1"];
  const env = Object.fromEntries(random.list(5, () => [random.pick(PG_VARIABLES), variable(random, values)]));
  const account = { name: random.pick([undefined, "postgres"]), homeDirectory: undefined };
  const settings = await answerOf([UsageError], () => libpqSettings({ env, account }));
  if (settings === undefined) return;
  expect(settings.servers.length).toBeGreaterThan(0);
  for (const { port } of settings.servers) expect(port >= 1 && port <= 65_535).toBe(true);
  expect(settings.connectTimeoutMs >= 0 && settings.connectTimeoutMs <= 2 ** 31).toBe(true);
});

/** DeescapeQuotedString() in guc-file.l, for what is not an octal escape. */
const unquoted = (text: string) => text.slice(1, -1).replace(/\\(.)|''/gsu, (_, escaped?: string) => escaped ?? "'");

property("settings of recovery are the only ones that count, and every other line stays", (random) => {
  const lines = random.list(8, () =>
    random.pick([
      line(random),
      "work_mem = '4MB'",
      "recovery_target_time '2026-11-23'",
      "  Restore_Command='x'",
      "# recovery_target = x",
      damagedText("recovery_target_xid = 7", random).replace(/[\r\n]/g, ""),
    ]),
  );
  const value = line(random).replace(/[\0]/g, "");
  const text = withRecoverySettings(lines.join("\n"), [["restore_command", value]], "wal-b restore, a test");
  const written = text.trimEnd().split("\n");
  expect(written.filter(isOfRecovery)).toEqual([`restore_command = ${quoteValue(value)}`]);
  expect(unquoted(quoteValue(value))).toBe(value);
  const kept = lines.filter((each) => !isOfRecovery(each) && each.trim() !== "");
  expect(kept.filter((each) => !written.some((other) => other === each.trimEnd() || other === each))).toEqual([]);
  for (const each of lines) expect(settingOfLine(each) ?? "x").toMatch(/^[a-z_][\w$.]*$/);
});

property(
  "any words are a command or a usage error, and the short way to read them agrees with the long one",
  async (random) => {
    const flags = Object.keys({ ...GLOBAL_OPTIONS, ...Object.assign({}, ...COMMANDS.map(({ options }) => options)) });
    const word = () =>
      random.pick([
        ...[
          () => random.pick(COMMANDS).name,
          () => `--${random.pick(flags)}`,
          () => `--${random.pick(flags)}=${variable(random)}`,
        ],
        ...[() => variable(random), () => "LATEST", () => "-h", () => "--", () => "7", () => `-${variable(random)}`],
      ])();
    const argv = [...random.list(1, word), random.pick(COMMANDS).name, ...random.list(4, word)];
    const plain = await answerOf([UsageError], () => parsePlainWords(argv, COMMANDS, GLOBAL_OPTIONS));
    const { chosen } = (await answerOf([UsageError], () => parseWords(argv, COMMANDS, GLOBAL_OPTIONS))) ?? {};
    if (plain === undefined) return;
    expect({ argv, command: chosen?.command.name }).toEqual({ argv, command: plain.command.name });
    expect(chosen?.words).toMatchObject(plain.words);
  },
  { oneOf: 5 },
);
