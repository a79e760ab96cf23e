/**
 * Loads the native half of @mongodb-js/zstd. It is taken past the package's own index.js, which drops the level and
 * picks its platform with requires that a bundler would have to resolve for all platforms.
 *
 * build.ts defines WALB_ZSTD_ADDON as the path of the target's .node file, so that this one alone gets embedded.
 */
import { createRequire } from "node:module";

declare const WALB_ZSTD_ADDON: string | undefined;

export interface ZstdAddon {
  /** One frame, which states neither the size nor a checksum of its content. */
  compress(data: Uint8Array, level: number): Promise<Buffer>;
  /** All frames. Complete input is not proved by an answer: check the size. */
  decompress(data: Uint8Array): Promise<Buffer>;
}

/**
 * In the compiled binary the addon is first unpacked to the temporary directory.
 *
 * @throws Error  it cannot be loaded, as on a read-only or `noexec` temporary directory; use Bun's own zstd then
 */
export async function loadZstdAddon(): Promise<ZstdAddon> {
  // if/else and not an early return: the bundler drops only the branch that it can see is never taken.
  if (typeof WALB_ZSTD_ADDON === "string") {
    return require(WALB_ZSTD_ADDON) as ZstdAddon;
  } else {
    const ours = createRequire(import.meta.url);
    return createRequire(ours.resolve("@mongodb-js/zstd"))("./bindings.js") as ZstdAddon;
  }
}
