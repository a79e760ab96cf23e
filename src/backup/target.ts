/**
 * The directory that a backup is restored into: whether it may be used, where its tablespaces go, and making it durable.
 *
 * Nothing is written outside the target unless the user said where: tablespaces keep their places only with SOURCE.
 */
import { constants } from "node:fs";
import { access, chmod, lstat, open, readdir, readlink, realpath, stat, symlink } from "node:fs/promises";
import { dirname, isAbsolute, join, normalize, resolve } from "node:path";
import { DestinationError, systemCodeOf, UsageError } from "../errors.ts";
import { isProcessRunning, readPostmasterPid } from "../postgres/postmaster-pid.ts";
import type { Tablespace } from "../repository/sentinel.ts";
import { destinationError, madeDurable, syncDirectory } from "../system/atomic-file.ts";
import { forEachAtOnce } from "../system/pool.ts";
import { makeDirectories, type Owner, ownerOf, refuseOfOthers } from "./owner.ts";
import { type InterruptedRestore, MARKER, MARKER_DIRECTORY, readInterruptedRestore } from "./restore-marker.ts";

/** Where the content of tablespaces goes. */
export type TablespaceChoice =
  /** Links that stand in the target already, made by the administrator; a backup with others is refused. */
  | { readonly kind: "prepared links" }
  /** Where they were on the source. */
  | { readonly kind: "source" }
  /** Into the target itself, below tablespaces/. */
  | { readonly kind: "inside" }
  /** OID or old location → new location. */
  | { readonly kind: "mapping"; readonly places: ReadonlyMap<string, string> };

/** What was checked and will be made. */
export interface TargetPlan {
  readonly target: string;
  readonly tablespaces: readonly PlacedTablespace[];
}

export interface PlacedTablespace {
  readonly oid: string;
  /** The real directory that holds it. */
  readonly place: string;
  /** "prepared": stands in pg_tblspc already. */
  readonly link: "prepared" | "to be made";
}

export interface PreparedTarget {
  readonly target: string;
  /** Where tablespaces were put: real directories, to be synced. */
  readonly tablespaceDirectories: readonly string[];
  /** Those that were made here, the target and parents of tablespaces included. */
  readonly madeDirectories: readonly string[];
  /** Who the files are given to; undefined: who runs this. */
  readonly owner: Owner | undefined;
}

/** Before the backup is chosen: whether anything could be restored there. @throws as planTarget() */
export async function checkTarget(target: string): Promise<void> {
  await checkEmpty(target);
  await checkWritable({ target, tablespaces: [] });
}

/**
 * Decides where everything goes, and changes nothing.
 *
 * @throws DestinationError  not empty, in use, or cannot be read
 * @throws UsageError        tablespaces have no place
 */
export async function planTarget(
  target: string,
  tablespaces: readonly Tablespace[],
  choice: TablespaceChoice,
): Promise<TargetPlan> {
  const prepared = await checkEmpty(target);
  refuseOtherLinks(target, prepared, tablespaces);
  const places = tablespaces.map((tablespace) => ({
    ...tablespace,
    place: placeOf(tablespace, target, choice, prepared),
  }));
  refuseWithoutPlace(places);
  const placed = places.flatMap(({ oid, place }) => {
    if (place === undefined) return [];
    const leadsTo = prepared.get(oid);
    if (leadsTo !== undefined && leadsTo !== resolve(place))
      throw leadsElsewhere(join(target, "pg_tblspc", oid), { leadsTo, place });
    return { oid, place, link: leadsTo === undefined ? ("to be made" as const) : ("prepared" as const) };
  });
  await refuseSharedPlace(placed);
  for (const { place } of placed) await checkEmptyPlace(place);
  return { target, tablespaces: placed };
}

/**
 * The same for a restore that goes on: tablespaces stay where it began to put them.
 *
 * @throws DestinationError  a server runs there
 * @throws UsageError        they are to go elsewhere
 */
