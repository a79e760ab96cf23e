/** Where the repository is: s3://bucket/path, or a local directory. */
import { isAbsolute, normalize } from "node:path";
import type { Settings } from "../config/settings.ts";
import { UsageError } from "../errors.ts";

export type Prefix =
  | { readonly kind: "s3"; readonly bucket: string; readonly prefix: string }
  | { readonly kind: "directory"; readonly directory: string };

/** @throws UsageError  none, both, or a malformed one */
export function parsePrefix({ s3Prefix, filePrefix }: Pick<Settings, "s3Prefix" | "filePrefix">): Prefix {
  if (s3Prefix !== undefined && filePrefix !== undefined) {
    throw new UsageError("two repositories are set", {
      detail: `WALB_S3_PREFIX is "${withoutSecret(s3Prefix)}" and WALB_FILE_PREFIX is "${filePrefix}", or names of the same meaning.`,
      hint: "Keep the one that is meant.",
    });
  }
  if (s3Prefix !== undefined) return parseS3Prefix(s3Prefix);
  if (filePrefix !== undefined) return parseFilePrefix(filePrefix);
  throw new UsageError("no repository is set", {
    hint: 'Set WALB_S3_PREFIX=s3://bucket/path (or WALE_S3_PREFIX), or pass --s3-prefix. To keep it in a file of that name in a directory, say "wal-b --envdir DIR".',
  });
}

/** Some programs take s3://KEY:SECRET@bucket, and https://KEY:SECRET@host. */
const withoutSecret = (text: string) => text.replace(/\/\/.*@/, "//…@");

function parseS3Prefix(text: string): Prefix {
  const match = /^s3:\/\/([A-Za-z0-9][A-Za-z0-9._-]*)(\/.*)?$/.exec(text);
  if (!match?.[1] || /\/\.\.?(\/|$)/.test(text)) {
    throw new UsageError(`"${withoutSecret(text)}" is not an S3 prefix`, {
      hint: "It must look like s3://bucket/path.",
    });
  }
  return { kind: "s3", bucket: match[1], prefix: (match[2] ?? "").replace(/^\/+|\/+$/g, "").replace(/\/{2,}/g, "/") };
}

function parseFilePrefix(text: string): Prefix {
  // WAL-E's form is file://localhost/dir; what stands for the host is passed over there, and must be this host here.
  const path = text.startsWith("file://") ? text.slice("file://".length).replace(/^localhost(?=\/)/, "") : text;
  if (!isAbsolute(path)) {
    throw new UsageError(`"${text}" is not a file prefix`, {
      hint: "It must look like file://localhost/directory or /directory.",
    });
  }
  return { kind: "directory", directory: normalize(path).replace(/(.)\/+$/, "$1") };
}

/**
 * WAL-E's form of an endpoint, "https+path://host:port", says in its scheme how the bucket is addressed.
 *
 * @throws UsageError  malformed
 */
export function parseEndpoint({ endpoint, forcePathStyle }: Pick<Settings, "endpoint" | "forcePathStyle">): {
  readonly endpoint: string | undefined;
  readonly forcePathStyle: boolean | undefined;
} {
  const style = forcePathStyle === undefined ? undefined : forcePathStyle === "true";
  if (endpoint === undefined) return { endpoint, forcePathStyle: style };
  const match = /^(https?)(?:\+(path|virtualhost|subdomain))?:\/\/([^/@\s]+)\/?$/.exec(endpoint);
  if (!match || !URL.canParse(`${match[1]}://${match[3]}`)) {
    throw new UsageError(`"${withoutSecret(endpoint)}" is not an S3 endpoint`, {
      hint: "It must look like https://host:port, or like WAL-E's https+path://host:port.",
    });
  }
  return {
    endpoint: `${match[1]}://${match[3]}`,
    forcePathStyle: style ?? (match[2] === undefined ? undefined : match[2] === "path"),
  };
}

/** @throws UsageError  not 32 bytes; the key itself is not shown */
export function parseCustomerKey(text: string | undefined): Uint8Array | undefined {
  if (text === undefined) return undefined;
  const key = [Buffer.from(text, "utf8"), Buffer.from(text, "base64")].find(({ byteLength }) => byteLength === 32);
  if (key === undefined)
    throw new UsageError("the key in S3_SSE_C cannot be used", {
      hint: "It must have 32 bytes, as they are or in base64.",
    });
  return key;
}
