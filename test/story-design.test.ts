/** What varies over the majors in test/integration/story-on-postgresql-*.test.ts. */
import { expect, test } from "bun:test";
import { POSTGRES_MAJORS } from "./support/postgres-binaries.ts";
import { CHOICES, DESIGN } from "./support/story-of-a-major.ts";

const rows = Object.values(DESIGN);

test("every major is told, and every two choices meet, but for those that are named here", () => {
  console.table(DESIGN);
  expect(Object.keys(DESIGN).map(Number)).toEqual(expect.arrayContaining([...POSTGRES_MAJORS]));
  const valuesOf = (choice: (typeof CHOICES)[number]) => [...new Set(rows.map((row) => row[choice]))];
  const pairs = CHOICES.flatMap((a, n) => CHOICES.slice(n + 1).map((b) => [a, b] as const));
  const missing = pairs.flatMap(([a, b]) =>
    valuesOf(a).flatMap((x) =>
      valuesOf(b)
        .filter((y) => !rows.some((row) => row[a] === x && row[b] === y))
        .map((y) => `${a} ${x}, ${b} ${y}`),
    ),
  );
  expect(missing.sort()).toEqual(["segmentMiB 1, store 0", "segmentMiB 64, store 1"]);
});
