/**
 * files_metadata.json: which part holds which files, in WAL-G's form.
 *
 * WAL-G restores only files that are listed here, by exactly the names that stand in the tar archives.
 */
import { IntegrityError } from "../errors.ts";
import { FileListLimit } from "../postgres/file-list-limit.ts";
import { JsonFields } from "./json.ts";

/** A restore reads no more, so no more is written. */
export const MAX_FILES_METADATA_BYTES = 512 * 2 ** 20;

export interface PartContents {
  /** Object name below tar_partitions/. */
  readonly part: string;
  readonly files: readonly PackedFile[];
}

export interface PackedFile {
  readonly memberName: string;
  readonly modifiedAt: Date;
  /** Pages that do not match their checksums: how many, and the first of them, as blocks of this file. */
  readonly damaged?: { readonly count: number; readonly blocks: readonly number[] } | undefined;
}

/** Collects parts in the order in which they end, as text: memory grows by the names of the files and nothing else. */
export class FilesMetadataWriter {
  readonly #files: string[] = [];
  readonly #sets: string[] = [];
  readonly #limit: FileListLimit;

  constructor(maxBytes = MAX_FILES_METADATA_BYTES) {
    this.#limit = new FileListLimit("files_metadata.json", maxBytes);
  }

  /** @throws PostgresError  no restore would read what it became */
  add({ part, files }: PartContents): void {
    for (const { memberName, modifiedAt, damaged } of files) {
      const corrupt = damaged && { CorruptBlocksCount: damaged.count, SomeCorruptBlocks: damaged.blocks };
      const fields = {
        IsIncremented: false,
        IsSkipped: false,
        MTime: modifiedAt.toISOString(),
        ...(corrupt && { CorruptBlocks: corrupt }),
        UpdatesCount: 0,
      };
      this.#keep(`${JSON.stringify(memberName)}:${JSON.stringify(fields)}`, this.#files);
    }
    this.#keep(`${JSON.stringify(part)}:${JSON.stringify(files.map(({ memberName }) => memberName))}`, this.#sets);
  }

  #keep(text: string, list: string[]): void {
    this.#limit.take(text, ",");
    list.push(text);
  }

  finish(): Uint8Array {
    return new TextEncoder().encode(
      `{"Files":{${this.#files.join(",")}},"TarFileSets":{${this.#sets.join(",")}},"DatabasesByNames":{}}`,
    );
  }
}

/**
 * @returns the parts that belong to the backup, in order of their names, and the members of each; undefined when the backup
 *          does not say (WAL-G with WALG_WITHOUT_FILES_METADATA)
 * @throws IntegrityError  not what it should be
 */
export function filesOfFilesMetadata(
  body: Uint8Array,
  url: string,
): ReadonlyMap<string, readonly string[]> | undefined {
  const sets = JsonFields.parse(new TextDecoder().decode(body), url, "small").object("TarFileSets");
  if (sets === undefined || sets.names().length === 0) return undefined;
  return new Map(
    sets
      .names()
      .toSorted()
      .map((name) => {
        const members = sets.texts(name);
        if (name.includes("/") || members === undefined)
          throw new IntegrityError(`${url} is damaged`, { detail: `It has the part "${name}".` });
        return [name, members];
      }),
  );
}
