// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are texts of the program.
/** What guards the machine and its secrets, and the way out: memory, messages, formats. */
import { type Guard, ofPromise } from "./guard.ts";

export const LIMIT_GUARDS: readonly Guard[] = [
  ...ofPromise(8, [
    {
      guards: "a small object cannot become more than is possible",
      file: "codec/content.ts",
      search: "    if (total > maxBytes)\n",
      replacement: "    if (false)\n",
      test: "test/unit/codec/content.test.ts",
      fails: "decodeContent() refuses more than is possible, however much would come",
    },
    {
      guards: "who asks for more memory than there is waits",
      file: "system/byte-budget.ts",
      search: "    if (this.#waiting.length > 0 || !this.#fits(bytes)) {",
      replacement: "    if (false) {",
      test: "test/unit/system/byte-budget.test.ts",
      fails: "ByteBudget grants in order what fits",
    },
  ]),
  ...ofPromise(9, [
    {
      guards: "an encryption key that cannot be used is an error",
      file: "config/settings.ts",
      search: "if (pattern.test(variable)) throw",
      replacement: "if (false) throw",
      test: "test/unit/config/settings.test.ts",
      fails: "loadSettings() > WALE_GPG_KEY_ID is refused, because going on without it would be worse",
    },
    {
      guards: "a key that is no key is not shown",
      file: "cli/prefix.ts",
      search: '"the key in S3_SSE_C cannot be used"',
      replacement: "`the key in S3_SSE_C cannot be used: ${text}`",
      test: "test/unit/cli/prefix.test.ts",
      fails: "parseCustomerKey() > refuses any other size and does not show it",
    },
    {
      guards: "what a store echoes does not get into a message",
      file: "storage/s3-answer.ts",
      search: 'if (secret.length >= 4) hidden = hidden.replaceAll(secret, "[hidden]");',
      replacement: "",
      test: "test/unit/storage/s3.test.ts",
      fails: "a secret that a server echoes is not shown",
    },
    {
      guards: "a line of a service file is not quoted",
      file: "postgres/service-file.ts",
      search: '`There is no connection parameter "${key}".`',
      replacement: "`There is no connection parameter in ${line}.`",
      test: "test/property/configuration.test.ts",
      fails: "a service reads as it was written; other lines are refused without being quoted",
    },
  ]),
  ...ofPromise(10, [
    {
      guards: "64-bit numbers keep their digits",
      file: "repository/json.ts",
      search: '(typeof part === "bigint" ? JSON.rawJSON(part.toString()) : part)',
      replacement: '(typeof part === "bigint" ? Number(part) : part)',
      test: "test/unit/repository/sentinel.test.ts",
      fails: "encodeSentinel() > writes WAL-G's fields, 64-bit numbers as integers",
    },
    {
      guards: "members of archives have the names that WAL-G looks for",
      file: "codec/tar.ts",
      search: ", ...extendedIfLong(name) });",
      replacement: " });",
      test: "test/unit/codec/tar.test.ts",
      fails: "keep the leading slash of a name that is too long for one field of a plain header",
    },
    {
      guards: "keys are WAL-G's",
      file: "repository/keys.ts",
      search: 'export const WAL = "wal_005/";',
      replacement: 'export const WAL = "wal/";',
      test: "test/unit/repository/keys.test.ts",
      fails: "parseWalKey() > is the inverse of walKey(): 000000010000000000000004",
    },
  ]),
];
