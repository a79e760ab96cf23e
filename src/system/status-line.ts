/** One line at the bottom of a terminal that is written over and over; messages go above it. */

const CLEAR_TO_END = "\x1b[K";

export class StatusLine {
  readonly #write: (text: string) => void;
  readonly #columns: () => number;
  #shown = "";

  /** @param columns  width of the terminal now; a longer line would wrap, and could not be written over */
  constructor(write: (text: string) => void, columns: () => number) {
    this.#write = write;
    this.#columns = columns;
  }

  /** Replaces what is shown; nothing is left of it with "". */
  show(text: string): void {
    if (text === "" && this.#shown === "") return;
    this.#shown = text.slice(0, Math.max(0, this.#columns() - 1));
    this.#write(`\r${this.#shown}${CLEAR_TO_END}`);
  }

  /** @param record  a message of one or more lines, without a line end */
  writeAbove(record: string): void {
    if (this.#shown === "") this.#write(`${record}\n`);
    else this.#write(`\r${CLEAR_TO_END}${record}\n${this.#shown}`);
  }
}
