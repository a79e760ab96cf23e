/**
 * zstd frames, compressed and decompressed beside the main thread.
 *
 * The work of @mongodb-js/zstd's addon, or of Bun's own zstd, with the same result: for WAL, because loading the addon takes
 * longer than it saves, at the fast levels, and where the addon cannot be loaded (it is unpacked to the temporary directory, which
 * may be read-only or noexec). docs/decisions/0010-wal-compression.md and 0012-compression-level.md have the figures.
 */
import { IntegrityError, reasonOf } from "../errors.ts";
import { releaseContent } from "./content.ts";
import type { ZstdAddon } from "./zstd-addon.ts";
import { sealFrame } from "./zstd-frames.ts";

export interface Zstd {
  /** @returns one frame that states its content's size and checksum */
  compressFrame(content: Uint8Array): Promise<Uint8Array>;

  /**
   * @param frame  one whole frame that states its content's size
   * @throws IntegrityError  damaged, or the content has another size
   */
  decompressFrame(frame: Uint8Array, contentBytes: number): Promise<Uint8Array>;
}

/** The addon takes new memory for each frame and copies it: at lower levels that is a large part of the work. */
const ADDON_FROM_LEVEL = 3;

export async function openZstd(level: number): Promise<Zstd> {
  if (level < ADDON_FROM_LEVEL) return builtInZstd(level);
  const addon = await loadAddonOrNothing();
  return addon ? zstdWith(addon.compress, level) : builtInZstd(level);
}

/** Without anything to load: for commands that end soon. */
export function builtInZstd(level: number): Zstd {
  return zstdWith((content) => Bun.zstdCompress(content, { level }), level);
}

function zstdWith(compress: ZstdAddon["compress"], level: number): Zstd {
  return {
    async compressFrame(content) {
      const frame = await compress(content, level);
      const sealed = sealFrame(frame, content);
      releaseContent(frame);
      return sealed;
    },

    async decompressFrame(frame, contentBytes) {
      // It takes memory for what the frame states and refuses one that would become more; the addon took 2 GiB before it noticed.
      const content = await Bun.zstdDecompress(frame).catch((cause: unknown) => {
        throw new IntegrityError("a zstd frame is damaged", { detail: `${reasonOf(cause)}.`, cause });
      });
      if (content.byteLength !== contentBytes) {
        const detail = `It holds ${content.byteLength} bytes and states ${contentBytes}.`;
        throw new IntegrityError("a zstd frame is damaged", { detail });
      }
      return content;
    },
  };
}

async function loadAddonOrNothing() {
  const { loadZstdAddon } = await import("./zstd-addon.ts");
  return loadZstdAddon().catch(() => undefined);
}
