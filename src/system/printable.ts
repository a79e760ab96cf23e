/** Text that others chose, such as the names of objects: without what a terminal obeys. */
export const printable = (text: string): string => text.replace(/[^\P{Cc}\n\t]/gu, "\u{fffd}");

/** The same on one line, whatever is in it. */
export const printableLine = (text: string): string => text.replace(/\p{Cc}/gu, "\u{fffd}");
