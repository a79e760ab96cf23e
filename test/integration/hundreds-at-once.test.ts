/** A server that archives in many processes at once, and many that restore: each does its own, and nothing else is left. */
import { afterAll, expect, test } from "bun:test";
import { everyS3Repository } from "../support/repositories.ts";
import { Site } from "../support/site.ts";

const s3 = await everyS3Repository();
afterAll(() => s3.stop());

const NAMES = Array.from({ length: 150 }, (_, n) => `00000001${(n + 1).toString(16).padStart(16, "0").toUpperCase()}`);

/** One S3 server: it is the processes that could get into each other's way, more than what they ask of a server. */
const STORES = ["directory", ...s3.repositories.slice(0, 1).map(({ name }) => name)];

test.each(STORES)(
  `${NAMES.length} on %s`,
  async (store) => {
    await using site = await Site.create();
    for (const name of NAMES) await site.segment(name);
    const repository = s3.repositories.find(({ name }) => name === store);
    const env = repository && { ...repository.hostEnv, WALB_FILE_PREFIX: undefined };
    const crowd = (command: string) =>
      site.shell(`for name in ${NAMES.join(" ")}; do { ${command}; echo $?; } & done | sort | uniq -c`, {
        ...(env && { env }),
        timeoutMs: 280_000,
      });
    const all = { exitCode: 0, stdout: `${String(NAMES.length).padStart(7)} 0\n`, stderr: "" };
    expect(await crowd('"$WALB" --terse wal-push -p 1 pg_wal/$name')).toMatchObject(all);
    const stored =
      (await repository?.keys()) ?? Object.keys(await site.listing()).map((path) => path.replace(/^[a-z]+\//, ""));
    expect(stored.filter((key) => key.startsWith("wal_005/"))).toEqual(NAMES.map((name) => `wal_005/${name}.zst`));
    expect(await crowd('"$WALB" --terse wal-fetch $name ../tmp/$name')).toMatchObject(all);
    expect(await site.shell("diff -rq pg_wal ../tmp | grep -v '^Only in'; ls -A ../tmp | grep xlogtemp")).toMatchObject(
      {
        stdout: "",
      },
    );
  },
  600_000,
);
