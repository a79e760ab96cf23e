/**
 * The SDK's way to the network: node:http with one kept-alive agent per store and a bound on every silence.
 *
 * What the SDK's own handlers lack under Bun stands in docs/decisions/0002-s3-http-handler.md. The promise here: no
 * request waits longer than connectTimeoutMs for a connection, nor longer than idleTimeoutMs for the next byte in either
 * direction, however long the whole transfer takes. A consumer that reads slowly is not a silent server.
 */
import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import { Readable } from "node:stream";
import type { TLSSocket } from "node:tls";

export interface HttpHandlerOptions {
  readonly connectTimeoutMs: number;
  readonly idleTimeoutMs: number;
  /** PEM certificates to trust. Empty means the built-in ones. */
  readonly trustedCertificates: readonly string[];
}

/** No answer, or not all of it. `code` is Node's own (ECONNRESET, ETIMEDOUT …), for retry decisions and messages. */
export class ConnectionError extends Error {
  readonly code: string;

  constructor(code: string, message: string, cause?: unknown) {
    super(message, { cause });
    this.name = "ConnectionError";
    this.code = code;
  }
}

/** The shape of a request as the SDK hands it over, and of the answer it takes (@smithy/types, HttpRequest and HttpResponse). */
interface SdkRequest {
  readonly protocol: string;
  readonly hostname: string;
  readonly port?: number;
  readonly method: string;
  readonly path: string;
  readonly query?: Record<string, string | string[] | null>;
  readonly headers: Record<string, string>;
  readonly body?: unknown;
}

interface SdkResponse {
  readonly statusCode: number;
  readonly reason: string;
  readonly headers: Record<string, string>;
  readonly body: Readable;
}

/** Small enough that a slow line shows progress within idleTimeoutMs, large enough that a fast one does not notice. */
const WRITE_BYTES = 256 * 1024;

export class HttpHandler {
  readonly metadata = { handlerProtocol: "http/1.1" };
  readonly #options: HttpHandlerOptions;
  readonly #plain = new http.Agent({ keepAlive: true, maxFreeSockets: 64 });
  readonly #secure: https.Agent;

