/**
 * What an S3 answer, or the lack of one, means: whether to ask again, and which Failure it is.
 *
 * Only NoSuchKey may become NotFoundError. NoSuchBucket is a 404 too, and so is a page of some proxy; taking either for
 * "no such file" would let recovery end early. Codes: "Error responses" in the Amazon S3 API Reference.
 */
import { AccessError, Failure, IntegrityError, NotFoundError, reasonOf, StorageError, UsageError } from "../errors.ts";
import { ConnectionError } from "./http-handler.ts";
import { UploadLostError } from "./object-store.ts";
import type { Verdict } from "./retry.ts";

/** The parts of an answer we decide by. An answer without a status never came. */
export interface S3Answer {
  readonly status: number | undefined;
  /** S3's error code, or the system's if there was no answer. */
  readonly code: string | undefined;
  readonly message: string;
  readonly requestId: string | undefined;
  readonly retryAfterMs: number | undefined;
  /** Where the bucket is, if the store said so. */
  readonly region: string | undefined;
}

/** Thrown by our own checks of an answer whose status was a good one. */
export class BadAnswerError extends Error {
  constructor(message: string) {
    super(message);
    this.name = "BadAnswerError";
  }
}

/**
 * Of a request for an object: every S3 service names the object's version in a good answer. A page with which a proxy, a load
 * balancer or a captive portal answers 200 has none, and would be taken for an upload that succeeded.
 *
 * @throws BadAnswerError  it is none of S3's
 */
export function checkHasETag({ ETag }: { readonly ETag?: string | undefined }): void {
  if (!ETag) throw new BadAnswerError("the answer has no ETag, so it is none of S3's");
}

export function answerOf(error: unknown): S3Answer {
  const it = (error ?? {}) as {
    name?: string;
    Code?: string;
    code?: string;
    message?: string;
    Region?: string;
    BucketRegion?: string;
    $metadata?: { httpStatusCode?: number; requestId?: string };
    $response?: { statusCode?: number; headers?: Record<string, string> };
  };
  const headers = it.$response?.headers ?? {};
  // Of an answer that broke off in the body of an error, the SDK has the status, and nothing is known.
  const status =
    error instanceof ConnectionError ? undefined : (it.$metadata?.httpStatusCode ?? it.$response?.statusCode);
  const named = it.Code ?? (it.name && !NOT_A_CODE.has(it.name) ? it.name : undefined);
  const message = it.message === undefined || it.message === "UnknownError" ? "" : it.message;
  return {
    status,
    code: status === undefined ? (it.code ?? it.name) : named,
    message,
    requestId: it.$metadata?.requestId,
    retryAfterMs: retryAfterOf(headers["retry-after"]),
    region: headers["x-amz-bucket-region"] ?? it.Region ?? it.BucketRegion,
  };
}

/** Names the SDK makes up for an answer without a body. HEAD never has one. */
const NOT_A_CODE = new Set([
  "Unknown",
  "UnknownError",
  "Error",
  "NotFound",
  "S3ServiceException",
  "SyntaxError",
  "TypeError",
]);

/** "HTTP Semantics", Retry-After: seconds, or a date. Bounded: no store may put us to sleep for a day. */
function retryAfterOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const ms = /^\d+$/.test(text.trim()) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(ms) && ms > 0 ? Math.min(ms, 3_600_000) : undefined;
}

/** Overload, trouble inside the store, or bytes that got lost on the way. */
const PASSING_CODES = new Set([
  "SlowDown",
  "SlowDownRead",
  "SlowDownWrite",
  "ServiceUnavailable",
  "ServerBusy",
  "InternalError",
  "RequestTimeout",
  "RequestTimeoutException",
  "Throttling",
  "ThrottlingException",
  "RequestLimitExceeded",
  "TooManyRequests",
  "BandwidthLimitExceeded",
  "OperationAborted",
  "ConditionalRequestConflict",
  "IncompleteBody",
  "BadDigest",
  "XAmzContentSHA256Mismatch",
]);

/**
 * The certificate is wrong for good; asking again gives the same. Names as OpenSSL, BoringSSL and Node.js spell them. What else goes
 * wrong with TLS passes: a damaged record, or the alert of a load balancer that is in trouble itself.
 */
