/** The flags that say where tablespaces go, of backup-fetch and restore. */
import { readFileSync } from "node:fs";
import type { TablespaceChoice } from "../backup/target.ts";
import { reasonOf, UsageError } from "../errors.ts";
import type { Option, Words } from "./command.ts";

export const TABLESPACE_OPTIONS: Readonly<Record<string, Option>> = {
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
};

/** @throws UsageError  two of them, or one that is malformed */
export function tablespaceChoice(words: Words): TablespaceChoice {
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
