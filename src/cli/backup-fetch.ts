/** wal-b backup-fetch DIR NAME|LATEST */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { TablespaceChoice } from "../backup/target.ts";
import { reasonOf, UsageError } from "../errors.ts";
import type { Command, Words } from "./command.ts";

export const backupFetch: Command = {
  name: "backup-fetch",
  summary: "restore a base backup into an empty directory",
  description:
    'Restores the backup NAME, or the LATEST one, into DIRECTORY, which must be empty or not exist. Every file is compared with the backup\'s manifest; global/pg_control gets its name last, so that a half-restored directory cannot be started. Then set restore_command, make "recovery.signal" in the directory, and start the server.',
  positionals: { directory: { help: "where to restore to" }, name: { help: "of the backup, or LATEST" } },
  options: {
    "pool-size": { alias: "p", kind: "text", value: "N", setting: "downloadConcurrency", help: "parts read at once" },
    "tablespace-mapping": {
      kind: "text",
      value: "OID=DIR,…",
      help: "where tablespaces go: their OID or old location, and the new directory",
    },
    "restore-spec": {
      kind: "text",
      value: "FILE|SOURCE",
      help: "WAL-E's: SOURCE puts tablespaces where they were; a JSON file says where they go",
    },
    "blind-restore": { kind: "flag", help: "put tablespaces inside the data directory, below tablespaces/" },
  },
  examples: [
    ["wal-b backup-fetch /var/lib/postgresql/18/main LATEST", "the newest backup"],
    ["wal-b backup-fetch /restore LATEST --tablespace-mapping 16388=/mnt/fast", "with a tablespace elsewhere"],
  ],

  async run(words, context) {
    const [{ openRepository }, { fetchBackup }] = await Promise.all([
      import("./open-repository.ts"),
      import("../backup/fetch.ts"),
    ]);
    const tablespaces = tablespaceChoice(words);
    await using repository = await openRepository(context);
    const { store, zstd } = repository;
    const { settings, log, signal, workingDirectory } = context;
    const directory = resolve(workingDirectory, words.required("directory"));
    await fetchBackup(words.required("name"), directory, {
      store,
      zstd: await zstd(),
      partsAtOnce: settings.downloadConcurrency,
      tablespaces,
      log,
      signal,
    });
  },
};

function tablespaceChoice(words: Words): TablespaceChoice {
  const [mapping, spec] = [words.text("tablespace-mapping"), words.text("restore-spec")];
  const given = [mapping !== undefined, spec !== undefined, words.isSet("blind-restore")].filter(Boolean).length;
  if (given > 1) throw new UsageError("--tablespace-mapping, --restore-spec and --blind-restore exclude each other");

  if (words.isSet("blind-restore")) return { kind: "inside" };
  if (spec === "SOURCE") return { kind: "source" };
  if (spec !== undefined) return { kind: "mapping", places: readRestoreSpec(spec) };
  if (mapping !== undefined) return { kind: "mapping", places: parseMapping(mapping) };
  return { kind: "prepared links" };
}

function parseMapping(text: string): ReadonlyMap<string, string> {
  return new Map(
    text.split(",").map((pair) => {
      const [from, to, ...rest] = pair.split("=");
      if (!from || !to || rest.length > 0) {
        throw new UsageError(`"${pair}" is not a tablespace mapping`, {
          hint: "It must look like 16388=/new/directory or /old/directory=/new/directory.",
        });
      }
      return [from, to] as const;
    }),
  );
}

/** WAL-E's form: {"tablespaces": ["16388"], "16388": {"loc": "/new/directory", "link": "pg_tblspc/16388"}}. */
function readRestoreSpec(path: string): ReadonlyMap<string, string> {
  try {
    const spec = JSON.parse(readFileSync(path, "utf8")) as Readonly<
      Record<string, { readonly loc?: unknown } | undefined>
    >;
    const oids = Object.keys(spec).filter((name) => /^\d+$/.test(name));
    return new Map(
      oids.map((oid) => {
        const place = spec[oid]?.loc;
        if (typeof place !== "string") throw new Error(`tablespace ${oid} has no "loc"`);
        return [oid, place];
      }),
    );
  } catch (cause) {
    throw new UsageError(`could not use the restore specification "${path}"`, { detail: `${reasonOf(cause)}.`, cause });
  }
}
