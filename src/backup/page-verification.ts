/** Whether and how the pages of a backup are verified, and what is told of those that are damaged. */
import { IntegrityError } from "../errors.ts";
import type { Connection } from "../postgres/connection.ts";
import { asLsn, type Lsn, parseLsn } from "../postgres/lsn.ts";
import type { PgControl } from "../postgres/pg-control.ts";
import { parseRelationFilePath } from "../postgres/relation-file.ts";
import { nameRelation } from "../postgres/relation-name.ts";
import type { PagesFound } from "../repository/sentinel.ts";
import { abortableDelay } from "../system/delay.ts";
import type { Log } from "../system/log.ts";
import type { OpenDataFile } from "./read-file.ts";
import { type DamagedPages, type PageRules, PageVerifier } from "./verify-pages.ts";

export interface DamagedFile {
  /** Relative to the data directory. */
  readonly path: string;
  readonly relation: string | undefined;
  readonly pages: number;
  /** The first of them, counted over all files of the relation. */
  readonly blocks: readonly number[];
}

/** What depends on whether a server runs. */
export interface PageFacts extends Pick<PageRules, "isReplayed"> {
  nameOf(path: string): Promise<string | undefined>;
}

export class PageVerification {
  readonly #verification: PagesFound["verification"];
  readonly #rules: PageRules;
  readonly #facts: PageFacts;
  readonly #log: Log;
  readonly #damagedFiles: DamagedFile[] = [];

  /** @param wanted  what the settings say */
  constructor(wanted: "verify" | "skip", control: PgControl, facts: PageFacts, log: Log) {
    const hasChecksums = control.dataChecksums === "on";
    this.#verification = !hasChecksums ? "none" : wanted === "verify" ? "done" : "off";
    this.#rules = {
      pageBytes: control.blockSizeBytes,
      segmentPages: control.relationSegmentBlocks,
      isReplayed: (lsn) => facts.isReplayed(lsn),
    };
    this.#facts = facts;
    this.#log = log;
    if (this.#verification === "none") log.info("pages are not verified: the cluster has no data checksums");
    if (this.#verification === "off") log.info("pages are not verified");
  }

  get found(): PagesFound {
    const damaged = this.#damagedFiles.reduce((sum, { pages }) => sum + pages, 0);
    return { verification: this.#verification, damaged };
  }

  get damagedFiles(): readonly DamagedFile[] {
    return this.#damagedFiles;
  }

  /** @returns undefined for a file without pages, and when pages are not verified */
  verifierOf(path: string, file: OpenDataFile, signal: AbortSignal): PageVerifier | undefined {
    const relation = this.#verification === "done" ? parseRelationFilePath(path) : undefined;
    if (relation === undefined) return undefined;
    const source = {
      segment: relation.segment,
      readAgain: (into: Uint8Array, at: number) => file.read(into, at),
    };
    return new PageVerifier(this.#rules, source, (ms) => abortableDelay(ms, signal));
  }

  async report(path: string, { count, blocks: inFile }: DamagedPages): Promise<void> {
    const firstBlock = (parseRelationFilePath(path)?.segment ?? 0) * this.#rules.segmentPages;
    const blocks = inFile.map((block) => firstBlock + block);
    const relation = await this.#facts.nameOf(path);
    this.#damagedFiles.push({ path, relation, pages: count, blocks });
    this.#log.error(damageOf(path, relation, count, blocks));
  }
}

export function damageOf(
  path: string,
  relation: string | undefined,
  count: number,
  blocks: readonly number[],
): IntegrityError {
  const which = count > blocks.length ? `the first are ${blocks.join(", ")}` : blocks.join(", ");
  const where = relation === undefined ? "" : ` of ${relation}`;
  return new IntegrityError(`"${path}" has ${count} damaged ${count === 1 ? "page" : "pages"}`, {
    detail: `What is in ${count === 1 ? "block" : "blocks"} ${which}${where} does not match its checksum.`,
    hint: "The backup holds the file as it is. An older backup may hold it intact. Look for the cause in disks, controllers and memory.",
  });
}

/** Of a running server. */
export function pageFactsOf(connection: Connection, startLsn: Lsn): PageFacts {
  let writtenUpTo = startLsn;
  return {
    // No page on disk is ahead of the WAL on disk: what claims to be is damaged itself, and no replay will put it right.
    async isReplayed(lsn) {
      if (lsn < startLsn) return false;
      if (lsn > writtenUpTo) writtenUpTo = await readWrittenLsn(connection);
      return lsn <= writtenUpTo;
    },
    nameOf: (path) => nameRelation(connection, path),
  };
}

async function readWrittenLsn(connection: Connection): Promise<Lsn> {
  const [row] = await connection.query<{ lsn: string }>(
    "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END AS lsn",
  );
  return parseLsn(row?.lsn ?? "") ?? asLsn(0n);
}

/** Of a cluster that is shut down: nobody writes to it, and nothing is replayed. */
export const PAGE_FACTS_OFFLINE: PageFacts = { isReplayed: async () => false, nameOf: async () => undefined };
