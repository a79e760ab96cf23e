/** Files that hold what a program must say, byte for byte. UPDATE_GOLDEN=1 bun test … writes them anew. */
import { expect } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";

export const ROOT = resolve(import.meta.dir, "../..");

/** @param path  from the root of the project */
export function expectGolden(path: string, actual: string): void {
  const file = resolve(ROOT, path);
  if (process.env["UPDATE_GOLDEN"] === "1") {
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, actual);
  }
  expect(actual, `${path}; UPDATE_GOLDEN=1 bun test writes it anew`).toBe(readFileSync(file, "utf8"));
}

/** A file that is never written anew: what an older release or another tool wrote. */
export const readGolden = (path: string): Buffer => readFileSync(resolve(ROOT, path));
