/** Which build this is. build.ts puts the values in; running from source there are none. */

declare const WALB_VERSION: string | undefined;
declare const WALB_COMMIT: string | undefined;

export const VERSION: string = typeof WALB_VERSION === "string" ? WALB_VERSION : "0.0.0-source";

/** First 12 digits, "-dirty" behind them when the build had changes of its own; undefined when git did not know. */
export const COMMIT: string | undefined = typeof WALB_COMMIT === "string" ? WALB_COMMIT : undefined;

/** For people: "wal-b 0.1.0 (1234567890ab)". */
export const FULL_VERSION = `wal-b ${VERSION}${COMMIT ? ` (${COMMIT})` : ""}`;
