import { describe, expect, test } from "bun:test";
import { ConnectionError } from "../../../src/storage/http-handler.ts";
import { verdictOf } from "../../../src/storage/s3-answer.ts";

test.each([
  // Resolvers that are not there, are silent, refuse, or answer SERVFAIL.
  ["EAI_AGAIN"],
  // A name that does not exist; and one whose IPv4 address a resolver failed to find, while it knew that there is no IPv6 address.
  ["ENOTFOUND"],
])("verdictOf() waits out a resolver's outage that the system tells as %s", (code) => {
  const error = new ConnectionError(code, `getaddrinfo ${code} bucket.s3.example`);
  expect(verdictOf(error)).toEqual({ retry: "until-deadline" });
});

describe("verdictOf() what went wrong with TLS", () => {
  test.each([
    // Names as Bun 1.4.5 gives them.
    ["a record that was damaged on its way here", "ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "until-deadline"],
    ["a record that was damaged on its way there", "ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC", "until-deadline"],
    ["an alert of a load balancer", "ERR_SSL_TLSV1_ALERT_INTERNAL_ERROR", "until-deadline"],
    ["what Node.js has no name for", "EPROTO", "until-deadline"],
    ["an answer that is no TLS", "ERR_SSL_WRONG_VERSION_NUMBER", "few"],
    ["a certificate of an unknown authority", "UNABLE_TO_VERIFY_LEAF_SIGNATURE", "never"],
    ["a certificate of nobody's", "DEPTH_ZERO_SELF_SIGNED_CERT", "never"],
    ["a certificate that is too old", "CERT_HAS_EXPIRED", "never"],
    ["a certificate of another host", "ERR_TLS_CERT_ALTNAME_INVALID", "never"],
    ["a certificate that does not verify", "ERR_SSL_CERTIFICATE_VERIFY_FAILED", "never"],
    ["an alert about a certificate", "ERR_SSL_SSLV3_ALERT_CERTIFICATE_EXPIRED", "never"],
    ["an alert about an authority", "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA", "never"],
  ] as const)("%s: %s", (_, code, retry) => {
    expect(verdictOf(Object.assign(new Error(code), { code })).retry).toBe(retry);
  });
});
