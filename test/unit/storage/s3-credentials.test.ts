/** Credentials in the shared file that are replaced while a command runs, as what rotates them does. */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { readFile, writeFile } from "node:fs/promises";
import type { Socket } from "node:net";
import { join } from "node:path";
import { AccessError, type Failure } from "../../../src/errors.ts";
import { openS3Store, type S3StoreOptions } from "../../../src/storage/s3.ts";
import { SILENT } from "../../../src/system/log.ts";
import { readChunks } from "../../support/read-chunks.ts";
import { answer, type ScriptedRequest, s3Error, startScriptedS3 } from "../../support/scripted-s3.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../../support/temporary-directory.ts";

const VARIABLES = [
  ...["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_EC2_METADATA_DISABLED"],
  ...["AWS_ACCESS_KEY_ID", "AWS_PROFILE"],
];
const before = VARIABLES.map((name) => process.env[name]);
let directory: TemporaryDirectory;
beforeAll(async () => {
  directory = await temporaryDirectory();
  process.env["AWS_SHARED_CREDENTIALS_FILE"] = join(directory.path, "credentials");
  process.env["AWS_CONFIG_FILE"] = join(directory.path, "none");
  process.env["AWS_EC2_METADATA_DISABLED"] = "true";
  delete process.env["AWS_ACCESS_KEY_ID"];
  delete process.env["AWS_PROFILE"];
});
afterAll(async () => {
  for (const [n, name] of VARIABLES.entries()) {
    if (before[n] === undefined) delete process.env[name];
    else process.env[name] = before[n];
  }
  await directory?.[Symbol.asyncDispose]();
});

const put = (key: string, token: string) =>
  writeFile(
    join(directory.path, "credentials"),
    `[default]\naws_access_key_id = ${key}\naws_secret_access_key = secret\naws_session_token = ${token}\n`,
  );
beforeEach(() => put("key1", "token1"));

const OBJECT = answer(200, "hello", { etag: '"e1"' });

/** Answers whoever has the key and the token that are valid now. */
async function setUp(
  answering: (request: ScriptedRequest, socket: Socket) => string | undefined = () => OBJECT,
  options: Partial<S3StoreOptions> = {},
) {
  const valid = { key: "key1", token: "token1", code: "ExpiredToken" };
  const server = await startScriptedS3((request, socket) => {
    const { authorization = "", "x-amz-security-token": token } = request.headers;
    const isValid = authorization.includes(`Credential=${valid.key}/`) && token === valid.token;
    return isValid ? answering(request, socket) : s3Error(400, valid.code);
  });
  const store = await openS3Store({
    bucket: "bucket",
    prefix: "",
    endpoint: server.endpoint,
    region: "us-east-1",
    retryDeadlineMs: 60_000,
    signal: new AbortController().signal,
    log: SILENT,
    ...options,
  });
  return {
    server,
    store,
    valid,
    async [Symbol.asyncDispose]() {
      await store[Symbol.asyncDispose]();
      await server[Symbol.asyncDispose]();
    },
  };
}

test.each([
  ["a token that has expired", "key1", "token2", "ExpiredToken"],
  ["a key that was replaced", "key2", "token1", "InvalidAccessKeyId"],
])("%s: the file is read again", async (_, key, token, code) => {
  await using it = await setUp();
  await it.store.get("a", 10);
  Object.assign(it.valid, { key, token, code });
  await put(key, token);
  expect((await it.store.get("a", 10)).body).toHaveLength(5);
  expect(it.server.requests).toHaveLength(3);
});

test("of requests that are refused side by side, all are sent again", async () => {
  await using it = await setUp();
  await it.store.get("a", 10);
  it.valid.token = "token2";
  await put("key1", "token2");
  const keys = ["a", "b", "c", "d", "e", "f"];
  const found = await Promise.all(keys.map((key) => it.store.get(key, 10)));
  expect(found).toHaveLength(keys.length);
});

test("a request that was signed before others renewed the credentials is sent again, too", async () => {
  let refuse: (() => void) | undefined;
  await using it = await setUp(({ target }, socket) => {
    if (!target.includes("slow") || refuse !== undefined) return OBJECT;
    refuse = () => socket.write(s3Error(400, "ExpiredToken"), "latin1");
    return undefined;
  });
  const slow = it.store.get("slow", 10);
  while (refuse === undefined) await Bun.sleep(1);
  it.valid.token = "token2";
  await put("key1", "token2");
  await it.store.get("a", 10);
  refuse();
  expect((await slow).body).toHaveLength(5);
});

test("a read that is resumed goes on with the others", async () => {
  const content = "0123456789";
  await using it = await setUp(({ headers }, socket) => {
    if (headers["range"])
      return answer(206, content.slice(5), { etag: '"e1"', "content-range": "bytes 5-9/10", "content-length": "5" });
    it.valid.token = "token2";
    put("key1", "token2").then(() => {
      socket.end(`HTTP/1.1 200 OK\r\netag: "e1"\r\ncontent-length: 10\r\n\r\n${content.slice(0, 5)}`);
    });
    return undefined;
  });
  expect(Buffer.concat(await readChunks(it.store, "a")).toString()).toBe(content);
});

test("without others the refusal is told, and nothing is sent again", async () => {
  await using it = await setUp();
  it.valid.token = "token2";
  await expect(it.store.get("a", 10)).rejects.toThrow(AccessError);
  expect(it.server.requests).toHaveLength(1);
});

test("who has no credentials is asked once for each attempt, and not once more by the request", async () => {
  const asked = join(directory.path, "asked");
  // Two of the SDK's providers run it, one after the other.
  await writeFile(
    join(directory.path, "credentials"),
    `[default]\ncredential_process = sh -c "echo asked >> ${asked}; exit 1"\n`,
  );
  await using it = await setUp();
  await expect(it.store.get("a", 10)).rejects.toThrow(AccessError);
  expect((await readFile(asked, "utf8")).trim().split("\n")).toHaveLength(3 * 2);
  expect(it.server.requests).toEqual([]);
});

/** Has credentials given by a script. */
async function putScript(script: (give: (token: string) => string) => string): Promise<void> {
  const path = join(directory.path, "script");
  const give = (token: string) =>
    `echo '{"Version":1,"AccessKeyId":"key1","SecretAccessKey":"secret","SessionToken":"${token}"}'`;
  await writeFile(path, script(give));
  await writeFile(join(directory.path, "credentials"), `[default]\ncredential_process = sh ${path}\n`);
}

test("what gave credentials before is waited for while it fails", async () => {
  const asked = join(directory.path, "asked-until-it-answers");
  // Who never had any is asked for six times, see above.
  await putScript(
    (give) => `echo >> ${asked}; case $(wc -l < ${asked}) in
      1) ${give("token1")};;
      ?|1[0-2]) exit 1;;
      *) ${give("token2")};;
    esac`,
  );
  await using it = await setUp();
  await it.store.get("a", 10);
  it.valid.token = "token2";
  expect((await it.store.get("a", 10)).body).toHaveLength(5);
});

test("what gave credentials before and does not come back is told as that", async () => {
  const asked = join(directory.path, "asked-once");
  await putScript((give) => `test -e ${asked} && exit 1; touch ${asked}; ${give("token1")}`);
  await using it = await setUp(undefined, { retryDeadlineMs: 300 });
  await it.store.get("a", 10);
  it.valid.token = "token2";
  const error = (await it.store.get("a", 10).catch((thrown: unknown) => thrown)) as Failure;
  expect(error).toBeInstanceOf(AccessError);
  expect(error.hint).toBe("There were credentials until now; check what renews them.");
});
