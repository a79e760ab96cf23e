/**
 * The pages of one relation file, compared with their checksums while the file is read for a backup.
 *
 * A page can be wrong because the server is just writing it, and one that was written since the backup began does not matter:
 * WAL replay puts the whole page back. What is left after that, and is still wrong when it was read again, is damaged on disk.
 */
import { asLsn, type Lsn } from "../postgres/lsn.ts";
import { isIntactPage, pageLsn } from "../postgres/page-checksum.ts";

/** What of a cluster decides which pages are damaged. */
export interface PageRules {
  readonly pageBytes: number;
  /** Pages in one file of a relation. */
  readonly segmentPages: number;
  /** Whether WAL replay writes the whole page, for its last change was logged since the backup began. */
  isReplayed(lsn: Lsn): Promise<boolean>;
}

/** Where a file's pages come from. */
export interface PageSource {
  /** The n-th file of its relation. */
  readonly segment: number;
  /** Reads once more. @returns how many bytes were there */
  readAgain(into: Uint8Array, at: number): Promise<number>;
}

export interface DamagedPages {
  readonly count: number;
  /** The first of them, in order, as blocks of the file. */
  readonly blocks: readonly number[];
}

/** A write that was met half done is complete long before. */
const READ_AGAIN = 4;
const PAUSE_MS = 100;
/** A file with more damaged pages is not one that is being written: then nothing is waited for. */
const PAUSES_UP_TO = 32;

/** WAL-G's limit: files_metadata.json tells how many there are, and which the first are. */
const BLOCKS_TOLD = 10;

export class PageVerifier {
  readonly #rules: PageRules;
  readonly #source: PageSource;
  readonly #pause: (ms: number) => Promise<void>;
  readonly #blocks: number[] = [];
  #count = 0;

  constructor(rules: PageRules, source: PageSource, pause: (ms: number) => Promise<void>) {
    this.#rules = rules;
    this.#source = source;
    this.#pause = pause;
  }

  get damaged(): DamagedPages | undefined {
    return this.#count === 0 ? undefined : { count: this.#count, blocks: this.#blocks };
  }

  /**
   * Pages that are right when they are read again are put right in `bytes`, too. What is less than a page, at the end of a
   * file that is just growing, is passed over.
   *
   * @param bytes  whole pages, and at a multiple of four in their memory; pieces of a file come in order
   * @param at     where they begin in the file
   */
  async verify(bytes: Uint8Array, at: number): Promise<void> {
    const { pageBytes } = this.#rules;
    const first = at / pageBytes;
    let wrong = this.#wrongPages(bytes, first);
    if (wrong.length === 0) return;

    wrong = await this.#notReplayed(bytes, wrong);
    for (let turn = 0; turn < READ_AGAIN && wrong.length > 0; turn++) {
      if (this.#count + wrong.length <= PAUSES_UP_TO) await this.#pause(PAUSE_MS);
      for (const page of wrong) await this.#readAgain(bytes, page, first);
      wrong = await this.#notReplayed(
        bytes,
        wrong.filter((page) => !this.#isIntact(bytes, page, first)),
      );
    }
    this.#count += wrong.length;
    this.#blocks.push(...wrong.slice(0, BLOCKS_TOLD - this.#blocks.length).map((page) => first + page));
  }

  #wrongPages(bytes: Uint8Array, first: number): number[] {
    const wrong: number[] = [];
    const pages = Math.floor(bytes.byteLength / this.#rules.pageBytes);
    for (let page = 0; page < pages; page++) if (!this.#isIntact(bytes, page, first)) wrong.push(page);
    return wrong;
  }

  #isIntact(bytes: Uint8Array, page: number, first: number): boolean {
    const { segmentPages } = this.#rules;
    const words = wordsOf(bytes);
    const pageWords = this.#pageWords;
    return isIntactPage(words, page * pageWords, pageWords, this.#source.segment * segmentPages + first + page);
  }

  async #notReplayed(bytes: Uint8Array, pages: readonly number[]): Promise<number[]> {
    const words = wordsOf(bytes);
    const left: number[] = [];
    for (const page of pages) {
      const lsn = asLsn(pageLsn(words, page * this.#pageWords));
      if (!(await this.#rules.isReplayed(lsn))) left.push(page);
    }
    return left;
  }

  /** What is not there any more was cut off by the server, and is zeros as in the rest of the file. */
  async #readAgain(bytes: Uint8Array, page: number, first: number): Promise<void> {
    const { pageBytes } = this.#rules;
    const into = bytes.subarray(page * pageBytes, (page + 1) * pageBytes);
    const bytesRead = await this.#source.readAgain(into, (first + page) * pageBytes);
    into.fill(0, bytesRead);
  }

  get #pageWords(): number {
    return this.#rules.pageBytes / Int32Array.BYTES_PER_ELEMENT;
  }
}

const wordsOf = ({ buffer, byteOffset, byteLength }: Uint8Array) =>
  new Int32Array(buffer, byteOffset, Math.floor(byteLength / Int32Array.BYTES_PER_ELEMENT));
