/**
 * One bucket, asked until it answers: every request to S3 goes through ask(). What is asked stands in s3-read.ts,
 * s3-write.ts, s3-list.ts and s3-delete.ts.
 */
import type { S3Client } from "@aws-sdk/client-s3";
import { Failure } from "../errors.ts";
import { abortableDelay } from "../system/delay.ts";
import type { Log } from "../system/log.ts";
import { formatSeconds } from "../system/quantity.ts";
import { checkKey } from "./object-key.ts";
import type { ObjectKey } from "./object-store.ts";
import { type Attempts, type RetryOptions, retrying } from "./retry.ts";
import {
  answerOf,
  asCredentialsError,
  BadAnswerError,
  EXPIRED_CODES,
  failureOf,
  verdictOf,
  wantsContentMd5,
} from "./s3-answer.ts";
import type { S3ClientOptions } from "./s3-client.ts";

export interface S3BucketOptions extends S3ClientOptions {
  /** Without slashes at its ends; empty for the whole bucket. */
  readonly prefix: string;
  readonly signal: AbortSignal;
  readonly log: Log;
  /** SSE-C: 32 bytes, needed for reading too. */
  readonly customerKey?: Uint8Array | undefined;

  /** Since the first failure of a request, or of reading on. */
  readonly retryDeadlineMs: number;
  readonly now?: (() => number) | undefined;
  readonly random?: (() => number) | undefined;
  readonly delay?: ((ms: number, signal: AbortSignal) => Promise<void>) | undefined;
}

/** What a stop by signal still gets for taking back what was begun. */
export const CLEANUP_MS = 5000;

/** Trouble that lasts is told, and then again now and then: whoever waits sees what for, long before it is given up. */
const TELL_AFTER_MS = 10_000;
const TELL_EVERY_MS = 60_000;

/** For the SDK's send(). */
export type Abort = { readonly abortSignal: AbortSignal };

export class S3Bucket {
  readonly location: string;
  readonly client: S3Client;
  readonly name: string;
  /** Empty, or ending in "/". */
  readonly prefix: string;
  /** SSE-C's parameters: needed to read as well as to write. */
  readonly customerKey: { SSECustomerAlgorithm?: string; SSECustomerKey?: string };
  readonly signal: AbortSignal;
  readonly log: Log;
  readonly #options: S3BucketOptions;
  #toldAtMs = Number.NEGATIVE_INFINITY;
  #wantsContentMd5 = false;
  #hadCredentials = false;

  constructor(options: S3BucketOptions, client: S3Client) {
    const { bucket, prefix, customerKey, signal, log } = options;
    this.#options = options;
    this.client = client;
    this.name = bucket;
    this.prefix = prefix === "" ? "" : `${prefix}/`;
    this.location = `s3://${bucket}${prefix && `/${prefix}`}`;
    this.customerKey = customerKey
      ? { SSECustomerAlgorithm: "AES256", SSECustomerKey: Buffer.from(customerKey).toString("base64") }
      : {};
    this.signal = signal;
    this.log = log;
  }

