/** So many bytes a second on average, over all who share the limit. */
import { abortableDelay } from "./delay.ts";

export interface RateLimit {
  /** Resolves when the bytes may be taken. @throws the signal's reason */
  take(bytes: number, signal: AbortSignal): Promise<void>;
}

export const UNLIMITED: RateLimit = { take: async () => {} };

/** @param now  milliseconds of a clock that does not jump */
export function rateLimit(bytesPerSecond: number, now: () => number = () => performance.now()): RateLimit {
  /** When everything that was granted so far will have been paid for. */
  let paidAt = now();
  return {
    async take(bytes, signal) {
      const start = Math.max(paidAt, now());
      paidAt = start + (bytes / bytesPerSecond) * 1000;
      if (start > now()) await abortableDelay(start - now(), signal);
    },
  };
}
