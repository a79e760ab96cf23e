/** Text that others chose, such as the names of objects: without what a terminal obeys. */
export const printable = (text: string): string => text.replace(/[^\P{Cc}\n\t]/gu, "\u{fffd}");

/** The same for what is to be one line, or one column: without line ends and tabs, too. */
export const printableLine = (text: string): string => text.replace(/\p{Cc}/gu, "\u{fffd}");

/** JSON.stringify() escapes what is below the space, and leaves other control characters. */
export const escapedJson = (json: string): string =>
  json.replace(/[^\P{Cc}\n]/gu, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
