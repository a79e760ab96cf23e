/** How much lies below a directory. */
import { readdir, stat } from "node:fs/promises";
import { join } from "node:path";

/** Sum of the sizes of all files; 0 for a directory that is not there. `except` names what is left out at any depth. */
export async function sizeBelow(
  directory: string,
  { except = [] }: { readonly except?: readonly string[] } = {},
): Promise<number> {
  let sum = 0;
  for (const entry of await readdir(directory, { withFileTypes: true }).catch(() => [])) {
    if (except.includes(entry.name)) continue;
    const path = join(directory, entry.name);
    if (entry.isDirectory()) sum += await sizeBelow(path, { except });
    else if (entry.isFile()) sum += (await stat(path)).size;
  }
  return sum;
}
