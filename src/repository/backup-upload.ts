/**
 * The backup half of the repository, writing: a claim first, then parts and metadata, the sentinel last.
 *
 * Nothing is listed before publish(), nor when somebody removed a part of it meanwhile. What a failed backup wrote is taken
 * back as far as the credentials allow; the rest is found by `delete garbage`, by its claim.
 */
import { ContentEncoder, encodeContent, releaseContent } from "../codec/content.ts";
import { type ReleaseOption, type TarHeader, TarWriter } from "../codec/tar.ts";
import type { Zstd } from "../codec/zstd.ts";
import { IntegrityError, reasonOf } from "../errors.ts";
import { isStored, type ObjectKey, type ObjectStore, type ObjectUpload } from "../storage/object-store.ts";
import type { Log } from "../system/log.ts";
import { formatJson } from "./json.ts";
import { backupFolder, backupKeys, partKey } from "./keys.ts";
import type { OverwriteProof } from "./overwrite-proof.ts";
import { encodeMetadata, encodeSentinel, type Sentinel } from "./sentinel.ts";

/** Who is making a backup: kept beside it, so that a second one under the same name is refused on every host. */
export interface BackupClaim {
  readonly hostname: string;
  readonly processId: number;
  readonly startedAt: Date;
  readonly version: string;
}

export interface BackupUploadContext {
  readonly store: ObjectStore;
  readonly zstd: Zstd;
  readonly proof: OverwriteProof;
  readonly log: Log;
  /** Resolves when so many bytes of a part may be sent: at once if left out. What else a backup writes is small. */
  readonly maySend?: (bytes: number) => Promise<void>;
}

/** Frames of one part that are compressed at once. With several parts at once, the cores are kept busy by 2. */
const FRAMES_IN_FLIGHT = 3;

const MAX_CLAIM_BYTES = 2 ** 16;

export interface PartSize {
  readonly contentBytes: number;
  readonly storedBytes: number;
}

/** A backup being written. Disposing it before publish() takes back what was uploaded so far. */
export class BackupUpload implements AsyncDisposable {
  readonly name: string;
  readonly #context: BackupUploadContext;
  /** What was written, with its size, in that order. */
  readonly #written = new Map<ObjectKey, number>();
  #isPublished = false;
  #claim = new Uint8Array();
  /** Something was removed, or is there that we did not write: the name may be another backup's by now. */
  #isDoubtful = false;

  /** Use beginBackupUpload(). */
  constructor(name: string, context: BackupUploadContext) {
    this.name = name;
    this.#context = context;
  }

  /**
   * Writes one tar archive as an object under tar_partitions/; `fill` adds its entries.
   *
   * @throws UploadLostError  it may be tried again from the beginning; anything else ends the backup
   */
  async putPart(part: string, fill: (tar: PartWriter) => Promise<void>): Promise<PartSize> {
    const { store, zstd, maySend } = this.#context;
    const key = partKey(this.name, part);
    await using upload = store.upload(key);
    const send = async (frame: Uint8Array) => {
      await maySend?.(frame.byteLength);
      await upload.write(frame);
      releaseContent(frame);
    };
    const encoder = new ContentEncoder(zstd, send, FRAMES_IN_FLIGHT);
    const tar = new TarWriter((bytes) => encoder.write(bytes));
    const writer = new PartWriter(tar);
    try {
      await fill(writer);
      await tar.end();
    } catch (error) {
      await tar.abandon();
      throw error;
    }
    const size = await encoder.end();
    await this.#complete(key, size.storedBytes, upload);
    return size;
  }

