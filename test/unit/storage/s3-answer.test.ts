import { expect, test } from "bun:test";
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