const CERTIFICATE_CODE = /CERT|SELF_SIGNED|UNABLE_TO_|UNKNOWN_CA|INVALID_CA|HOSTNAME_MISMATCH/;
/** The answer is no TLS: a server without it, or a load balancer that has nobody to ask. */
const NO_TLS_CODE = "ERR_SSL_WRONG_VERSION_NUMBER";
/** Set by the SDK's credential providers. The metadata service may be late when a machine starts. */
const CREDENTIALS_NAME = /^(CredentialsProviderError|TokenProviderError|ProviderError)$/;

export const EXPIRED_CODES: ReadonlySet<string> = new Set([
  "ExpiredToken",
  "ExpiredTokenException",
  "TokenRefreshRequired",
]);

const UNTIL_DEADLINE = { retry: "until-deadline" } as const;
const NEVER = { retry: "never" } as const;

/** @param hadCredentials  what gives credentials has given some to this process before */
export function verdictOf(error: unknown, { hadCredentials = false } = {}): Verdict {
  if (error instanceof Failure) return NEVER;
  if (error instanceof BadAnswerError) return UNTIL_DEADLINE;
  // What gave credentials before is there, and will be again: a container's or a machine's endpoint that renews them has an outage.
  if (isCredentialsError(error) || isOfLocalFile(error))
    return hadCredentials ? UNTIL_DEADLINE : { retry: "few", times: 2 };
  if (isOfSettings(error)) return NEVER;

  const { status, code, retryAfterMs } = answerOf(error);
  if (status === undefined) {
    if (code !== undefined && CERTIFICATE_CODE.test(code)) return NEVER;
    if (code === NO_TLS_CODE) return { retry: "few", times: 4 };
    // An unknown host too: of a resolver that fails to find the IPv4 address, and knows that there is no IPv6 address, the system
    // tells the same (ENOTFOUND). What has neither a status nor a system's code is a bug of ours.
    return hasSystemCode(error) ? UNTIL_DEADLINE : NEVER;
  }
  // The SDK corrects its clock by the Date of the refusal.
  if (code === "RequestTimeTooSkewed") return { retry: "few", times: 1 };
  if (code !== undefined && PASSING_CODES.has(code)) return { retry: "until-deadline", afterMs: retryAfterMs };
  if (status === 501 || status === 505) return NEVER;
  if (status >= 500 || status === 408 || status === 429) return { retry: "until-deadline", afterMs: retryAfterMs };
  // A good status whose body could not be understood: cut off, or a page of some proxy.
  if (status < 300) return { retry: "few", times: 4 };
  // Not S3's own words: a proxy or a load balancer that is being set up.
  if (status === 404 && code === undefined) return { retry: "few", times: 2 };
  return NEVER;
}

/**
 * Whether the store takes no body without a checksum beside it, as AWS and Backblaze B2 do where the bucket has a default retention
 * ("Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"). Its code is no other
 * than for many a bad request, so its words have to tell.
 */
export function wantsContentMd5(error: unknown): boolean {
  const { status, code, message } = answerOf(error);
  return status === 400 && code === "InvalidRequest" && /content-md5/i.test(message);
}

function isCredentialsError(error: unknown): boolean {
  return error instanceof Error && CREDENTIALS_NAME.test(error.name);
}

/** What a provider throws where its settings are incomplete may be of any kind. */
export function asCredentialsError(error: unknown): Error {
  if (error instanceof Error && (isCredentialsError(error) || isOfSettings(error) || hasSystemCode(error)))
    return error;
  return Object.assign(new Error(reasonOf(error), { cause: error }), { name: "CredentialsProviderError" });
}

/** A file of credentials or settings that the SDK looks for, or the home directory in which it does. */
function isOfLocalFile(error: unknown): boolean {
  const { code, path, syscall } = (error ?? {}) as { code?: unknown; path?: unknown; syscall?: unknown };
  return typeof code === "string" && (typeof path === "string" || syscall === "uv_os_homedir");
}

/** What the SDK refuses before it sends anything. Its own errors have names or words alone. */
function isOfSettings(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const code = (error as { code?: unknown }).code;
  return (
    error.name === "EndpointError" ||
    /^(Region not accepted|Region is missing|Invalid parameter for|Invalid Configuration)/.test(error.message) ||
    (typeof code === "string" && code.startsWith("ERR_INVALID_"))
  );
}

