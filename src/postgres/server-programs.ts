/** The programs of a PostgreSQL server of a certain major that are installed on this machine. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { PostgresError, reasonOf } from "../errors.ts";

export interface ServerPrograms {
  readonly bin: string;
  /** "18.4", as the server says. */
  readonly version: string;
}

export interface ProgramSearch {
  /** Only here; undefined: in PATH, and where packages put them. */
  readonly directory: string | undefined;
  /** $PATH. */
  readonly path: string | undefined;
  /** The account that is to run them; undefined: this one. */
  readonly account: { readonly uid: number; readonly gid: number } | undefined;
}

const ASKING_TAKES_AT_MOST_MS = 20_000;

/** @throws PostgresError  there are none, or the account cannot run them */
export async function findServerPrograms(major: number, search: ProgramSearch): Promise<ServerPrograms> {
  const { directory, path = "" } = search;
  const usual = [`/usr/lib/postgresql/${major}/bin`, `/usr/pgsql-${major}/bin`, "/usr/local/pgsql/bin"];
  const places = directory === undefined ? [...path.split(":"), ...usual].filter((place) => place !== "") : [directory];
  const found: string[] = [];
  for (const bin of new Set(places)) {
    const answer = await versionOf(join(bin, "postgres"), search);
    const version = /^postgres \(PostgreSQL\) (\S+)/.exec(answer)?.[1];
    if (version !== undefined && Number.parseInt(version, 10) === major) return { bin, version };
    if (version !== undefined) found.push(`"${bin}" has version ${version}.`);
    else if (answer !== "") found.push(`"${join(bin, "postgres")}": ${answer}.`);
  }
  throw new PostgresError(`there is no PostgreSQL ${major} that could be started here`, {
    detail: found.length > 0 ? found.join(" ") : `Looked in ${[...new Set(places)].join(", ")}.`,
    hint: "Install the server of that major, or say with --postgres-bin in which directory its programs are.",
  });
}

/** @returns what it says, or why it says nothing; "" when it is not there */
async function versionOf(program: string, { account }: ProgramSearch): Promise<string> {
  return await new Promise((resolve) => {
    const options = { timeout: ASKING_TAKES_AT_MOST_MS, env: { LC_ALL: "C" }, cwd: "/", ...account };
    execFile(program, ["--version"], options, (error, stdout, stderr) => {
      if (error === null) resolve(stdout.trim());
      else if (error.code === "ENOENT" || error.code === "ENOTDIR") resolve("");
      else resolve(stderr.trim().split("\n").at(-1) || reasonOf(error));
    });
  });
}
