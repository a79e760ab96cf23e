/** What every ObjectStore promises (src/storage/object-store.ts), as one suite for all of them. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { IntegrityError, NotFoundError, UsageError } from "../../src/errors.ts";
import type { ObjectStore } from "../../src/storage/object-store.ts";
import { readChunks } from "../support/read-chunks.ts";

export interface StoreUnderTest {
  readonly name: string;
  readonly metadata: "kept" | "dropped";
  /** Whether an upload that goes on shows in listUnfinishedUploads() after this many bytes. */
  readonly showsUploadAfterBytes: number;
  /** An empty store; each call another one. */
  open(): Promise<ObjectStore>;
}

const MiB = 1024 * 1024;

export function objectStoreContract({ name, metadata, showsUploadAfterBytes, open }: StoreUnderTest): void {
  describe(`ObjectStore: ${name}`, () => {
    let store: ObjectStore;

    beforeEach(async () => {
      store = await open();
    });
    afterEach(async () => {
      await store[Symbol.asyncDispose]();
    });

    test(`says that metadata is ${metadata}`, () => {
      expect(store.metadata).toBe(metadata);
    });

    describe("putIfAbsent()", () => {
      test("creates an object that get() returns unchanged", async () => {
        expect(await store.putIfAbsent("wal_005/a.zst", bytes(1000))).toBe("created");
        expect((await store.get("wal_005/a.zst", 1000)).body).toEqual(bytes(1000));
      });

      test("answers exists when the key is taken, and leaves the first content alone", async () => {
        await store.putIfAbsent("a", text("first"));
        expect(await store.putIfAbsent("a", text("second"))).toBe("exists");
        expect(await read(store, "a")).toBe("first");
      });

      test("lets exactly one of many writers create a key", async () => {
        const writers = ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"];
        const outcomes = await Promise.all(writers.map((writer) => store.putIfAbsent("contested", text(writer))));
        expect(outcomes.filter((outcome) => outcome === "created")).toHaveLength(1);
        expect(await read(store, "contested")).toBe(writers[outcomes.indexOf("created")] as string);
      });

      test("keeps an empty object", async () => {
        await store.putIfAbsent("empty", new Uint8Array());
        expect((await store.get("empty", 0)).body).toHaveLength(0);
        expect((await store.head("empty")).sizeBytes).toBe(0);
        expect(await streamed(store, "empty")).toHaveLength(0);
      });
    });

    test.each(["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\0b", "a\nb", "a\\b", "a".repeat(1025)])(
      "refuses %j as a key",
      async (key) => {
        await expect(store.putIfAbsent(key, text("x"))).rejects.toThrow(UsageError);
        await expect(store.get(key, 1)).rejects.toThrow(UsageError);
        await expect(store.head(key)).rejects.toThrow(UsageError);
        expect(() => store.upload(key)).toThrow(UsageError);
      },
    );

    test("replace() creates and overwrites", async () => {
      await store.replace("a", text("first"));
      await store.replace("a", text("second"));
      expect(await read(store, "a")).toBe("second");
    });

    if (metadata === "kept") {
      test("metadata comes back as it was given, from putIfAbsent(), replace() and upload()", async () => {
        const given = { "content-sha256": "ab12", size: "16777216" };
        await store.putIfAbsent("a", text("x"), given);
        await store.replace("b", text("x"), given);
        await uploaded(store, "c", [text("x")], given);
        await uploaded(store, "d", [bytes(6 * MiB)], given);
        for (const key of ["a", "b", "c", "d"]) {
          expect((await store.get(key, 6 * MiB)).metadata).toEqual(given);
          expect((await store.open(key)).metadata).toEqual(given);
          expect((await store.head(key)).metadata).toEqual(given);
        }
      });
    } else {
      test("metadata is empty, whatever was given", async () => {
        await store.putIfAbsent("a", text("x"), { size: "1" });
        expect((await store.get("a", 1)).metadata).toEqual({});
        expect((await store.head("a")).metadata).toEqual({});
      });
    }

    test("get() refuses an object that is larger than expected", async () => {
      await store.putIfAbsent("a", bytes(11));
      await expect(store.get("a", 10)).rejects.toThrow(IntegrityError);
      expect((await store.get("a", 11)).body).toHaveLength(11);
    });

    test("get(), head() and open() of a missing key throw NotFoundError that names it", async () => {
      for (const key of ["missing", "no/such/folder/missing"]) {
        await expect(store.get(key, 1)).rejects.toThrow(NotFoundError);
        await expect(store.get(key, 1)).rejects.toThrow(store.urlOf(key));
        await expect(store.head(key)).rejects.toThrow(NotFoundError);
        await expect(streamed(store, key)).rejects.toThrow(NotFoundError);
      }
    });

    test("a folder is no object", async () => {
      await store.putIfAbsent("folder/a", text("x"));
      await expect(store.get("folder", 1)).rejects.toThrow(NotFoundError);
      await expect(store.head("folder")).rejects.toThrow(NotFoundError);
    });

    test("head() tells size and date", async () => {
      const before = Date.now() - 60_000;
      await store.putIfAbsent("a", bytes(123));
      const { key, sizeBytes, lastModified } = await store.head("a");
      expect([key, sizeBytes]).toEqual(["a", 123]);
      expect(lastModified.getTime()).toBeGreaterThan(before);
      expect(lastModified.getTime()).toBeLessThan(Date.now() + 60_000);
    });

    test("open() gives the whole object in chunks, and can be left early", async () => {
      await uploaded(store, "a", [bytes(3 * MiB)]);
      expect(Bun.hash(await streamed(store, "a"))).toBe(Bun.hash(bytes(3 * MiB)));
      for (let round = 0; round < 3; round++) {
        for await (const chunk of (await store.open("a")).chunks) {
          expect(chunk.byteLength).toBeGreaterThan(0);
          break;
        }
      }
      expect(await streamed(store, "a")).toHaveLength(3 * MiB);
    });

    describe("upload()", () => {
      test.each([
        // bytes, in pieces of
        [0, 1],
        [10, 3],
        [5 * MiB, MiB], // exactly one part of the stores under test
        [5 * MiB + 1, 5 * MiB + 1],
        [16 * MiB + 7, 700_001],
      ])("%i bytes in pieces of %i come back as one object", async (size, piece) => {
        const content = bytes(size);
        const pieces = [];
        for (let at = 0; at < size; at += piece) pieces.push(content.slice(at, at + piece));
        expect(await uploaded(store, "large", pieces)).toBe("created");
        expect((await store.head("large")).sizeBytes).toBe(size);
        expect(Bun.hash(await streamed(store, "large"))).toBe(Bun.hash(content));
      });

      test.each([10, 6 * MiB])(
        "of %i bytes answers exists when the key is taken, and keeps the first",
        async (size) => {
          await store.putIfAbsent("a", text("first"));
          expect(await uploaded(store, "a", [bytes(size)])).toBe("exists");
          expect(await read(store, "a")).toBe("first");
          expect(await Array.fromAsync(store.listUnfinishedUploads(""))).toEqual([]);
        },
      );

      test("shows nothing before complete(), and nothing is left after dispose()", async () => {
        {
          await using upload = store.upload("a");
          await upload.write(bytes(6 * MiB));
          await upload.write(bytes(6 * MiB));
          await expect(store.head("a")).rejects.toThrow(NotFoundError);
          expect(await keysOf(store, "")).toEqual([]);
          expect(await store.listLevel("")).toEqual({ objects: [], folders: [] });
        }
        await expect(store.head("a")).rejects.toThrow(NotFoundError);
        expect(await Array.fromAsync(store.listUnfinishedUploads(""))).toEqual([]);
      });

      test("takes neither bytes nor a second complete() after complete()", async () => {
        await using upload = store.upload("a");
        await upload.write(text("x"));
        await upload.complete();
        await expect(upload.write(text("y"))).rejects.toThrow("closed");
        await expect(upload.complete()).rejects.toThrow("closed");
        expect(await read(store, "a")).toBe("x");
      });

      test("several at once do not mix", async () => {
        const keys = ["p/1", "p/2", "p/3", "p/4", "p/5", "p/6"];
        await Promise.all(
          keys.map((key, index) => uploaded(store, key, [bytes(5 * MiB, index), bytes(MiB, index + 10)])),
        );
        for (const [index, key] of keys.entries()) {
          const expected = Buffer.concat([bytes(5 * MiB, index), bytes(MiB, index + 10)]);
          expect(Bun.hash(await streamed(store, key))).toBe(Bun.hash(expected));
        }
      });

      test("an unfinished one is listed below its prefix, and abortUpload() removes it", async () => {
        const upload = store.upload("base/b1/part_001");
        await upload.write(bytes(showsUploadAfterBytes));
        const found = await Array.fromAsync(store.listUnfinishedUploads("base/"));
        expect(found.map(({ key }) => key)).toEqual(["base/b1/part_001"]);
        expect(await Array.fromAsync(store.listUnfinishedUploads("other/"))).toEqual([]);
        const begun = found[0];
        if (!begun) throw new Error("not listed");
        expect(Math.abs(begun.initiated.getTime() - Date.now())).toBeLessThan(60_000);
        await store.abortUpload(begun);
        expect(await Array.fromAsync(store.listUnfinishedUploads(""))).toEqual([]);
        // Somebody else may have been faster.
        await store.abortUpload(begun);
        await upload[Symbol.asyncDispose]();
      });
    });

    describe("list()", () => {
      test("yields every key below the prefix in the order of its bytes", async () => {
        // No key is a folder of another: a directory cannot hold both.
        const inOrder = ["Z", "a-b", "a.b", "a/b", "a/c/d", "a0", "a_", "b/1", "b/10", "b/2", "é"];
        await Promise.all([...inOrder].reverse().map((key) => store.putIfAbsent(key, text(key))));
        expect(await keysOf(store, "")).toEqual(inOrder);
      });

      test("takes a prefix that ends within a name", async () => {
        for (const key of ["wal/0001.zst", "wal/0001.partial.zst", "wal/0002.zst", "wal2/0001.zst"]) {
          await store.putIfAbsent(key, text("x"));
        }
        expect(await keysOf(store, "wal/0001")).toEqual(["wal/0001.partial.zst", "wal/0001.zst"]);
        expect(await keysOf(store, "wal/")).toEqual(["wal/0001.partial.zst", "wal/0001.zst", "wal/0002.zst"]);
        expect(await keysOf(store, "wal")).toHaveLength(4);
        expect(await keysOf(store, "none/")).toEqual([]);
        expect(await keysOf(store, "wal/0001.zst/")).toEqual([]);
      });

      test("begins behind a key, which need not be there", async () => {
        for (const key of ["wal/1", "wal/2", "wal/3", "other/9"]) await store.putIfAbsent(key, text("x"));
        const behind = async (after: string) =>
          (await Array.fromAsync(store.list("wal/", after))).map(({ key }) => key);
        expect(await behind("wal/1")).toEqual(["wal/2", "wal/3"]);
        expect(await behind("wal/2.5")).toEqual(["wal/3"]);
        expect(await behind("wal/3")).toEqual([]);
      });

      test("tells sizes and dates", async () => {
        await store.putIfAbsent("a", bytes(77));
        const [entry] = await Array.fromAsync(store.list(""));
        expect(entry?.sizeBytes).toBe(77);
        expect(Math.abs((entry?.lastModified.getTime() ?? 0) - Date.now())).toBeLessThan(60_000);
      });
    });

    test("listLevel() tells objects and folders of one level", async () => {
      for (const key of ["b/x.json", "b/one/1", "b/one/2", "b/two/deep/1", "c"])
        await store.putIfAbsent(key, text("x"));
      const level = await store.listLevel("b/");
      expect(level.objects.map(({ key }) => key)).toEqual(["b/x.json"]);
      expect(level.folders).toEqual(["b/one/", "b/two/"]);
      expect((await store.listLevel("")).folders).toEqual(["b/"]);
      expect(await store.listLevel("none/")).toEqual({ objects: [], folders: [] });
    });

    describe("delete()", () => {
      test("removes what is given and nothing else; what is gone counts as deleted", async () => {
        for (const key of ["a/1", "a/2", "a/3"]) await store.putIfAbsent(key, text("x"));
        await store.delete(["a/1", "a/3", "never/was"]);
        expect(await keysOf(store, "")).toEqual(["a/2"]);
        await store.delete(["a/1"]);
        await store.delete([]);
      });

      test("makes the key free again", async () => {
        await store.putIfAbsent("a", text("first"));
        await store.delete(["a"]);
        await expect(store.get("a", 10)).rejects.toThrow(NotFoundError);
        expect(await store.putIfAbsent("a", text("second"))).toBe("created");
        expect(await read(store, "a")).toBe("second");
      });
    });

    test("more than a page: 1,105 objects are listed, and deleted in one call", async () => {
      const keys = Array.from({ length: 1105 }, (_, index) => `many/${String(index).padStart(5, "0")}`);
      for (let at = 0; at < keys.length; at += 65) {
        await Promise.all(keys.slice(at, at + 65).map((key) => store.putIfAbsent(key, text("x"))));
      }
      expect(await keysOf(store, "many/")).toEqual(keys);
      expect((await store.listLevel("many/")).objects).toHaveLength(1105);
      await store.delete(keys);
      expect(await keysOf(store, "")).toEqual([]);
    }, 60_000);

    test("names itself and its objects without a secret", () => {
      expect(store.urlOf("a/b")).toBe(`${store.location}/a/b`);
      expect(store.location).not.toContain("@");
    });
  });
}

/** Reproducible, and no two windows alike. */
function bytes(size: number, seed = 0): Uint8Array {
  const content = new Uint8Array(size);
  let state = (seed + 1) * 2654435761;
  const words = new Uint32Array(content.buffer, 0, size >>> 2);
  for (let index = 0; index < words.length; index++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    words[index] = state;
  }
  return content;
}

function text(content: string): Uint8Array {
  return new TextEncoder().encode(content);
}

async function read(store: ObjectStore, key: string): Promise<string> {
  return new TextDecoder().decode((await store.get(key, MiB)).body);
}

async function streamed(store: ObjectStore, key: string): Promise<Uint8Array> {
  return Buffer.concat(await readChunks(store, key));
}

async function uploaded(
  store: ObjectStore,
  key: string,
  pieces: readonly Uint8Array[],
  metadata?: Record<string, string>,
): Promise<"created" | "exists"> {
  await using upload = store.upload(key, metadata);
  for (const piece of pieces) await upload.write(piece);
  return await upload.complete();
}

async function keysOf(store: ObjectStore, prefix: string): Promise<string[]> {
  return (await Array.fromAsync(store.list(prefix))).map(({ key }) => key);
}
