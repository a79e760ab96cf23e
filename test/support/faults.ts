/** Everything that has been seen to go wrong between a client and S3, as faults of fault-proxy.ts. */
import type { Exchange, Fault } from "./fault-proxy.ts";
import type { Answer } from "./http-messages.ts";

/** What a command makes of a fault that it meets once, or whenever it asks. */
export type Consequence =
  /** Asked again: once goes unnoticed, always ends with 69. */
  | "asks again"
  /** Nobody asks again: 77. */
  | "access"
  /** Nobody asks again: 64. */
  | "usage"
  /** What an object says is not what was put there: 65. Other answers are asked for again. */
  | "damage"
  /** Goes unnoticed. */
  | "none";

export interface NamedFault {
  readonly name: string;
  readonly fault: Fault;
  readonly consequence: Consequence;
  /**
   * "request": the server does not carry it out. "answer": it does, and that gets lost. "body": the answer comes, and its body is
   * changed; without a body there is nothing to notice.
   */
  readonly strikes: "request" | "answer" | "body";
}

/** The store answers, and has done nothing. */
const REFUSALS: readonly NamedFault[] = [
  refusal("500 InternalError", "asks again", s3Error(500, "InternalError")),
  refusal("503 SlowDown", "asks again", s3Error(503, "SlowDown")),
  refusal("503 SlowDown with Retry-After", "asks again", s3Error(503, "SlowDown", { "retry-after": "1" })),
  refusal("429 TooManyRequests", "asks again", s3Error(429, "TooManyRequests")),
  refusal("409 ConditionalRequestConflict", "asks again", s3Error(409, "ConditionalRequestConflict")),
  refusal("a clock that was corrected", "asks again", s3Error(403, "RequestTimeTooSkewed", { date: "now" })),
  refusal("403 AccessDenied", "access", s3Error(403, "AccessDenied")),
  refusal("404 NoSuchBucket", "usage", s3Error(404, "NoSuchBucket")),
  refusal("301 PermanentRedirect", "usage", s3Error(301, "PermanentRedirect")),
  refusal("307 TemporaryRedirect", "usage", s3Error(307, "TemporaryRedirect", { location: "http://127.0.0.1:1/" })),
  refusal("a 404 page of a proxy", "asks again", page(404, "<h1>Not found</h1>")),
  refusal("a 200 page of a proxy", "asks again", page(200, "<h1>Welcome</h1>")),
  refusal("200 with an error", "asks again", { ...s3Error(500, "InternalError"), status: 200 }),
];

/** No answer, and nothing is done. */
const LOST_REQUESTS: readonly NamedFault[] = [
  lost("a connection that is refused", async (exchange) => exchange.refuse()),
  lost("a connection that is reset", async (exchange) => exchange.reset()),
  lost("a connection that is cut", async (exchange) => {
    await exchange.read();
    exchange.cut();
  }),
  lost("silence", async (exchange) => {
    await exchange.read();
    await exchange.silence();
  }),
  lost("silence in the middle of the request", async (exchange) => {
    await exchange.read(half(exchange.head.bodyBytes));
    await exchange.silence();
  }),
  lost("half a request", dropRequestAfter(0.5)),
];

/** The server has done what it was asked for, and the answer gets lost. */
const LOST_ANSWERS: readonly NamedFault[] = [
  carriedOut("no answer", async (exchange) => {
    await exchange.pass();
    exchange.reset();
  }),
  carriedOut("silence instead of the answer", async (exchange) => {
    await exchange.pass();
    await exchange.silence();
  }),
  carriedOut("500 instead of the answer", async (exchange) => {
    await exchange.pass();
    await exchange.send(s3Error(500, "InternalError"));
  }),
  carriedOut("half the answer's head", dropAnswerAfter(40)),
];