function hasSystemCode(error: unknown): boolean {
  if (error instanceof ConnectionError) return true;
  const code = (error as { code?: unknown } | undefined)?.code;
  return (
    typeof code === "string" &&
    /^(E[A-Z0-9_]+|HPE_\w+|ConnectionClosed|ConnectionRefused|FailedToOpenSocket|Timeout)$/.test(code)
  );
}

/** Whether the request may have been carried out although it failed. */
export function mayHaveHappened(error: unknown): boolean {
  const { status } = answerOf(error);
  return status === undefined || status >= 500 || status === 408 || status < 300;
}

export interface FailedRequest {
  /** `could not read "s3://…"` */
  readonly action: string;
  readonly bucket: string;
  readonly endpoint: string | undefined;
  readonly attempts: number;
  readonly elapsedMs: number;
  readonly hadCredentials?: boolean | undefined;
  /** What a refusal is answered with, where the request needs other permissions than reading and writing do. */
  readonly permissionHint?: string | undefined;
  /** Texts that must not be shown, whatever a server echoes. */
  readonly secrets: readonly string[];
}

/** Turns what was thrown into what is then known. A bug of ours and a stop by signal stay what they are. */
export function failureOf(error: unknown, request: FailedRequest): unknown {
  if (error instanceof Failure) return error;
  const { action, bucket, endpoint } = request;
  const where = endpoint ?? "AWS";
  const answer = answerOf(error);
  const { status, code, region } = answer;
  const detail = hideSecrets(describe(error, answer, request), request.secrets);
  const failed = (hint?: string) => ({ detail, hint, cause: error });

  if (isCredentialsError(error)) {
    return new AccessError(
      action,
      failed(
        request.hadCredentials
          ? "There were credentials until now; check what renews them."
          : "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the machine a role.",
      ),
    );
  }
  if (isOfLocalFile(error)) {
    return new AccessError(action, failed("AWS's credentials and settings are looked for there: check what names it."));
  }
  if (isOfSettings(error)) {
    return new UsageError(
      action,
      failed(
        "Check AWS_REGION, the endpoint, the credentials, and other variables whose names begin with AWS_: nothing may stand behind a value, such as a blank or a CR.",
      ),
    );
  }
  if (error instanceof BadAnswerError) return new StorageError(action, failed());
  if (status === undefined) {
    if (code !== undefined && CERTIFICATE_CODE.test(code)) {
      return new StorageError(action, failed(`Name the certificate authority of ${where} in WALB_S3_CA_CERT_FILE.`));
    }
    if (code === NO_TLS_CODE) {
      return new StorageError(
        action,
        failed(
          `${where} answers without TLS. Check the endpoint's port, and whether it begins with http:// and not https://.`,
        ),
      );
    }
    if (!hasSystemCode(error)) return error;
    return new StorageError(action, failed(`Check that ${where} can be reached from this machine.`));
  }
  // Both, or something between the store and here has put an answer together.
  if (code === "NoSuchKey" && status === 404) return new NotFoundError(action, failed());
  if (code === "NoSuchUpload" && status === 404) {
    const hint = "A lifecycle rule that aborts uploads, or another program, has ended it.";
    return new UploadLostError(action, failed(hint));
  }
  if (code === "NoSuchBucket") {
    return new UsageError(
      action,
      failed(`Check the bucket's name in the prefix: "${bucket}" does not exist at ${where}.`),
    );
  }
  if (code === "InvalidBucketName")
    return new UsageError(action, failed(`"${bucket}" cannot be the name of a bucket.`));
  if (status === 301 || status === 307 || status === 308 || isWrongRegion(code)) {
    return new UsageError(
      action,
      failed(
        region === undefined
          ? "Check the endpoint and AWS_REGION."
          : `Set AWS_REGION=${region}, where the bucket "${bucket}" is.`,
      ),
    );
  }
  if (code === "RequestTimeTooSkewed") return new StorageError(action, failed("Set this machine's clock."));
  // A 403 that no credentials change. The object is there and whole; asked again within minutes, it is where it was.
  if (code === "InvalidObjectState") {
    return new StorageError(
      action,
      failed(
        "The object is in an archive storage class. Have the store restore a copy of it first, by RestoreObject, and keep lifecycle rules that move objects there away from this prefix.",
      ),
    );
  }
  if (status === 401 || status === 403 || isRefusal(code)) {
    return new AccessError(action, failed(accessHint(code, request.permissionHint)));
  }
  if (code === "InvalidStorageClass") return new UsageError(action, failed("The store has no such storage class."));
  if (code === "EntityTooLarge") return new StorageError(action, failed("The store limits the size of an object."));
  if (code === "PreconditionFailed")
    return new IntegrityError(action, failed("The object changed while it was being read."));
  if (status === 404 && code === undefined) {
    return new StorageError(
      action,
      failed(
        `This 404 has no S3 error code and so proves nothing; check that ${where} is an S3 endpoint and no proxy answers for it.`,
      ),
    );
  }
  return new StorageError(action, failed());
}