export function planResumedTarget(
  target: string,
  tablespaces: readonly Tablespace[],
  { choice, identity }: { readonly choice: TablespaceChoice } & Pick<InterruptedRestore, "identity">,
): TargetPlan {
  refuseRunningServer(target);
  const begun = new Map(identity.tablespaces.map(({ oid, place }) => [oid, place]));
  for (const tablespace of choice.kind === "prepared links" ? [] : tablespaces) {
    const [was, asked] = [begun.get(tablespace.oid), placeOf(tablespace, target, choice, begun)];
    if (was === asked) continue;
    throw new UsageError(`tablespace ${tablespace.oid} cannot go elsewhere now`, {
      detail: `The restore that was interrupted puts it into "${was}", and "${asked}" was asked for.`,
      hint: "Leave the option out to go on, or restore into an empty directory.",
    });
  }
  return { target, tablespaces: identity.tablespaces.map(({ oid, place }) => ({ oid, place, link: "to be made" })) };
}

/** @throws DestinationError  this account may not write there, or is not the owner: a long restore would end with an error */
export async function checkWritable({ target, tablespaces }: TargetPlan): Promise<void> {
  for (const place of [target, ...tablespaces.map((tablespace) => tablespace.place)]) {
    try {
      await access(await existing(place), constants.W_OK | constants.X_OK);
    } catch (cause) {
      throw destinationError(`could not prepare "${target}"`, cause);
    }
  }
  for (const directory of [target, join(target, "pg_tblspc")]) await refuseOfOthers(directory);
}

/** The directory, or the nearest one around it that is there. */
async function existing(place: string): Promise<string> {
  for (let directory = resolve(place); ; directory = dirname(directory)) {
    if (directory === "/") return directory;
    const found = await stat(directory).catch((error: unknown) => systemCodeOf(error));
    if (found !== "ENOENT") return directory;
  }
}

export interface MadeTarget {
  /** The target and the directories around it, as far as they were not there. */
  readonly madeDirectories: readonly string[];
  /** Who the files are given to; undefined: who runs this. */
  readonly owner: Owner | undefined;
}

/** @throws DestinationError  the file system refuses */
export async function makeTarget({ target }: TargetPlan): Promise<MadeTarget> {
  try {
    const owner = await ownerOf(target);
    return { madeDirectories: await makeDirectories(target, owner), owner };
  } catch (cause) {
    throw destinationError(`could not prepare "${target}"`, cause);
  }
}

/**
 * Creates the directories and links of tablespaces.
 *
 * @throws DestinationError  the file system refuses
 */
export async function prepareTarget(
  { target, tablespaces }: TargetPlan,
  { madeDirectories, owner }: MadeTarget,
): Promise<PreparedTarget> {
  const made = [...madeDirectories];
  const make = async (path: string) => void made.push(...(await makeDirectories(path, owner)));
  try {
    if (tablespaces.length > 0) await make(join(target, "pg_tblspc"));
    for (const { oid, place, link } of tablespaces) {
      await make(place);
      if (link === "to be made") await linkTo(place, join(target, "pg_tblspc", oid));
    }
  } catch (cause) {
    throw destinationError(`could not prepare "${target}"`, cause);
  }
  const tablespaceDirectories = tablespaces.map(({ place }) => place);
  return { target, tablespaceDirectories, madeDirectories: made, owner };
}

/** It may be there when a restore goes on; that it leads there was looked at before. */
async function linkTo(place: string, link: string): Promise<void> {
  await symlink(place, link).catch((error: unknown) => {
    if (systemCodeOf(error) !== "EEXIST") throw error;
  });
}

/**
 * Gives the target the mode that the source had, which is that of its directories (initdb --allow-group-access), and with it
 * the directories that were made for tablespaces. A server refuses to start on one that is open to others.
 */
export async function finishDirectories({ target, madeDirectories }: PreparedTarget): Promise<void> {
  try {
    const mode = (await stat(join(target, "global"))).mode & 0o777;
    for (const directory of new Set([target, ...madeDirectories])) await chmod(directory, mode);
  } catch (cause) {
    throw destinationError(`could not set the mode of "${target}"`, cause);
  }
}

