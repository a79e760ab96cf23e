/**
 * A large object written in parts, knowing nothing of S3's requests: how large a part is, how many are under way, and
 * that the upload is completed or aborted, never left behind.
 *
 * Memory: every open upload fills one part, and the store's slots bound how many full ones are being sent.
 */
import type { ObjectUpload } from "./object-store.ts";

/** "Amazon S3 multipart upload limits". */
const MAX_PARTS = 10_000;
const MAX_PART_BYTES = 5 * 1024 ** 3;
/** Parts double after so many: 5 MiB parts then reach 5 TiB, the largest object, with 10,000. */
const PARTS_PER_SIZE = 900;

/** What an upload needs of the store. A part is given to sendPart() once, and its bytes stay unchanged. */
export interface MultipartRequests<Part> {
  /** For an object that fits into one part. */
  putWhole(body: Uint8Array): Promise<"created" | "exists">;
  begin(): Promise<string>;
  sendPart(uploadId: string, partNumber: number, body: Uint8Array, signal: AbortSignal): Promise<Part>;
  complete(uploadId: string, parts: readonly Part[]): Promise<"created" | "exists">;
  /** Never throws: it runs on the way out of another failure. */
  abort(uploadId: string): Promise<void>;
}

/** The size of a part, counted from 1. */
export function partSizeOf(partNumber: number, initialBytes: number): number {
  return Math.min(MAX_PART_BYTES, initialBytes * 2 ** Math.floor((partNumber - 1) / PARTS_PER_SIZE));
}

/**
 * The memory for parts: makes those wait who would send more parts at once than there are slots, and hands the buffer of
 * a sent part to the next one, because the garbage collector is late for large buffers (1 GiB sent: 522 MB without, 210 MB
 * with, measured).
 */
export class PartSlots {
  readonly #count: number;
  readonly #waiting: (() => void)[] = [];
  readonly #spare: Uint8Array[] = [];
  #free: number;

  constructor(count: number) {
    this.#count = count;
    this.#free = count;
  }

  async take(): Promise<void> {
    if (this.#free > 0) {
      this.#free--;
      return;
    }
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  give(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#free++;
  }

  /** Its content is what it last was. */
  bufferOf(size: number): Uint8Array {
    const at = this.#spare.findIndex(({ byteLength }) => byteLength === size);
    return at < 0 ? new Uint8Array(size) : (this.#spare.splice(at, 1)[0] as Uint8Array);
  }

  /** @param buffer  that nobody reads any more */
  reuse(buffer: Uint8Array): void {
    if (this.#spare.push(buffer) > this.#count) this.#spare.shift();
  }
}

export interface MultipartOptions {
  readonly partSizeBytes: number;
  /** Shared by all uploads of a store. */
  readonly slots: PartSlots;
  readonly signal: AbortSignal;
}

export class MultipartUpload<Part> implements ObjectUpload {
  readonly #requests: MultipartRequests<Part>;
  readonly #options: MultipartOptions;
  /** Ends the parts under way when one failed or the upload is given up. */
  readonly #stop = new AbortController();
  readonly #onAbort: () => void;
  #uploadId: string | undefined;
  #filling: Uint8Array | undefined;
  #filled = 0;
  #partNumber = 1;
  readonly #sent: Promise<Part>[] = [];
  #failure: { readonly error: unknown } | undefined;
  #state: "open" | "closed" = "open";

  constructor(requests: MultipartRequests<Part>, options: MultipartOptions) {
    this.#requests = requests;
    this.#options = options;
    this.#onAbort = () => this.#stop.abort(options.signal.reason);
    if (options.signal.aborted) this.#onAbort();
    else options.signal.addEventListener("abort", this.#onAbort, { once: true });
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#checkUsable();
    for (let at = 0; at < bytes.byteLength; ) {
      const size = partSizeOf(this.#partNumber, this.#options.partSizeBytes);
      this.#filling ??= this.#options.slots.bufferOf(size);
      const taken = bytes.subarray(at, at + size - this.#filled);
      this.#filling.set(taken, this.#filled);
      this.#filled += taken.byteLength;
      at += taken.byteLength;
      if (this.#filled === size) await this.#sendFilled();
    }
  }

  async complete(): Promise<"created" | "exists"> {
    this.#checkUsable();
    if (this.#uploadId === undefined) {
      const body = this.#filling?.subarray(0, this.#filled) ?? new Uint8Array();
      const outcome = await this.#requests.putWhole(body);
      if (this.#filling) this.#options.slots.reuse(this.#filling);
      this.#close();
      return outcome;
    }
    if (this.#filled > 0) await this.#sendFilled();
    const parts = await Promise.all(this.#sent);
    this.#checkUsable();
    const outcome = await this.#requests.complete(this.#uploadId, parts);
    // A refused condition leaves the parts with the store.
    if (outcome === "exists") await this.#requests.abort(this.#uploadId);
    this.#close();
    return outcome;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#state === "closed") return;
    this.#stop.abort(new Error("the upload was given up"));
    await Promise.allSettled(this.#sent);
    if (this.#uploadId !== undefined) await this.#requests.abort(this.#uploadId);
    this.#close();
  }

  #close(): void {
    this.#state = "closed";
    this.#filling = undefined;
    this.#options.signal.removeEventListener("abort", this.#onAbort);
  }

  #checkUsable(): void {
    if (this.#state === "closed") throw new Error("the upload is closed");
    this.#options.signal.throwIfAborted();
    if (this.#failure) throw this.#failure.error;
  }

  async #sendFilled(): Promise<void> {
    const partNumber = this.#partNumber;
    if (partNumber > MAX_PARTS) throw new Error(`an object cannot have more than ${MAX_PARTS} parts`);
    const buffer = this.#filling as Uint8Array;
    const body = buffer.subarray(0, this.#filled);
    this.#filling = undefined;
    this.#filled = 0;
    this.#partNumber++;

    this.#uploadId ??= await this.#requests.begin();
    await this.#options.slots.take();
    const sent = this.#sendPart(this.#uploadId, partNumber, body).then((part) => {
      // Confirmed, so nobody reads the buffer any more; after a failure somebody might.
      this.#options.slots.reuse(buffer);
      return part;
    });
    // Failures are told by checkUsable(), complete() and the parts' own settling; none may go unhandled meanwhile.
    sent.catch(() => {});
    this.#sent.push(sent);
    this.#checkUsable();
  }

  async #sendPart(uploadId: string, partNumber: number, body: Uint8Array): Promise<Part> {
    try {
      return await this.#requests.sendPart(uploadId, partNumber, body, this.#stop.signal);
    } catch (error) {
      this.#failure ??= { error };
      this.#stop.abort(error);
      throw error;
    } finally {
      this.#options.slots.give();
    }
  }
}
