/** How many bytes may be in memory at once: who asks for more waits until others give back. */

export interface ByteLease extends Disposable {
  /** Gives back what is not needed any more. */
  shrinkTo(bytes: number): void;
}

export class ByteBudget {
  readonly #total: number;
  readonly #waiting: { readonly bytes: number; readonly start: () => void }[] = [];
  #taken = 0;

  constructor(totalBytes: number) {
    this.#total = totalBytes;
  }

  /** First come, first served. More than the whole budget is granted when nothing else is out, so nobody waits for ever. */
  async take(bytes: number): Promise<ByteLease> {
    if (this.#waiting.length > 0 || !this.#fits(bytes)) {
      await new Promise<void>((start) => this.#waiting.push({ bytes, start }));
    } else {
      this.#taken += bytes;
    }

    let held = bytes;
    const shrinkTo = (left: number) => {
      this.#giveBack(held - left);
      held = left;
    };
    return { shrinkTo, [Symbol.dispose]: () => shrinkTo(0) };
  }

  #fits(bytes: number): boolean {
    return this.#taken === 0 || this.#taken + bytes <= this.#total;
  }

  #giveBack(bytes: number): void {
    this.#taken -= bytes;
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.bytes); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#taken += next.bytes;
      next.start();
    }
  }
}
