/** What a key may look like, whatever store keeps it. */
import { UsageError } from "../errors.ts";

/** S3's limit ("Creating object key names"), prefix included. */
const MAX_KEY_BYTES = 1024;

/**
 * A key is also a path below a directory: one that could leave it, or that two stores would understand differently, is refused.
 *
 * @throws UsageError  the key is empty, too long, absolute, or has an empty, "." or ".." step or a control character
 */
export function checkKey(key: string): void {
  const steps = key.split("/");
  const isBad =
    steps.some((step) => step === "" || step === "." || step === "..") || key.includes("\\") || /\p{Cc}/u.test(key);
  if (isBad || Buffer.byteLength(key) > MAX_KEY_BYTES) {
    throw new UsageError(`cannot use ${JSON.stringify(key.slice(0, 200))} as the key of an object`, {
      detail: 'A key is one or more names separated by "/", without "..", backslashes or control characters.',
    });
  }
}

/**
 * The order of S3's lists: by the bytes of UTF-8. JavaScript's strings have another one only where surrogates are compared, so
 * bytes are made only there: a list of an archive compares a hundred thousand names millions of times.
 */
export function compareKeys(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let at = 0; at < length; at++) {
    const x = a.charCodeAt(at);
    const y = b.charCodeAt(at);
    if (x !== y)
      return x < FIRST_SURROGATE || y < FIRST_SURROGATE ? x - y : Buffer.compare(Buffer.from(a), Buffer.from(b));
  }
  return a.length - b.length;
}

const FIRST_SURROGATE = 0xd800;

/** What stands behind the last "/". */
export function baseName(key: string): string {
  return key.slice(key.lastIndexOf("/") + 1);
}