function refuseRunningServer(target: string): void {
  const running = readPostmasterPid(target);
  if (running && isProcessRunning(running.pid)) {
    throw new DestinationError(`a server runs in "${target}"`, {
      detail: `Its process is ${running.pid}.`,
      hint: "Restore into an empty directory.",
    });
  }
}

/** @returns links in pg_tblspc that the administrator prepared, by OID @throws DestinationError  anything else is there */
async function checkEmpty(target: string): Promise<ReadonlyMap<string, string>> {
  const names = (await namesIn(target)).filter((name) => name !== "lost+found");
  if (names.length > 0) refuseRunningServer(target);
  if (names.includes(MARKER_DIRECTORY)) await refuseInterrupted(target);
  const others = names.filter((name) => name !== "pg_tblspc");
  if (others.length > 0) throw notEmpty(target, others);

  const links = new Map<string, string>();
  if (names.length === 0) return links;
  const directory = join(target, "pg_tblspc");
  if ((await lstat(directory)).isSymbolicLink()) throw linkToNothingOfOurs(directory);
  for (const name of await namesIn(directory)) {
    const link = join(directory, name);
    if (!/^\d+$/.test(name) || !(await lstat(link)).isSymbolicLink()) throw notEmpty(target, [`pg_tblspc/${name}`]);
    links.set(name, resolve(directory, await readlink(link)));
  }
  return links;
}

/** A file that the backup has below such a link would be written to where it leads. */
function refuseOtherLinks(
  target: string,
  prepared: ReadonlyMap<string, string>,
  tablespaces: readonly Tablespace[],
): void {
  const other = prepared.keys().find((oid) => !tablespaces.some((tablespace) => tablespace.oid === oid));
  if (other !== undefined) throw linkToNothingOfOurs(join(target, "pg_tblspc", other));
}

function linkToNothingOfOurs(link: string): DestinationError {
  return new DestinationError(`"${link}" is a link, and not that of a tablespace of the backup`, {
    detail: "What is restored below it would come to lie outside of the directory.",
    hint: "Remove the link. Links of tablespaces are called pg_tblspc/OID.",
  });
}

async function refuseInterrupted(target: string): Promise<void> {
  const interrupted = await readInterruptedRestore(target);
  if (interrupted === undefined) return;
  const { identity, beganAt } = interrupted;
  throw new DestinationError(`"${target}" holds a restore that was interrupted`, {
    detail: `It is of backup "${identity.backup}" and began at ${beganAt.toISOString()}: see "${MARKER}" there.`,
    hint: "Say --resume to go on with it, or empty the directory to begin anew.",
  });
}

/**
 * Once the marker is there, which keeps others out: another restore may have begun and ended since planTarget().
 *
 * @throws DestinationError  something else is there
 */
export async function checkStillEmpty(target: string): Promise<void> {
  const expected = ["lost+found", "pg_tblspc", MARKER_DIRECTORY];
  const others = (await namesIn(target)).filter((name) => !expected.includes(name));
  if (others.length > 0) throw notEmpty(target, others);
}

async function checkEmptyPlace(place: string): Promise<void> {
  const names = (await namesIn(place)).filter((name) => name !== "lost+found");
  if (names.length > 0) throw notEmpty(place, names);
}

async function namesIn(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (cause) {
    if (systemCodeOf(cause) === "ENOENT") return [];
    throw destinationError(`could not read "${directory}"`, cause);
  }
}

function notEmpty(directory: string, names: readonly string[]): DestinationError {
  return new DestinationError(`"${directory}" is not empty`, {
    detail: `It contains ${names
      .slice(0, 3)
      .map((name) => `"${name}"`)
      .join(", ")}${names.length > 3 ? ` and ${names.length - 3} more` : ""}.`,
    hint: "A backup is restored into an empty directory, so that nothing is lost or mixed. Move the old content away.",
  });
}

