/** The SDK's client for one bucket: where it connects to, with whose keys, and nothing that retries or checks on its own. */
import { readFile } from "node:fs/promises";
import { S3Client, type S3ClientConfig } from "@aws-sdk/client-s3";
import { reasonOf, UsageError } from "../errors.ts";
import { HttpHandler } from "./http-handler.ts";
import { BadAnswerError } from "./s3-answer.ts";
import { needsPathStyle } from "./s3-endpoint.ts";

export interface S3ClientOptions {
  readonly bucket: string;
  /** Default: the SDK's chain, then us-east-1. */
  readonly region?: string | undefined;
  /** A URL. Default: the SDK's chain, then AWS. */
  readonly endpoint?: string | undefined;
  /** Default: where a bucket's name cannot be part of a host's (see s3-endpoint.ts). */
  readonly forcePathStyle?: boolean | undefined;

  /** Default: the SDK's chain. */
  readonly accessKeyId?: string | undefined;
  readonly secretAccessKey?: string | undefined;
  readonly sessionToken?: string | undefined;

  /** Default 10 seconds. */
  readonly connectTimeoutMs?: number | undefined;
  /** Default 60 seconds. */
  readonly idleTimeoutMs?: number | undefined;
}

/** A page of 1,000 of the longest keys, every byte of them escaped, is smaller. */
const MAX_XML_BYTES = 32 * 1024 * 1024;

/** @param trustedCertificates  PEM; none for the built-in authorities */
export function clientFor(options: S3ClientOptions, trustedCertificates: readonly string[]): S3Client {
  return new S3Client(clientConfig(options, trustedCertificates));
}

/** @throws UsageError  the file cannot be read, or holds no certificate */
export async function readCertificates(path: string): Promise<string> {
  try {
    const text = await readFile(path, "utf8");
    if (!text.includes("-----BEGIN CERTIFICATE-----")) throw new Error("it holds no PEM certificate");
    return text;
  } catch (cause) {
    throw new UsageError(`cannot use certificate file "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}

/** The shared credentials file is read anew when it is asked for: what rotates credentials writes them there. Not in the SDK's type. */
const READ_FILES_ANEW = { ignoreCache: true };

function clientConfig(options: S3ClientOptions, trustedCertificates: readonly string[]): S3ClientConfig {
  const { bucket, region, endpoint, accessKeyId, secretAccessKey, sessionToken } = options;
  const { connectTimeoutMs = 10_000, idleTimeoutMs = 60_000 } = options;
  const requestHandler = new HttpHandler({ connectTimeoutMs, idleTimeoutMs, trustedCertificates });
  return {
    ...READ_FILES_ANEW,
    region: region ?? regionOfChain,
    ...(endpoint === undefined ? {} : { endpoint }),
    forcePathStyle: options.forcePathStyle ?? needsPathStyle(bucket, endpoint),
    ...(accessKeyId !== undefined && secretAccessKey !== undefined
      ? { credentials: { accessKeyId, secretAccessKey, ...(sessionToken === undefined ? {} : { sessionToken }) } }
      : {}),
    ...(accessKeyId === undefined && sessionToken !== undefined ? { credentials: chainWithToken(sessionToken) } : {}),
    // What the SDK's type wants beyond this (HTTP/2 and the like) is not called.
    requestHandler: requestHandler as unknown as NonNullable<S3ClientConfig["requestHandler"]>,
    maxAttempts: 1,
    // Older services refuse the checksums that the SDK adds by itself. The body's SHA-256 is part of the signature anyway.
    requestChecksumCalculation: "WHEN_REQUIRED",
    responseChecksumValidation: "WHEN_REQUIRED",
    expectContinueHeader: false,
    streamCollector: collect,
  };
}

async function regionOfChain(): Promise<string> {
  try {
    return await new S3Client({}).config.region();
  } catch {
    return "us-east-1";
  }
}

/** AWS_SECURITY_TOKEN, WAL-E's name for the token, belongs to keys that the chain finds. */
function chainWithToken(sessionToken: string) {
  const chain = new S3Client({}).config.credentials;
  return async () => ({ ...(await chain()), sessionToken });
}

/** Collects the body of an answer that is no object. */
async function collect(body: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of body) {
    size += chunk.byteLength;
    if (size > MAX_XML_BYTES) throw new BadAnswerError(`the answer is larger than ${MAX_XML_BYTES} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