/** The answer comes, and is not what the server said, or not as fast. */
const CHANGED_ANSWERS: readonly NamedFault[] = [
  {
    name: "half a body, then silence",
    consequence: "asks again",
    strikes: "body",
    fault: async (exchange) => {
      const answer = await exchange.pass();
      // What has no body is whole.
      if (answer.body.byteLength === 0) return await exchange.send(answer);
      await exchange.send({ ...answer, ...fullLength(answer), body: firstHalf(answer.body) });
      await exchange.silence();
    },
  },
  {
    name: "half a body, then the end",
    consequence: "asks again",
    strikes: "body",
    fault: async (exchange) => {
      const answer = await exchange.pass();
      await exchange.send({ ...answer, ...fullLength(answer), body: firstHalf(answer.body) });
      if (answer.body.byteLength > 0) exchange.cut();
    },
  },
  changed("half a body, called whole", (answer) => {
    const { "content-length": _, ...headers } = answer.headers;
    return { ...answer, headers, body: firstHalf(answer.body) };
  }),
  changed("a body with a byte changed", (answer) => {
    const body = Buffer.from(answer.body);
    const at = half(body.byteLength);
    if (at < body.byteLength) body[at] = (body[at] ?? 0) ^ 0x20;
    return { ...answer, body };
  }),
  {
    name: "a slow drip",
    consequence: "none",
    strikes: "body",
    fault: async (exchange) => {
      const answer = await exchange.pass();
      await exchange.send({ ...answer, ...fullLength(answer), body: Buffer.alloc(0) });
      if (exchange.head.method === "HEAD") return;
      const piece = Math.max(1, Math.ceil(answer.body.byteLength / DRIPS));
      for (let at = 0; at < answer.body.byteLength; at += piece) {
        await Bun.sleep(DRIP_MS);
        await exchange.sendBytes(answer.body.subarray(at, at + piece));
      }
    },
  },
];

/** Longer in all than an idle timeout of 500 ms, which it must not be taken for. */
const DRIPS = 12;
const DRIP_MS = 75;

/** None of them proves that something is not there. */
export const FAULTS: readonly NamedFault[] = [...REFUSALS, ...LOST_REQUESTS, ...LOST_ANSWERS, ...CHANGED_ANSWERS];

/** @throws Error  there is none of this name */
export function faultNamed(name: string): Fault {
  const found = FAULTS.find((fault) => fault.name === name);
  if (found === undefined) throw new Error(`there is no fault "${name}"`);
  return found.fault;
}

/** Answers so, and does nothing. */
export function answersWith(answer: Answer): Fault {
  return async (exchange) => {
    await exchange.read();
    const date = answer.headers["date"] === "now" ? { date: new Date().toUTCString() } : {};
    await exchange.send({ ...answer, headers: { ...answer.headers, ...date } });
  };
}

/** The server gets this share of the body, and then the end. What has no body does not arrive. */
export function dropRequestAfter(share: number): Fault {
  return async (exchange) => {
    const bytes = Math.floor(exchange.head.bodyBytes * share);
    if (exchange.head.bodyBytes > 0) await exchange.passPart(bytes);
    exchange.cut();
  };
}

/** @param bytes  of head and body together */
export function dropAnswerAfter(bytes: number): Fault {
  return async (exchange) => {
    await exchange.send(await exchange.pass(), bytes);
    exchange.cut();
  };
}

/** An answer as S3 gives it to a request that it does not carry out. */
export function s3Error(status: number, code: string, headers: Readonly<Record<string, string>> = {}): Answer {
  const body = `<?xml version="1.0"?><Error><Code>${code}</Code><Message>made by a test</Message></Error>`;
  return { status, headers: { "content-type": "application/xml", ...headers }, body: Buffer.from(body) };
}

function page(status: number, html: string): Answer {
  return { status, headers: { "content-type": "text/html" }, body: Buffer.from(html) };
}

function refusal(name: string, consequence: Consequence, answer: Answer): NamedFault {
  return { name, consequence, strikes: "request", fault: answersWith(answer) };
}

function lost(name: string, fault: Fault): NamedFault {
  return { name, consequence: "asks again", strikes: "request", fault };
}

function carriedOut(name: string, fault: Fault): NamedFault {
  return { name, consequence: "asks again", strikes: "answer", fault };
}

function changed(name: string, change: (answer: Answer) => Answer): NamedFault {
  const fault = async (exchange: Exchange) => exchange.send(change(await exchange.pass()));
  return { name, consequence: "damage", strikes: "body", fault };
}

/** Of an answer to HEAD, Content-Length is the object's, whatever the body. */
const fullLength = ({ headers, body }: Answer) => ({
  headers: { "content-length": String(body.byteLength), ...headers },
});
const half = (bytes: number) => Math.floor(bytes / 2);
const firstHalf = (body: Buffer) => body.subarray(0, half(body.byteLength));
