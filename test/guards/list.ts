// biome-ignore-all lint/suspicious/noTemplateCurlyInString: they are texts of the program.
/**
 * The guards of the ten promises: what is taken out of the program, and the tests that must notice.
 *
 * A promise of README.md is as good as the guards behind it, and a guard as the test that fails without it. Each entry names a text
 * that stands in its file exactly once, so that the list cannot rot.
 */

export interface Guard {
  /** Of README.md's list. */
  readonly promise: number;
  /** What it sees to. */
  readonly guards: string;
  /** Below src/. */
  readonly file: string;
  readonly search: string;
  readonly replacement: string;
  /** The file that must fail. */
  readonly test: string;
  /** A part of the name of a test that must fail, as seen when the guard was taken out. */
  readonly fails: string;
  /** "servers": PostgreSQL or S3 are started; "program": the executable is built. */
  readonly needs: "nothing" | "program" | "servers";
}

const UNIT = { needs: "nothing" } as const;
const PROGRAM = { needs: "program" } as const;

export const GUARDS: readonly Guard[] = [
  {
    ...{ ...UNIT, promise: 1, guards: "a waiting segment is marked done only after the store has confirmed it" },
    file: "wal/push.ts",
    search: "    await archive(place, context);\n    await rename(`${mark}.ready`, `${mark}.done`);",
    replacement: "    await rename(`${mark}.ready`, `${mark}.done`);\n    await archive(place, context);",
    test: "test/unit/wal/push.test.ts",
    fails: "marks nothing done that the store did not confirm",
  },
  {
    ...{ ...UNIT, promise: 1, guards: "an upload counts only when the store says so" },
    file: "storage/s3-write.ts",
    search: "        isUncertain ||= mayHaveHappened(error);\n        throw error;",
    replacement:
      '        isUncertain ||= mayHaveHappened(error);\n        if (isUncertain) return "created";\n        throw error;',
    test: "test/unit/storage/s3.test.ts",
    fails: "upload() > a 200 whose body is an error is no success",
  },
  {
    ...{ needs: "servers", promise: 1, guards: "an object in a directory is on the disk before it has its name" },
    file: "storage/directory-write.ts",
    search: "      await file.sync();\n",
    replacement: "",
    test: "test/integration/wal-push-is-durable-before-it-succeeds.test.ts",
    fails: "content is made durable before its name is given, and the name before wal-push succeeds",
  },
  {
    ...{ needs: "servers", promise: 1, guards: "its name is on the disk before wal-push succeeds" },
    file: "storage/directory-write.ts",
    search: "      await syncDirectory(dirname(this.#finalPath));\n",
    replacement: "",
    test: "test/integration/wal-push-is-durable-before-it-succeeds.test.ts",
    fails: "content is made durable before its name is given, and the name before wal-push succeeds",
  },
  {
    ...{ ...UNIT, promise: 2, guards: "one atomic request creates an object or finds the name taken" },
    file: "storage/s3-write.ts",
    search: 'const condition = this.#isEmulated ? {} : { IfNoneMatch: "*" };',
    replacement: "const condition = {};",
    test: "test/unit/storage/s3.test.ts",
    fails: "putIfAbsent() > sends the condition and no checksum",
  },
  {
    ...{ ...UNIT, promise: 1, guards: "a page that a proxy answers 200 with is no success" },
    file: "storage/s3-answer.ts",
    search: "  if (!ETag) throw",
    replacement: "  if (false) throw",
    test: "test/unit/storage/s3.test.ts",
    fails: "putIfAbsent()",
  },
  {
    ...{ ...UNIT, promise: 2, guards: "a name that is taken is compared, and other content is refused" },
    file: "wal/push.ts",
    search: "if (Buffer.compare(await readWal(path), await archivedContent(file, archive)) !== 0) {",
    replacement: "if (false) {",
    test: "test/unit/wal/push.test.ts",
    fails: "refuses other content under the same name and keeps the first",
  },
  {
    ...{ ...UNIT, promise: 2, guards: "a second backup of one name is refused" },
    file: "repository/backup-upload.ts",
    search: '    if (outcome === "exists") throw await this.#nameIsTaken(key);\n',
    replacement: "    void outcome;\n",
    test: "test/unit/repository/backup-upload.test.ts",
    fails: "a second backup of one name is refused, begun or complete",
  },
  {
    ...{ ...UNIT, promise: 3, guards: "a page that a proxy answers 200 with is no list of nothing" },
    file: "storage/s3-list.ts",
    search: "if (answer.IsTruncated === undefined) throw",
    replacement: "if (false) throw",
    test: "test/unit/storage/s3.test.ts",
    fails: "listLevel()",
  },
  {
    ...{ ...UNIT, promise: 2, guards: "another cluster's WAL is not taken in" },
    file: "wal/cluster-identity.ts",
    search: "  if (owner.systemIdentifier !== systemIdentifier) {",
    replacement: "  if (false) {",
    test: "test/unit/wal/cluster-identity.test.ts",
    fails: "another cluster's archive is refused with both identifiers, every time",
  },
  {
    ...{ ...UNIT, promise: 2, guards: "a store that ignores the condition is found out" },
    file: "repository/overwrite-proof.ts",
    search: "    if (refuses) return;\n",
    replacement: "    return;\n",
    test: "test/unit/repository/overwrite-proof.test.ts",
    fails: "a store that writes again has to be asked first from then on, and the user is told",
  },
  {
    ...{ ...UNIT, promise: 3, guards: "only the store's own word, in a 404, is absence" },
    file: "storage/s3-answer.ts",
    search: 'if (code === "NoSuchKey" && status === 404) return',
    replacement: "if (status === 404) return",
    test: "test/unit/storage/s3.test.ts",
    fails: "what is not proved is not NotFoundError > get() and head() of a proxy's page",
  },
  {
    ...{ ...UNIT, promise: 3, guards: "in recovery no failure has an exit code that means the end of WAL" },
    file: "cli/recovery.ts",
    search: 'if (state === "recovery") return EXIT_RECOVERY_MUST_STOP;',
    replacement: "",
    test: "test/unit/cli/recovery.test.ts",
    fails: "walFetchExitCode() > when the store fails, recovery must stop with 200, and a standby asks again",
  },
  {
    ...{ ...UNIT, promise: 3, guards: "a segment that is missing before later ones is a gap, and no end" },
    file: "wal/fetch.ts",
    search: "if (later === undefined) throw error;",
    replacement: "throw error;",
    test: "test/unit/wal/fetch.test.ts",
    fails: "fetchWal() does not take a gap in the archive for its end, in recovery",
  },
  {
    ...{ ...PROGRAM, promise: 3, guards: "an empty mount point proves nothing" },
    file: "cli/wal-fetch.ts",
    search: "if (objects.length + folders.length > 0) return;",
    replacement: "return;",
    test: "test/cli/wal-fetch.test.ts",
    fails:
      "with recovery.signal in the data directory > an empty repository directory: a mount point where nothing is mounted",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "content is compared with the SHA-256 that was archived with it" },
    file: "repository/wal-archive.ts",
    search: "      checkHash(stored, content);\n",
    replacement: "",
    test: "test/unit/repository/wal-archive.test.ts",
    fails: "refuses content that is valid but not what was archived",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a segment is what its name says" },
    file: "postgres/wal-page-header.ts",
    search: "if (pageAddress !== segmentStart(position, segmentSize)) {",
    replacement: "if (false) {",
    test: "test/unit/postgres/wal-page-header.test.ts",
    fails: "checkSegment() > refuses another segment's content",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "an object that was cut off is not taken for a whole one" },
    file: "codec/content.ts",
    search: "  if (!walker.isBetweenFrames)\n",
    replacement: "  if (false)\n",
    test: "test/unit/codec/content.test.ts",
    fails: "decodeStream() > an object that is cut off is an IntegrityError, wherever the cut is inside a frame",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "frames carry a checksum of their content" },
    file: "codec/zstd-frames.ts",
    search: "sealed[4] = (frame[4] ?? 0) | CHECKSUM_FLAG |",
    replacement: "sealed[4] = (frame[4] ?? 0) |",
    test: "test/unit/codec/zstd-frames.test.ts",
    fails: "sealFrame() > makes a frame by the addon that every reader takes",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a file gets its name only when all of it is written" },
    file: "system/atomic-file.ts",
    search: "const temporary = join(directory, `xlogtemp.walb.${crypto.randomUUID()}`);",
    replacement: "const temporary = destination;",
    test: "test/unit/system/atomic-file.test.ts",
    fails: "writeFileAtomically() on a full file system keeps the old content and says what to do",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a restored file is compared with the backup's manifest" },
    file: "backup/unpack.ts",
    search: "  if (sha256 === wanted.sha256) return;\n",
    replacement: "  return;\n",
    test: "test/unit/backup/verify.test.ts",
    fails: "verifyBackups() finds > a part of another backup",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a member of an archive stays inside the target" },
    file: "backup/unpack.ts",
    search: 'segments.some((segment) => segment === ".." || segment === "." || segment === "")',
    replacement: "false",
    test: "test/property/stored-content.test.ts",
    fails: "nothing is unpacked outside of the target",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "another cluster's segment is not put in place" },
    file: "wal/fetch.ts",
    search: "if (systemIdentifier !== undefined && written !== systemIdentifier) {",
    replacement: "if (false) {",
    test: "test/unit/wal/fetch.test.ts",
    fails: "fetchWal() does not fetch another cluster's segment, and leaves nothing behind",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a page with a wrong checksum is noticed while it is backed up" },
    file: "postgres/page-checksum.ts",
    search: "stored === 0 ? isNew(words, at, pageWords) : stored === pageChecksum(words, at, pageWords, block);",
    replacement: "true || isNew(words, at, pageWords) || stored === pageChecksum(words, at, pageWords, block);",
    test: "test/unit/backup/verify-pages.test.ts",
    fails: "takes a page that stays wrong for damaged, after it has given a write time to end",
  },
  {
    ...{ ...UNIT, promise: 5, guards: "the sentinel is written last" },
    file: "repository/backup-upload.ts",
    search:
      "    await this.#put(keys.metadata, encodeMetadata(sentinel));\n    await this.#put(keys.sentinel, encodeSentinel(sentinel));",
    replacement:
      "    await this.#put(keys.sentinel, encodeSentinel(sentinel));\n    await this.#put(keys.metadata, encodeMetadata(sentinel));",
    test: "test/unit/repository/backup-upload.test.ts",
    fails: "the claim is written first and the sentinel last",
  },
  {
    ...{ ...UNIT, promise: 5, guards: "delete removes the sentinel before what it stands for" },
    file: "retention/delete.ts",
    search:
      "  for (const keys of contents) await store.delete(keys);\n  await store.delete(plan.removeWal.map(({ key }) => key));",
    replacement: "",
    test: "test/unit/retention/delete.test.ts",
    fails: "carryOut() > deletes the sentinel first, then the contents with the claim last, then WAL",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a page that was written since the backup began is no false alarm" },
    file: "backup/verify-pages.ts",
    search: "      if (!(await this.#rules.isReplayed(lsn))) left.push(page);",
    replacement: "      if (lsn !== undefined) left.push(page);",
    test: "test/unit/backup/verify-pages.test.ts",
    fails: "a page that was written since the backup began is left to WAL replay",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a page that was caught half written is read again" },
    file: "backup/verify-pages.ts",
    search: "      for (const page of wrong) await this.#readAgain(bytes, page, first);\n",
    replacement: "",
    test: "test/unit/backup/verify-pages.test.ts",
    fails: "a page that was caught being written is read again, and the backup gets it whole",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a page in another file of its relation is noticed" },
    file: "backup/verify-pages.ts",
    search: "this.#source.segment * segmentPages + first + page",
    replacement: "first + page + 0 * segmentPages",
    test: "test/unit/backup/verify-pages.test.ts",
    fails: "counts blocks over all files of a relation, and names those of this file",
  },
  {
    ...{ ...UNIT, promise: 4, guards: "a page without a checksum is new only when it is all zeros" },
    file: "postgres/page-checksum.ts",
    search: "stored === 0 ? isNew(words, at, pageWords) :",
    replacement: "stored === 0 ? true :",
    test: "test/unit/postgres/page-checksum.test.ts",
    fails: "takes a page of nothing but zeros for new, whichever block it is, and no other without a checksum",
  },
  {
    ...{ ...UNIT, promise: 5, guards: "a backup of a newer format is not guessed at" },
    file: "repository/sentinel.ts",
    search: '  if ((own?.integer("FormatVersion") ?? 0) > FORMAT_VERSION) {',
    replacement: "  if (false) {",
    test: "test/unit/repository/sentinel.test.ts",
    fails: "a newer format",
  },
  {
    ...{ needs: "servers", promise: 5, guards: "a backup waits for all WAL from start to stop" },
    file: "backup/push.ts",
    search:
      "  const elsewhere = await waitForWal(session.startSegment, lastSegment, wait);\n  if (elsewhere) throw archivesElsewhere(elsewhere, wait);\n\n  const { server",
    replacement: "  void lastSegment;\n\n  const { server",
    test: "test/integration/backup-push-tells-why-wal-is-not-archived.test.ts",
    fails:
      "an archive that works > that breaks while files are copied: the missing segment is named, and the parts are taken back",
  },
  {
    ...{ needs: "servers", promise: 6, guards: "pg_control gets its name last" },
    file: "backup/fetch.ts",
    search: "    rename: new Map([[PG_CONTROL_PATH, PG_CONTROL_UNTIL_COMPLETE]]),",
    replacement: "    rename: new Map(),",
    test: "test/integration/backup-fetch-killed-leaves-nothing-that-starts.test.ts",
    fails: "killed when everything is there but pg_control's name",
  },
  {
    ...{ ...UNIT, promise: 6, guards: "a backup is complete, or its pg_control stays away" },
    file: "backup/unpack.ts",
    search: "    if (missing.length === 0) return;\n    const shown",
    replacement: "    return;\n    const shown",
    test: "test/unit/backup/verify.test.ts",
    fails: "verifyBackups() finds > a part that is cut off between files",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "what a kept backup needs stays" },
    file: "retention/plan.ts",
    search: "    retained.some((backup) => continues(backup, file, inventory.histories)) ||\n",
    replacement: "",
    test: "test/property/retention.test.ts",
    fails: "no plan removes what a kept backup, or recovery from it, needs",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "WAL of another timeline stays unless the history shows that it was left" },
    file: "retention/plan.ts",
    search: "  return left === undefined || number <= segmentNumber(segmentHolding(file.timeline, left, size), size);",
    replacement:
      "  return file.timeline === backup.timeline || (left !== undefined && number <= segmentNumber(segmentHolding(file.timeline, left, size), size));",
    test: "test/property/retention.test.ts",
    fails: "no plan removes what a kept backup, or recovery from it, needs",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "a permanent backup keeps the WAL that completes it" },
    file: "retention/plan.ts",
    search: "    permanent.some((backup) => completes(backup, file));",
    replacement: "    permanent.length < 0;",
    test: "test/property/retention.test.ts",
    fails: "no plan removes what a kept backup, or recovery from it, needs",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "WAL from the start of a backup that cannot be read stays" },
    file: "retention/plan.ts",
    search: "!isNeeded(file) && !othersNeed(file);",
    replacement: "!isNeeded(file);",
    test: "test/property/retention.test.ts",
    fails: "no plan removes what a kept backup, or recovery from it, needs",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "a backup that cannot be read stops everything" },
    file: "retention/inventory.ts",
    search: "  if (damaged) {",
    replacement: "  if (false && damaged) {",
    test: "test/unit/retention/delete.test.ts",
    fails: "readInventory() > refuses to go on with a damaged sentinel: what it needs cannot be known",
  },
  {
    ...{ ...UNIT, promise: 7, guards: "nothing is deleted without --confirm" },
    file: "cli/delete.ts",
    search: '      acts: words.isSet("confirm") && !words.isSet("dry-run"),',
    replacement: "      acts: true,",
    test: "test/unit/cli/delete.test.ts",
    fails: "removes nothing without --confirm, nor with --dry-run beside it",
  },
  {
    ...{ ...UNIT, promise: 8, guards: "a small object cannot become more than is possible" },
    file: "codec/content.ts",
    search: "    if (total > maxBytes)\n",
    replacement: "    if (false)\n",
    test: "test/unit/codec/content.test.ts",
    fails: "decodeContent() refuses more than is possible, however much would come",
  },
  {
    ...{ ...UNIT, promise: 8, guards: "a frame that can become more than it states is read as a stream" },
    file: "codec/content.ts",
    search: "if (isParallel(header) && maxContentBytes <= MAX_POSSIBLE_BYTES) {",
    replacement: "if (isParallel(header)) {",
    test: "test/unit/codec/content.test.ts",
    fails: "a small object that would become 512 MiB is refused in little memory",
  },
  {
    ...{ ...UNIT, promise: 8, guards: "who asks for more memory than there is waits" },
    file: "system/byte-budget.ts",
    search: "    if (this.#waiting.length > 0 || !this.#fits(bytes)) {",
    replacement: "    if (false) {",
    test: "test/unit/system/byte-budget.test.ts",
    fails: "ByteBudget grants in order what fits",
  },
  {
    ...{ ...UNIT, promise: 9, guards: "an encryption key that cannot be used is an error" },
    file: "config/settings.ts",
    search: "if (pattern.test(variable)) throw",
    replacement: "if (false) throw",
    test: "test/unit/config/settings.test.ts",
    fails: "loadSettings() > WALE_GPG_KEY_ID is refused, because going on without it would be worse",
  },
  {
    ...{ ...UNIT, promise: 9, guards: "a key that is no key is not shown" },
    file: "cli/prefix.ts",
    search: '"the key in S3_SSE_C cannot be used"',
    replacement: "`the key in S3_SSE_C cannot be used: ${text}`",
    test: "test/unit/cli/prefix.test.ts",
    fails: "parseCustomerKey() > refuses any other size and does not show it",
  },
  {
    ...{ ...UNIT, promise: 9, guards: "what a store echoes does not get into a message" },
    file: "storage/s3-answer.ts",
    search: 'if (secret.length >= 4) hidden = hidden.replaceAll(secret, "[hidden]");',
    replacement: "",
    test: "test/unit/storage/s3.test.ts",
    fails: "a secret that a server echoes is not shown",
  },
  {
    ...{ ...UNIT, promise: 9, guards: "a line of a service file is not quoted" },
    file: "postgres/service-file.ts",
    search: '`There is no connection parameter "${key}".`',
    replacement: "`There is no connection parameter in ${line}.`",
    test: "test/property/configuration.test.ts",
    fails: "a service reads as it was written; other lines are refused without being quoted",
  },
  {
    ...{ ...UNIT, promise: 10, guards: "64-bit numbers keep their digits" },
    file: "repository/json.ts",
    search: '(typeof part === "bigint" ? JSON.rawJSON(part.toString()) : part)',
    replacement: '(typeof part === "bigint" ? Number(part) : part)',
    test: "test/unit/repository/sentinel.test.ts",
    fails: "encodeSentinel() > writes WAL-G's fields, 64-bit numbers as integers",
  },
  {
    ...{ ...UNIT, promise: 10, guards: "members of archives have the names that WAL-G looks for" },
    file: "codec/tar.ts",
    search: ", ...extendedIfLong(name) });",
    replacement: " });",
    test: "test/unit/codec/tar.test.ts",
    fails: "keep the leading slash of a name that is too long for one field of a plain header",
  },
  {
    ...{ ...UNIT, promise: 10, guards: "keys are WAL-G's" },
    file: "repository/keys.ts",
    search: 'export const WAL = "wal_005/";',
    replacement: 'export const WAL = "wal/";',
    test: "test/unit/repository/keys.test.ts",
    fails: "parseWalKey() > is the inverse of walKey(): 000000010000000000000004",
  },
];