  /** The same bucket for taking back what was begun, whatever stopped the work. */
  forCleanup(): S3Bucket {
    const options = {
      ...this.#options,
      signal: AbortSignal.timeout(CLEANUP_MS),
      // Whoever wants to know of a failure soon does not wait longer for what comes after it.
      retryDeadlineMs: Math.min(CLEANUP_MS, this.#options.retryDeadlineMs),
    };
    return new S3Bucket(options, this.client);
  }

  urlOf(key: ObjectKey): string {
    return `s3://${this.name}/${this.prefix}${key}`;
  }

  /** @throws UsageError  the key is none that a store may have */
  addressOf(key: ObjectKey): { readonly Bucket: string; readonly Key: string } {
    checkKey(key);
    return { Bucket: this.name, Key: this.prefix + key };
  }

  /**
   * For a request that sends this body, asked for anew each time that it is sent: nothing until the store has wanted a checksum. Few
   * do, and MD5 takes 26 ms for 16 MiB.
   */
  checksumOf(body: Uint8Array): { ContentMD5?: string } {
    return this.#wantsContentMd5 ? { ContentMD5: new Bun.CryptoHasher("md5").update(body).digest("base64") } : {};
  }

  /**
   * Sends until it succeeds or trying makes no more sense.
   *
   * @param action          "could not …", for the message
   * @param signal          in place of the bucket's
   * @param permissionHint  for a request that needs other permissions than reading and writing do
   * @throws a Failure, or the reason of the signal
   */
  async ask<Answer>(
    action: string,
    work: (abort: Abort) => Promise<Answer>,
    { signal = this.signal, permissionHint }: { signal?: AbortSignal; permissionHint?: string } = {},
  ): Promise<Answer> {
    let attempts: Attempts | undefined;
    try {
      return await retrying(this.retryOptions(signal), async (all) => {
        attempts = all;
        return await this.attempt(() => work({ abortSignal: signal }));
      });
    } catch (error) {
      if (signal.aborted) throw signal.reason;
      throw this.failure(action, error, attempts, permissionHint);
    }
  }

  /**
   * Sends once, and once more if the credentials that it was signed with are not valid any more and there are others now. In a long
   * command that happens.
   */
  async attempt<Answer>(work: () => Promise<Answer>): Promise<Answer> {
    const send = () => this.#withChecksum(work);
    const ask = this.client.config.credentials as (options?: { forceRefresh: boolean }) => Promise<Identity>;
    const provider = (options?: { forceRefresh: boolean }) =>
      ask(options).catch((error: unknown) => {
        throw asCredentialsError(error);
      });
    const signedWith = await provider();
    this.#hadCredentials = true;
    try {
      return await send();
    } catch (error) {
      if (!isOutdated(error)) throw error;
      // Another request may have renewed them meanwhile.
      if (isSame(await provider(), signedWith) && isSame(await provider({ forceRefresh: true }), signedWith))
        throw error;
      return await send();
    }
  }

  /** Sends once, and once more if a checksum was missing. Others may have been sent without it meanwhile. */
  async #withChecksum<Answer>(work: () => Promise<Answer>): Promise<Answer> {
    try {
      return await work();
    } catch (error) {
      if (!wantsContentMd5(error)) throw error;
      this.#wantsContentMd5 = true;
      return await work();
    }
  }

  retryOptions(signal: AbortSignal): RetryOptions {
    const {
      retryDeadlineMs,
      now = () => performance.now(),
      random = Math.random,
      delay = abortableDelay,
    } = this.#options;
    return {
      deadlineMs: retryDeadlineMs,
      signal,
      now,
      random,
      delay,
      verdictOf: (error) => verdictOf(error, { hadCredentials: this.#hadCredentials }),
      onRetry: (error: unknown, waitMs: number, failingForMs: number) => {
        const { status, code } = answerOf(error);
        this.log.debug(
          `asking ${this.location} again in ${Math.round(waitMs)} ms: ${[status, code].filter(Boolean).join(" ") || "no answer"}`,
        );
        if (failingForMs < TELL_AFTER_MS || now() < this.#toldAtMs + TELL_EVERY_MS) return;
        this.#toldAtMs = now();
        this.#tellTrouble(error, failingForMs, retryDeadlineMs - failingForMs);
      },
    };
  }

  #tellTrouble(error: unknown, failingForMs: number, leftMs: number): void {
    const failure = this.failure("", error, undefined);
    const detail = failure instanceof Failure ? failure.detail : undefined;
    this.log.warning(`no success with ${this.location} for ${formatSeconds(failingForMs / 1000)}`, {
      ...(detail !== undefined && { detail }),
      hint: `It is tried again, for up to ${formatSeconds(leftMs / 1000)} more.`,
    });
  }

  failure(action: string, error: unknown, attempts: Attempts | undefined, permissionHint?: string): unknown {
    const { endpoint, secretAccessKey, sessionToken } = this.#options;
    return failureOf(error, {
      action,
      bucket: this.name,
      endpoint: endpoint === undefined ? undefined : new URL(endpoint).origin,
      attempts: attempts?.failures ?? 1,
      elapsedMs: attempts?.failingForMs ?? 0,
      hadCredentials: this.#hadCredentials,
      permissionHint,
      secrets: [secretAccessKey, sessionToken, this.customerKey.SSECustomerKey].filter((text) => text !== undefined),
    });
  }
}

interface Identity {
  readonly accessKeyId: string;
  readonly sessionToken?: string;
}

const isSame = (one: Identity, other: Identity) =>
  one.accessKeyId === other.accessKeyId && one.sessionToken === other.sessionToken;

/** What the store does not know may be what was replaced meanwhile. */
const UNKNOWN_CODES: ReadonlySet<string> = new Set(["InvalidAccessKeyId", "InvalidToken", "InvalidTokenId"]);

function isOutdated(error: unknown): boolean {
  const { code = "" } = answerOf(error);
  return EXPIRED_CODES.has(code) || UNKNOWN_CODES.has(code);
}

/** @throws BadAnswerError  the store gave none */
export function sizeOf(size: number | undefined): number {
  if (size !== undefined && Number.isSafeInteger(size) && size >= 0) return size;
  throw new BadAnswerError(`the store gave ${size} as the size of an object`);
}
