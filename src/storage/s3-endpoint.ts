/** Whether a bucket's name goes into the host or into the path of a request's URL. */
import { isIP } from "node:net";

/**
 * Path style where the name cannot be part of a host's: for the name's own sake (dots break the TLS certificate), or because
 * the endpoint is an address or this machine ("Virtual hosting of buckets", Amazon S3 User Guide).
 *
 * @param endpoint  undefined for AWS itself
 */
export function needsPathStyle(bucket: string, endpoint: string | undefined): boolean {
  if (!/^[a-z0-9][a-z0-9-]*[a-z0-9]$/.test(bucket)) return true;
  if (endpoint === undefined) return false;
  const { hostname } = new URL(endpoint);
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  // A name without a dot is of this machine or of a container network, where bucket.name resolves to nothing.
  return isIP(host) !== 0 || host === "localhost" || host.endsWith(".localhost") || !host.includes(".");
}