function leadsElsewhere(link: string, { leadsTo, place }: { readonly leadsTo: string; readonly place: string }) {
  return new DestinationError(`"${link}" is there already, and leads elsewhere`, {
    detail: `It leads to "${leadsTo}", and the tablespace is to go to "${place}".`,
    hint: "Remove the link, or leave out the option that says where tablespaces go.",
  });
}

function placeOf(
  { oid, location }: Tablespace,
  target: string,
  choice: TablespaceChoice,
  prepared: ReadonlyMap<string, string>,
): string | undefined {
  switch (choice.kind) {
    case "prepared links":
      return prepared.get(oid);
    case "source":
      return checkedPlace(location);
    case "inside":
      return resolve(target, "tablespaces", oid);
    case "mapping": {
      const place = choice.places.get(oid) ?? choice.places.get(location);
      return place === undefined ? prepared.get(oid) : checkedPlace(place);
    }
  }
}

function checkedPlace(place: string): string {
  if (!isAbsolute(place) || normalize(place) !== place.replace(/(.)\/+$/, "$1")) {
    throw new UsageError(`"${place}" cannot be the place of a tablespace`, {
      hint: "It must be an absolute path without . and .. in it.",
    });
  }
  return place;
}

function refuseWithoutPlace(places: readonly (Tablespace & { readonly place: string | undefined })[]): void {
  const homeless = places.filter(({ place }) => place === undefined);
  if (homeless.length === 0) return;
  const mapping = homeless.map(({ oid }) => `--tablespace-mapping ${oid}=/new/place`).join(" ");
  throw new UsageError("the backup has tablespaces, and it is not said where they go", {
    detail: homeless.map(({ oid, location }) => `Tablespace ${oid} was in "${location}".`).join(" "),
    hint: `To where they were: --restore-spec SOURCE. Elsewhere: ${mapping}. Into the data directory itself: --blind-restore.`,
  });
}

/** Also by another name: of two tablespaces in one directory, dropping the one would find the files of the other. */
async function refuseSharedPlace(placed: readonly PlacedTablespace[]): Promise<void> {
  const taken = new Map<string, PlacedTablespace>();
  for (const tablespace of placed) {
    const { oid, place } = tablespace;
    const directory = await realpath(place).catch(() => resolve(place));
    const other = taken.get(directory);
    taken.set(directory, tablespace);
    if (other === undefined) continue;
    throw new UsageError(`tablespaces ${other.oid} and ${oid} cannot go to one place`, {
      detail: `Tablespace ${other.oid} is to go to "${other.place}", and ${oid} to "${place}".`,
      hint: "Give each a directory of its own.",
    });
  }
}

const SYNCS_AT_ONCE = 16;

/** Makes every file and directory durable: data first, then the names that lead to it. */
export async function syncTree(
  { target, tablespaceDirectories, madeDirectories }: PreparedTarget,
  signal: AbortSignal,
): Promise<void> {
  const roots = [...tablespaceDirectories, target];
  for (const root of roots) {
    const directories: string[] = [];
    await forEachAtOnce(SYNCS_AT_ONCE, filesBelow(root, directories), async (path) => {
      signal.throwIfAborted();
      await madeDurable(path, () => syncFile(path));
    });
    for (const directory of directories.toReversed()) await madeDurable(directory, () => syncDirectory(directory));
  }
  // Where their names are, and those of every directory that was made around them.
  for (const directory of new Set([...roots, ...madeDirectories].map((path) => resolve(path, ".."))))
    await madeDurable(directory, () => syncDirectory(directory));
}

async function* filesBelow(directory: string, directories: string[]): AsyncGenerator<string> {
  directories.push(directory);
  for (const entry of await madeDurable(directory, () => readdir(directory, { withFileTypes: true }))) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path, directories);
    else if (entry.isFile()) yield path;
  }
}

async function syncFile(path: string): Promise<void> {
  await using file = await open(path, "r");
  await file.sync();
}
