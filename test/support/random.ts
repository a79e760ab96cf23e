/** Random numbers that come again with the same seed: a failing test prints its seed. */

export interface Random {
  /** From 0 to below `end`. */
  below(end: number): number;
  pick<Item>(items: readonly Item[]): Item;
  /** True once in `times`. */
  once(times: number): boolean;
  /** Up to `most` of them, at least `least`. */
  list<Item>(most: number, item: () => Item, least?: number): Item[];
  bigint(bits: number): bigint;
  bytes(count: number): Uint8Array<ArrayBuffer>;
}

/** mulberry32. */
export function random(seed: number): Random {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  };
  const below = (end: number) => next() % end;
  return {
    below,
    pick: <Item>(items: readonly Item[]) => items[below(items.length)] as Item,
    once: (times) => below(times) === 0,
    list: (most, item, least = 0) => Array.from({ length: least + below(most - least + 1) }, item),
    bigint: (bits) => BigInt.asUintN(bits, (BigInt(next()) << 32n) | BigInt(next())),
    bytes(count) {
      const words = Uint32Array.from({ length: Math.ceil(count / 4) }, next);
      return new Uint8Array(words.buffer, 0, count);
    },
  };
}