function describe(error: unknown, answer: S3Answer, { attempts, elapsedMs, endpoint }: FailedRequest): string {
  const { status, code, message, requestId } = answer;
  const tried = attempts > 1 ? `${attempts} attempts in ${Math.max(1, Math.round(elapsedMs / 1000))} s` : "";
  const text = shortened(message);
  if (status === undefined || error instanceof BadAnswerError) {
    const said = error instanceof Error ? shortened(reasonOf(error)) : "no answer";
    if (isOfLocalFile(error) || isOfSettings(error)) return `${said.replace(/\.$/, "")}.`;
    return `${endpoint ?? "AWS"}: ${said}${tried && ` (${tried})`}.`;
  }
  const known = [requestId && `request ${shortened(requestId)}`, tried].filter(Boolean).join(", ");
  return `S3 answered ${status}${code ? ` ${shortened(code)}` : ""}${text && `: ${text.replace(/\.$/, "")}`}${known && ` (${known})`}.`;
}

/** One line, and not a page. */
function shortened(text: string): string {
  const line = text.replace(/\p{Cc}+/gu, " ").trim();
  return line.length > 300 ? `${line.slice(0, 300)}…` : line;
}

/** A server may echo what it was sent: nothing of a signature may reach a log. */
function hideSecrets(text: string, secrets: readonly string[]): string {
  let hidden = text
    .replace(/AWS4-HMAC-SHA256[^"']*/gi, "[signature]")
    .replace(
      /(X-Amz-(Signature|Credential|Security-Token)|Signature|Authorization)\s*[=:]\s*[^&\s"']+/gi,
      "$1=[hidden]",
    );
  for (const secret of secrets) {
    if (secret.length >= 4) hidden = hidden.replaceAll(secret, "[hidden]");
  }
  return hidden;
}

function isWrongRegion(code: string | undefined): boolean {
  return (
    code === "PermanentRedirect" ||
    code === "AuthorizationHeaderMalformed" ||
    code === "IllegalLocationConstraintException"
  );
}

function isRefusal(code: string | undefined): boolean {
  return (
    code === "AccessDenied" ||
    code === "InvalidAccessKeyId" ||
    code === "SignatureDoesNotMatch" ||
    EXPIRED_CODES.has(code ?? "")
  );
}

const PERMISSIONS =
  "The credentials need s3:GetObject, s3:PutObject and s3:ListBucket on this bucket; only the delete commands need s3:DeleteObject. Without s3:ListBucket, S3 answers so for an object that is not there, too: then nobody can tell where the archive ends.";
/** Of requests that find and end uploads which nobody finished. */
export const UPLOAD_PERMISSIONS =
  "Finding and aborting unfinished uploads needs s3:ListBucketMultipartUploads on the bucket and s3:AbortMultipartUpload on what is below the prefix.";

function accessHint(code: string | undefined, permissionHint = PERMISSIONS): string {
  switch (code) {
    case "InvalidAccessKeyId":
      return "The store does not know this access key; check AWS_ACCESS_KEY_ID, and the endpoint.";
    case "SignatureDoesNotMatch":
      return "Check AWS_SECRET_ACCESS_KEY; a proxy that changes requests has the same effect.";
    case "ExpiredToken":
    case "ExpiredTokenException":
    case "TokenRefreshRequired":
    case "InvalidToken":
      return "The session token is no longer valid; renew it, or use credentials that renew themselves.";
    default:
      return permissionHint;
  }
}