  async putManifest(manifest: string): Promise<void> {
    const body = await encodeContent(new TextEncoder().encode(manifest), this.#context.zstd);
    await this.#put(backupKeys(this.name).manifest, body);
  }

  async putFilesMetadata(body: Uint8Array): Promise<void> {
    await this.#put(backupKeys(this.name).filesMetadata, body);
  }

  /**
   * Writes the metadata and then the sentinel: from its appearance on, the backup exists.
   *
   * @throws IntegrityError  what was uploaded is not there any more
   */
  async publish(sentinel: Sentinel): Promise<void> {
    const keys = backupKeys(this.name);
    await this.#put(keys.metadata, encodeMetadata(sentinel));
    await this.#refuseRemoved();
    await this.#put(keys.sentinel, encodeSentinel(sentinel));
    this.#isPublished = true;
  }

  async claim(claim: BackupClaim): Promise<void> {
    const { store, proof } = this.#context;
    const key = backupKeys(this.name).claim;
    const body = new TextEncoder().encode(formatJson(claim));
    this.#claim = body;
    const outcome = await store.putIfAbsent(key, body).catch(async (error: unknown) => {
      // It may be there although its answer got lost, and would then keep the name taken.
      if (await this.#isOurs(key, body)) this.#written.set(key, body.byteLength);
      throw error;
    });
    if (outcome === "exists") throw await this.#nameIsTaken(key);
    this.#written.set(key, body.byteLength);
    await proof.prove({ key, body, metadata: {} });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isPublished || this.#written.size === 0) return;
    const { log } = this.#context;
    const store = this.#context.store.forCleanup();
    if (this.#isDoubtful && (await this.#isAnothers())) return;
    const { sentinel } = backupKeys(this.name);
    // Its answer may have got lost. Until it is gone, nothing that it stands for may go.
    let mayBeListed = this.#written.has(sentinel);
    try {
      if (mayBeListed) await store.delete([sentinel]);
      mayBeListed = false;
      // Newest first, the claim last: as long as anything is left, it is known whose it is.
      await store.delete([...this.#written.keys()].toReversed());
    } catch (error) {
      log.warning(`could not remove the unfinished backup "${this.name}"`, {
        detail: `${reasonOf(error)}. ${mayBeListed ? "Its sentinel may be there already: then it is listed, and complete." : "It is not listed and cannot be restored by mistake."}`,
        hint: `${mayBeListed ? 'Look with "wal-b backup-list". If it is not listed, ' : ""}"wal-b delete garbage --min-age 0s --confirm", with credentials that may delete, removes it, and every other unfinished backup: make sure that none is running.`,
      });
    }
  }

  /**
   * A backup waits for WAL for hours, if it must. In the meantime "delete garbage" may have taken it for one that failed, or a
   * lifecycle rule may have deleted what is old.
   */
  async #refuseRemoved(): Promise<void> {
    const { store } = this.#context;
    const removed = new Map(this.#written);
    for await (const { key, sizeBytes } of store.list(backupFolder(this.name)))
      if (removed.get(key) === sizeBytes) removed.delete(key);
    const [first] = removed.keys();
    if (first === undefined) return;

    this.#isDoubtful = true;
    throw new IntegrityError(`somebody removed parts of backup "${this.name}" while it was made`, {
      detail: `Of ${this.#written.size} objects, ${removed.size} are not there any more as they were uploaded, such as ${store.urlOf(first)}.`,
      hint: 'Look for a "wal-b delete garbage" that ran meanwhile, with a short --min-age or a clock that is wrong, and for a rule that deletes old objects. Then run the backup again.',
    });
  }

  /** What cannot be read is not taken for ours. */
  async #isOurs(key: ObjectKey, body: Uint8Array): Promise<boolean> {
    const there = await this.#context.store
      .forCleanup()
      .get(key, body.byteLength)
      .catch(() => undefined);
    return there !== undefined && Buffer.from(body).equals(there.body);
  }

  /**
   * Whether another backup has claimed the name since, with our claim out of its way: what is here is that one's, and it may be
   * listed already.
   */
  async #isAnothers(): Promise<boolean> {
    const { claim } = backupKeys(this.name);
    const there = await this.#context.store
      .forCleanup()
      .get(claim, MAX_CLAIM_BYTES)
      .catch(() => undefined);
    return there !== undefined && !Buffer.from(this.#claim).equals(there.body);
  }

  async #nameIsTaken(claim: ObjectKey): Promise<IntegrityError> {
    const { store } = this.#context;
    if (await isStored(store, backupKeys(this.name).sentinel)) {
      return new IntegrityError(`there is a backup "${this.name}" already`, {
        detail: "A backup is named after the WAL segment that it starts in, and this one would start there too.",
        hint: "On a standby, wait for the next restartpoint. A stopped cluster has not been started since that backup: it is the same.",
      });
    }
    return new IntegrityError(`a backup with the name "${this.name}" has been begun already`, {
      detail: `${store.urlOf(claim)} tells by whom.`,
      hint: 'If that one is not running any more, "wal-b delete garbage --min-age 0s --confirm" removes what is left of it, and of every other unfinished backup: make sure that none is running.',
    });
  }

  async #put(key: ObjectKey, body: Uint8Array): Promise<void> {
    await using upload = this.#context.store.upload(key);
    await upload.write(body);
    await this.#complete(key, body.byteLength, upload);
  }

  async #complete(key: ObjectKey, storedBytes: number, upload: ObjectUpload): Promise<void> {
    // Before its outcome is known: an object whose answer got lost is ours to take back, too.
    this.#written.set(key, storedBytes);
    if ((await upload.complete()) === "created") return;

    this.#written.delete(key);
    this.#isDoubtful = true;
    throw new IntegrityError(`${this.#context.store.urlOf(key)} exists already`, {
      detail: "Nothing in the repository is ever overwritten.",
      hint: 'Another backup may be running under this name. "wal-b delete garbage" shows what failed backups left.',
    });
  }
}

/** @throws IntegrityError  a backup of this name exists or was begun; StorageError and AccessError as the store */
export async function beginBackupUpload(
  name: string,
  claim: BackupClaim,
  context: BackupUploadContext,
): Promise<BackupUpload> {
  const upload = new BackupUpload(name, context);
  try {
    await upload.claim(claim);
    return upload;
  } catch (error) {
    await upload[Symbol.asyncDispose]();
    throw error;
  }
}

/** Adds entries to a part and counts them. */
export class PartWriter {
  readonly #tar: TarWriter;
  #contentBytes = 0;

  constructor(tar: TarWriter) {
    this.#tar = tar;
  }

  /** Bytes of files so far, without the archive's own. */
  get contentBytes(): number {
    return this.#contentBytes;
  }

  async add(
    header: TarHeader,
    content?: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
    options?: ReleaseOption,
  ): Promise<void> {
    await this.#tar.add(header, content, options);
    this.#contentBytes += header.sizeBytes;
  }
}
