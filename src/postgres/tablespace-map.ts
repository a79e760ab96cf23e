/**
 * tablespace_map: where the links in pg_tblspc point. The server makes them anew from this file when it starts on a
 * restored backup. Source: do_pg_backup_start() and read_tablespace_map() in xlog.c and xlogrecovery.c.
 */
import { IntegrityError } from "../errors.ts";

export const TABLESPACE_MAP = "tablespace_map";

export interface TablespaceLink {
  readonly oid: number;
  readonly location: string;
}

/**
 * Lines are "OID location"; a backslash stands before a line end, a carriage return or a backslash of the location.
 *
 * @throws IntegrityError  a line has another form
 */
export function parseTablespaceMap(text: string): readonly TablespaceLink[] {
  // Majors before 14 left backslashes as they were, so one that escapes nothing is part of the location.
  const lines = text.match(/(?:\\[\n\r\\]|[^\n\r])+/g) ?? [];
  return lines.map((line) => {
    const [, oid, location] = /^(\d{1,10}) ([\s\S]+)$/.exec(line) ?? [];
    if (oid === undefined || location === undefined) {
      throw new IntegrityError("tablespace_map is damaged", { detail: `It has the line "${line}".` });
    }
    return { oid: Number(oid), location: location.replace(/\\([\n\r\\])/g, "$1") };
  });
}

export function formatTablespaceMap(links: readonly TablespaceLink[]): string {
  return links.map(({ oid, location }) => `${oid} ${location.replace(/[\n\r\\]/g, "\\$&")}\n`).join("");
}
