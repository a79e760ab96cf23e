/**
 * Every setting: its flag, variables, type, bounds, initial value and help. docs/settings.md is generated from here.
 *
 * A value is looked for as a flag, then as WALB_X, WALG_X and WALE_X, then under the names that AWS gave it. What is
 * wrong is named with where it was found and what is allowed; an unknown WALB_ variable is an error, because a
 * mistyped one would otherwise be ignored.
 */
import { UsageError } from "../errors.ts";
import type { Environment } from "./envdir.ts";

interface Words {
  /** Of its variables: WALB_name, WALG_name and WALE_name. */
  readonly name: string;
  /** Long flag without dashes, where there is one. */
  readonly flag?: string;
  /** Variables of AWS's own that are looked at after those, in their order. */
  readonly aws?: readonly string[];
  readonly help: string;
  readonly secret?: true;
}

interface Row<Value> extends Words {
  readonly initial: Value;
  /** The same for commands that run for long, where it differs. */
  readonly initialOfLong?: Value;
  /** @throws RangeError  the text is not allowed */
  parse(text: string): Value;
  show(value: Value): string;
  allowed(): string;
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

interface Bounds {
  readonly initial: number;
  readonly initialOfLong?: number;
  readonly min: number;
  readonly max: number;
}

interface NumberForm {
  readonly pattern: RegExp;
  readonly units: Readonly<Record<string, number>>;
  readonly help: string;
  show(value: number): string;
}

const INTEGER: NumberForm = { pattern: /^(\d+)$/, units: { "": 1 }, help: "a whole number", show: String };

/** PostgreSQL's memory units: kB, MB and GB are powers of 1024. */
const BYTES: NumberForm = {
  pattern: /^(\d+)\s*(|B|kB|KiB|MB|MiB|GB|GiB)$/,
  units: { "": 1, B: 1, kB: KiB, KiB, MB: MiB, MiB, GB: GiB, GiB },
  help: "a size in bytes, or with kB, MB, GB",
  show: (n) => (n % GiB === 0 ? `${n / GiB}GB` : n % MiB === 0 ? `${n / MiB}MB` : `${n}`),
};

/** PostgreSQL's time units; a bare number is seconds. */
const DURATION: NumberForm = {
  pattern: /^(\d+)\s*(|ms|s|min|h)$/,
  units: { "": SECOND, ms: 1, s: SECOND, min: MINUTE, h: HOUR },
  help: "a time in seconds, or with ms, s, min, h",
  show: (n) =>
    n === 0
      ? "0"
      : n % HOUR === 0
        ? `${n / HOUR}h`
        : n % MINUTE === 0
          ? `${n / MINUTE}min`
          : n % SECOND === 0
            ? `${n / SECOND}s`
            : `${n}ms`,
};

export const SETTINGS = {
  s3Prefix: text({ name: "S3_PREFIX", flag: "s3-prefix", help: "where the repository is: s3://bucket/path" }),
  filePrefix: text({
    name: "FILE_PREFIX",
    flag: "file-prefix",
    help: "where the repository is, as a local directory: file://localhost/dir or /dir",
  }),

  endpoint: text({
    name: "S3_ENDPOINT",
    aws: ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
    help: "address of an S3-compatible service: https://host:port; WAL-E's https+path://host:port selects path style",
  }),
  region: text({
    name: "S3_REGION",
    aws: ["AWS_REGION", "AWS_DEFAULT_REGION"],
    help: "region of the bucket; if unset, that of the AWS profile, else us-east-1",
  }),
  forcePathStyle: choice(["true", "false"] as const, {
    name: "S3_FORCE_PATH_STYLE",
    aws: ["AWS_S3_FORCE_PATH_STYLE"],
    help: "address the bucket as a path instead of a host name; if unset, chosen by endpoint and bucket name",
  }),
  accessKeyId: text({
    name: "S3_ACCESS_KEY_ID",
    flag: "aws-access-key-id",
    aws: ["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"],
    help: "access key; if unset, the AWS SDK's standard chain of credentials is used",
  }),
  secretAccessKey: text({
    name: "S3_SECRET_ACCESS_KEY",
    aws: ["AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY"],
    secret: true,
    help: "secret of the access key",
  }),
  sessionToken: text({
    name: "S3_SESSION_TOKEN",
    aws: ["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"],
    secret: true,
    help: "token of temporary credentials",
  }),
  caCertFile: text({
    name: "S3_CA_CERT_FILE",
    aws: ["AWS_CA_BUNDLE"],
    help: "PEM file with the certificate authorities to trust for the S3 endpoint",
  }),
  storageClass: text({ name: "S3_STORAGE_CLASS", help: "storage class of new objects, such as STANDARD_IA" }),
  serverSideEncryption: choice(["AES256", "aws:kms"] as const, {
    name: "S3_SSE",
    help: "server-side encryption of new objects",
  }),
  kmsKeyId: text({ name: "S3_SSE_KMS_ID", help: "KMS key for S3_SSE=aws:kms" }),
  customerKey: text({
    name: "S3_SSE_C",
    secret: true,
    help: "customer key for server-side encryption: 32 bytes, as they are or in base64",
  }),
  conditionalWrites: choice(["detect", "require", "emulate"] as const, {
    name: "S3_CONDITIONAL_WRITES",
    help: "how nothing is ever overwritten. require: one atomic request; emulate: look first, for services without If-None-Match; detect: require, and emulate where a trial shows that the service ignores it",
    initial: "detect",
  }),
  partSizeBytes: number(BYTES, {
    name: "S3_MAX_PART_SIZE",
    help: "size of the parts of multipart uploads; grows by itself for very large objects",
    initial: 16 * MiB,
    min: 5 * MiB,
    max: 5 * GiB,
  }),

  retryDeadlineMs: number(DURATION, {
    name: "RETRY_DEADLINE",
    help: "give up on a request to the store after trying for this long; longer where that may cost hours of work",
    initial: MINUTE,
    initialOfLong: 10 * MINUTE,
    min: 0,
    max: 24 * HOUR,
  }),
  connectTimeoutMs: number(DURATION, {
    name: "CONNECT_TIMEOUT",
    help: "one attempt to connect to the store",
    initial: 10 * SECOND,
    min: 100,
    max: 10 * MINUTE,
  }),
  idleTimeoutMs: number(DURATION, {
    name: "IDLE_TIMEOUT",
    help: "one request to the store, without a byte moving",
    initial: 30 * SECOND,
    min: 100,
    max: 30 * MINUTE,
  }),

  recoveryRetryDeadlineMs: number(DURATION, {
    name: "RECOVERY_RETRY_DEADLINE",
    help: "wal-fetch in recovery: the same; giving up stops the server, so it is long",
    initial: 10 * MINUTE,
    min: 0,
    max: 24 * HOUR,
  }),
  standbyRetryDeadlineMs: number(DURATION, {
    name: "STANDBY_RETRY_DEADLINE",
    help: "wal-fetch on a standby: the same; a standby asks again by itself and has streaming to go on with, so it is short",
    initial: 10 * SECOND,
    min: 0,
    max: 24 * HOUR,
  }),
  prefetchCount: number(INTEGER, {
    name: "PREFETCH",
    flag: "prefetch",
    help: "wal-fetch: segments kept ready ahead of recovery, at most 1 GiB of them; 0 for none",
    initial: 8,
    min: 0,
    max: 256,
  }),
  prefetchDirectory: text({
    name: "PREFETCH_DIR",
    help: "wal-fetch: a directory to keep them below; in pg_wal if not set, where they are renamed into place",
  }),

  walPushPoolSize: number(INTEGER, {
    name: "WAL_PUSH_CONCURRENCY",
    flag: "pool-size",
    help: "wal-push: segments archived at once, the requested one included",
    initial: 32,
    min: 1,
    max: 256,
  }),
  uploadConcurrency: number(INTEGER, {
    name: "UPLOAD_CONCURRENCY",
    flag: "pool-size",
    help: "backup-push: parts written at once",
    initial: 4,
    min: 1,
    max: 64,
  }),
  downloadConcurrency: number(INTEGER, {
    name: "DOWNLOAD_CONCURRENCY",
    flag: "pool-size",
    help: "backup-fetch: parts read at once",
    initial: 4,
    min: 1,
    max: 64,
  }),
  compressionMethod: choice(["zstd"] as const, {
    name: "COMPRESSION_METHOD",
    help: "how new objects are compressed",
    initial: "zstd",
  }),
  compressionLevel: number(INTEGER, {
    name: "COMPRESSION_LEVEL",
    help: "zstd level of new objects",
    initial: 1,
    min: 1,
    max: 19,
  }),
  tarSizeThresholdBytes: number(BYTES, {
    name: "TAR_SIZE_THRESHOLD",
    help: "backup-push: a part is closed once it holds this much content; one file is never split",
    initial: 256 * MiB,
    min: 1 * MiB,
    max: 64 * GiB,
  }),
  diskRateLimit: number(BYTES, {
    name: "DISK_RATE_LIMIT",
    flag: "cluster-read-rate-limit",
    help: "backup-push: read the data directory at no more than this many bytes a second; 0 for as fast as it goes",
    initial: 0,
    min: 0,
    max: 1024 * GiB,
  }),
  networkRateLimit: number(BYTES, {
    name: "NETWORK_RATE_LIMIT",
    flag: "network-rate-limit",
    help: "backup-push: send parts at no more than this many bytes a second on average; 0 for as fast as it goes. WAL is never held back",
    initial: 0,
    min: 0,
    max: 1024 * GiB,
  }),
  verifyPageChecksums: choice(["true", "false"] as const, {
    name: "VERIFY_PAGE_CHECKSUMS",
    flag: "verify-page-checksums",
    help: "backup-push: compare each page that is read with its checksum, where the cluster has data checksums",
    initial: "true",
  }),
  damagedPages: choice(["report", "fail"] as const, {
    name: "DAMAGED_PAGES",
    flag: "damaged-pages",
    help: "backup-push: what damaged pages do. report: they are logged as errors and noted in the backup; fail: also, exit with 65, and the backup is listed nevertheless",
    initial: "report",
  }),
  archiveTimeoutMs: number(DURATION, {
    name: "ARCHIVE_TIMEOUT",
    help: "backup-push: wait this long for PostgreSQL to archive the WAL that the backup needs",
    initial: 10 * MINUTE,
    min: SECOND,
    max: 24 * HOUR,
  }),
  drillScratch: text({
    name: "DRILL_SCRATCH",
    flag: "scratch",
    help: "verify --drill: the backup is restored into a directory of its own in this one; /var/tmp if not set",
  }),
  drillTimeoutMs: number(DURATION, {
    name: "DRILL_TIMEOUT",
    help: "verify --drill: give up after this long, restore, replay and checks together",
    initial: 24 * HOUR,
    min: SECOND,
    max: 168 * HOUR,
  }),
  postgresBin: text({
    name: "POSTGRES_BIN",
    flag: "postgres-bin",
    help: "verify --drill: directory of the server's programs; looked for in PATH and where packages put them if not set",
  }),

  logFormat: choice(["text", "json"] as const, {
    name: "LOG_FORMAT",
    flag: "log-format",
    help: "how messages on stderr look",
    initial: "text",
  }),
};

export type SettingName = keyof typeof SETTINGS;
export type Settings = { readonly [K in SettingName]: (typeof SETTINGS)[K]["initial"] };

/** Variables that ask for what wal-b cannot do. Going on without it would be worse than an error (promise 9). */
const REFUSED: ReadonlyMap<RegExp, string> = new Map([
  [
    /^(WALE_GPG_KEY_ID|WAL[BG]_(GPG_KEY_ID|PGP_KEY|PGP_KEY_PATH|LIBSODIUM_KEY|LIBSODIUM_KEY_PATH|CSE_KMS_ID|ENVELOPE_PGP_KEY|ENVELOPE_PGP_KEY_PATH)|YC_CSE_KMS_KEY_ID)$/,
    "Client-side encryption is not supported yet, and nothing is ever stored in plain text instead. Unset it, and see WALB_S3_SSE for encryption by the server.",
  ],
  [
    /^(WALE_(WABS|GS|SWIFT)_PREFIX|WAL[BG]_(AZ|GS|SWIFT|SSH|OSS)_PREFIX)$/,
    "Only S3 (WALB_S3_PREFIX) and local directories (WALB_FILE_PREFIX) are supported.",
  ],
]);

/** WALB_ variables that are not settings: used by install.sh. */
const OTHER_VARIABLES = ["WALB_INSTALL_URL"];

/** Of a command. */
interface CommandLength {
  readonly isLong?: boolean;
}

/** Of a setting, in the order in which they are looked at. */
export function variablesOf(name: SettingName): readonly string[] {
  const { name: own, aws = [] }: Words = SETTINGS[name];
  return [`WALB_${own}`, `WALG_${own}`, `WALE_${own}`, ...aws];
}

/** How the initial value is written; undefined when there is none. */
export function initialTextOf(name: SettingName, length: CommandLength = {}): string | undefined {
  const row: Row<unknown> = SETTINGS[name];
  const initial = initialOf(row, length);
  return initial === undefined ? undefined : row.show(initial);
}

const initialOf = (row: Row<unknown>, { isLong = false }: CommandLength) =>
  (isLong ? row.initialOfLong : undefined) ?? row.initial;

export const SETTING_NAMES = Object.keys(SETTINGS) as readonly SettingName[];

const PREFIXES = ["WALB_", "WALG_", "WALE_"];

/** WALB_X also stands for WALG_X and WALE_X. */
const SETTING_OF_VARIABLE = new Map<string, SettingName>();
for (const name of SETTING_NAMES) {
  const row: Words = SETTINGS[name];
  SETTING_OF_VARIABLE.set(`WALB_${row.name}`, name);
  for (const variable of row.aws ?? []) SETTING_OF_VARIABLE.set(variable, name);
}

/**
 * Goes through what is given, not through all that could be: wal-fetch is started for every segment, and JavaScriptCore compiles
 * what is called some thirty times, on threads that it starts for it (docs/decisions/0014-prefetch-hit.md).
 *
 * @param flags  as given on the command line, by setting; a flag beats every variable
 * @throws UsageError  names the flag or variable that was wrong, the text found there, and what is allowed
 */
export function loadSettings(
  flags: Partial<Record<SettingName, string>>,
  env: Environment,
  length: CommandLength = {},
): Settings {
  const inEnvironment = settingsIn(env);
  const settings: Partial<Record<SettingName, unknown>> = {};
  for (const name of SETTING_NAMES) {
    const row: Row<unknown> = SETTINGS[name];
    const isGiven = flags[name] !== undefined || inEnvironment.has(name);
    const given = isGiven ? whereGiven(name, flags, env) : undefined;
    settings[name] = given === undefined ? initialOf(row, length) : parsed(row, given);
  }
  return Object.freeze(settings) as Settings;
}

/** @throws UsageError  for a variable that wal-b does not know, or cannot honour */
function settingsIn(env: Environment): ReadonlySet<SettingName> {
  const found = new Set<SettingName>();
  for (const [variable, value] of Object.entries(env)) {
    if (value === undefined || value === "") continue;
    const isOurs = PREFIXES.includes(variable.slice(0, 5));
    const name = SETTING_OF_VARIABLE.get(isOurs ? `WALB_${variable.slice(5)}` : variable);
    if (name !== undefined) found.add(name);
    else if (isOurs || variable.startsWith("YC_")) checkUnknown(variable);
  }
  return found;
}

function checkUnknown(variable: string): void {
  for (const [pattern, why] of REFUSED) {
    if (pattern.test(variable)) throw new UsageError(`cannot honour ${variable}`, { hint: why });
  }
  if (!variable.startsWith("WALB_") || OTHER_VARIABLES.includes(variable)) return;
  throw new UsageError(`unknown setting ${variable}`, {
    hint: 'See "wal-b --help" and docs/settings.md for those there are.',
  });
}

interface Given {
  readonly place: string;
  readonly text: string;
}

function whereGiven(
  name: SettingName,
  flags: Partial<Record<SettingName, string>>,
  env: Environment,
): Given | undefined {
  const flag = flags[name];
  if (flag !== undefined) return { place: `--${(SETTINGS[name] as Words).flag ?? name}`, text: flag };
  for (const variable of variablesOf(name)) {
    const text = env[variable];
    if (text !== undefined && text !== "") return { place: variable, text };
  }
  return undefined;
}

function parsed(row: Row<unknown>, { place, text }: Given): unknown {
  try {
    return row.parse(text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    const shown = row.secret ? "a value that is not allowed" : `"${text}"`;
    throw new UsageError(`${place} is ${shown}`, { hint: `Allowed: ${row.allowed()}.` });
  }
}

function text(words: Words): Row<string | undefined> {
  return { ...words, initial: undefined, parse: (text) => text, show: String, allowed: () => "text" };
}

function choice<const Value extends string>(
  values: readonly Value[],
  words: Words & { readonly initial: Value },
): Row<Value>;
function choice<const Value extends string>(values: readonly Value[], words: Words): Row<Value | undefined>;
function choice<const Value extends string>(
  values: readonly Value[],
  words: Words & { readonly initial?: Value },
): Row<Value | undefined> {
  const parse = (text: string) => {
    const value = values.find((candidate) => candidate === text);
    if (value === undefined) throw new RangeError(text);
    return value;
  };
  return { initial: undefined, ...words, parse, show: String, allowed: () => values.join(", ") };
}

function number({ pattern, units, help, show }: NumberForm, words: Words & Bounds): Row<number> {
  const { min, max } = words;
  const parse = (text: string) => {
    const [, digits, unit = ""] = pattern.exec(text.trim()) ?? [];
    const value = Number(digits ?? Number.NaN) * (units[unit] ?? Number.NaN);
    if (!(value >= min && value <= max)) throw new RangeError(text);
    return value;
  };
  return { ...words, parse, show, allowed: () => `${help}, from ${show(min)} to ${show(max)}` };
}