  constructor(options: HttpHandlerOptions) {
    this.#options = options;
    const { trustedCertificates } = options;
    this.#secure = new https.Agent({
      keepAlive: true,
      maxFreeSockets: 64,
      ...(trustedCertificates.length > 0 ? { ca: [...trustedCertificates] } : {}),
    });
  }

  async handle(
    request: SdkRequest,
    { abortSignal }: { abortSignal?: AbortSignal } = {},
  ): Promise<{ response: SdkResponse }> {
    abortSignal?.throwIfAborted();
    const exchange = new Exchange(this.#start(request), abortSignal, this.#options);
    try {
      const answered = exchange.answer();
      // The answer may come while the body is still being sent, and then it is the answer that counts.
      answered.catch(() => {});
      const sent = exchange.send(bytesOf(request.body));
      sent.catch(() => {});
      await Promise.race([answered, sent]);
      const message = await answered;
      return {
        response: {
          statusCode: message.statusCode ?? 0,
          reason: message.statusMessage ?? "",
          headers: flatHeaders(message.headers),
          body: Readable.from(exchange.read(message), { objectMode: false, highWaterMark: WRITE_BYTES }),
        },
      };
    } catch (error) {
      exchange.end();
      throw abortSignal?.aborted ? abortSignal.reason : error;
    }
  }

  destroy(): void {
    this.#plain.destroy();
    this.#secure.destroy();
  }

  updateHttpClientConfig(): void {}

  httpHandlerConfigs(): Record<string, never> {
    return {};
  }

  #start({ protocol, hostname, port, method, path, query, headers }: SdkRequest): http.ClientRequest {
    const isSecure = protocol === "https:";
    const options = {
      method,
      host: hostname.replace(/^\[(.*)\]$/, "$1"),
      ...(port === undefined ? {} : { port }),
      path: path + queryText(query ?? {}),
      headers,
    };
    return isSecure
      ? https.request({ ...options, agent: this.#secure })
      : http.request({ ...options, agent: this.#plain });
  }
}

/** One request and its answer, with the clock that watches both. */
class Exchange {
  readonly #request: http.ClientRequest;
  readonly #signal: AbortSignal | undefined;
  readonly #options: HttpHandlerOptions;
  readonly #onAbort: () => void;
  readonly #failed: Promise<never>;
  #fail: (error: unknown) => void = () => {};
  #failure: { readonly error: unknown } | undefined;
  #message: http.IncomingMessage | undefined;
  #isSent = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(request: http.ClientRequest, signal: AbortSignal | undefined, options: HttpHandlerOptions) {
    this.#request = request;
    this.#signal = signal;
    this.#options = options;
    this.#failed = new Promise<never>((_, reject) => {
      this.#fail = (error) => {
        this.#failure ??= { error };
        reject(error);
        this.end();
      };
    });
    this.#failed.catch(() => {});
    this.#onAbort = () => this.#fail(signal?.reason);
    signal?.addEventListener("abort", this.#onAbort, { once: true });
    request.on("error", (error) => this.#fail(error));
    // Head and body are two writes; the second must not wait for the first to be acknowledged.
    request.setNoDelay(true);
    this.#watchConnection();
  }

  /** Resolves with the head of the answer. */
  answer(): Promise<http.IncomingMessage> {
    const response = once(this.#request, "response").then(([message]) => message as http.IncomingMessage);
    response.catch(() => {});
    return Promise.race([response, this.#failed]);
  }

  async send(body: Uint8Array): Promise<void> {
    for (let at = 0; at < body.byteLength; at += WRITE_BYTES) {
      const accepted = this.#request.write(body.subarray(at, at + WRITE_BYTES));
      if (!accepted) await Promise.race([once(this.#request, "drain"), this.#failed]);
      this.#watchSilence();
    }
    this.#request.end();
    this.#isSent = true;
  }

  /** The body. The clock runs only while a byte is being waited for. */
  async *read(message: http.IncomingMessage): AsyncGenerator<Uint8Array> {
    this.#message = message;
    const expected = message.headers["content-length"];
    let missing = this.#request.method === "HEAD" || expected === undefined ? undefined : Number(expected);
    const chunks = message[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
    try {
      for (;;) {
        this.#watchSilence();
        // No Promise.race() with #failed: it would keep every chunk in memory until the request ends (measured).
        const next = await chunks.next();
        clearTimeout(this.#timer);
        if (next.done) break;
        if (missing !== undefined) missing -= next.value.byteLength;
        yield next.value;
      }
      if (missing !== undefined && missing > 0) {
        throw new ConnectionError("ECONNRESET", `the connection closed with ${missing} bytes still to come`);
      }
      this.#release();
    } catch (error) {
      throw this.#failure ? this.#failure.error : error;
    } finally {
      // After a whole body this leaves the socket with the agent; after anything else it closes it, as when the answer came before all
      // was sent: nobody reads the rest.
      if (!message.complete || !this.#isSent) this.end();
      this.#release();
    }
  }

  end(): void {
    this.#release();
    this.#request.destroy();
    // Ends the reading of a body that waits for its next byte.
    this.#message?.destroy(new ConnectionError("ECONNRESET", "the connection was closed"));
  }

  #release(): void {
    clearTimeout(this.#timer);
    this.#signal?.removeEventListener("abort", this.#onAbort);
  }

  #watchConnection(): void {
    const { connectTimeoutMs } = this.#options;
    this.#expire(connectTimeoutMs, `could not connect within ${connectTimeoutMs} ms`);
    this.#request.once("socket", (socket) => {
      if (!socket.connecting) return this.#watchSilence();
      const event = "getPeerCertificate" in (socket as TLSSocket) ? "secureConnect" : "connect";
      socket.once(event, () => this.#watchSilence());
    });
  }

  #watchSilence(): void {
    const { idleTimeoutMs } = this.#options;
    this.#expire(idleTimeoutMs, `no byte came or went for ${idleTimeoutMs} ms`);
  }

  #expire(ms: number, message: string): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#fail(new ConnectionError("ETIMEDOUT", message)), ms);
  }
}

function bytesOf(body: unknown): Uint8Array {
  if (body === undefined || body === null) return new Uint8Array();
  if (typeof body === "string") return new TextEncoder().encode(body);
  if (body instanceof Uint8Array) return body;
  throw new TypeError("a request body must be bytes or text");
}

function flatHeaders(headers: http.IncomingHttpHeaders): Record<string, string> {
  const flat: Record<string, string> = {};
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) flat[name] = Array.isArray(value) ? value.join(", ") : value;
  }
  return flat;
}

/** Sorted and encoded as Signature Version 4 wants it. */
function queryText(query: Record<string, string | string[] | null>): string {
  const pairs: string[] = [];
  for (const name of Object.keys(query).sort()) {
    const value = query[name];
    for (const one of Array.isArray(value) ? value : [value]) {
      pairs.push(one === null || one === undefined ? encoded(name) : `${encoded(name)}=${encoded(one)}`);
    }
  }
  return pairs.length > 0 ? `?${pairs.join("&")}` : "";
}

function encoded(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`);
}
