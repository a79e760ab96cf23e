/** How large parts are, how many are in memory, and what becomes of an upload that fails. */
import { describe, expect, test } from "bun:test";
import {
  type MultipartRequests,
  MultipartUpload,
  PartSlots,
  partSizeOf,
} from "../../../src/storage/multipart-upload.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

describe("partSizeOf()", () => {
  test.each([5 * MiB, 8 * MiB, 16 * MiB, 512 * MiB])(
    "lets 10,000 parts hold 5 TiB, each of at most 5 GiB: from %i",
    (initial) => {
      let total = 0;
      for (let part = 1; part <= 10_000; part++) {
        const size = partSizeOf(part, initial);
        expect(size).toBeLessThanOrEqual(5 * GiB);
        total += size;
      }
      expect(total).toBeGreaterThanOrEqual(5 * 1024 * GiB);
    },
  );

  test.each([
    // part, size
    [1, 16 * MiB],
    [900, 16 * MiB],
    [901, 32 * MiB],
    [1801, 64 * MiB],
  ])("of part %i is %i bytes", (part, expected) => {
    expect(partSizeOf(part, 16 * MiB)).toBe(expected);
  });
});

/** A store that notes what is asked of it; sending a part ends when the test says so. */
function setUp({ slots = 2, failAtPart = 0 } = {}) {
  const events: string[] = [];
  const content = new Map<number, Uint8Array>();
  const waiting: (() => void)[] = [];
  let sending = 0;
  let mostSending = 0;
  let isHeld = false;
  const requests: MultipartRequests<number> = {
    putWhole: async (body) => {
      events.push(`put ${body.byteLength}`);
      return "created";
    },
    begin: async () => {
      events.push("begin");
      return "u1";
    },
    sendPart: async (_uploadId, partNumber, body, signal) => {
      mostSending = Math.max(mostSending, ++sending);
      try {
        if (isHeld) await new Promise<void>((resolve) => waiting.push(resolve));
        else await Bun.sleep(1);
        if (partNumber === failAtPart) throw new Error(`part ${partNumber} refused`);
        signal.throwIfAborted();
        content.set(partNumber, body.slice());
        return partNumber;
      } finally {
        sending--;
      }
    },
    complete: async (_uploadId, parts) => {
      events.push(`complete ${parts.join(" ")}`);
      return "created";
    },
    abort: async () => {
      events.push(`abort while ${sending} are sent`);
    },
  };
  const stopping = new AbortController();
  const options = { partSizeBytes: 64 * KiB, slots: new PartSlots(slots), signal: stopping.signal };
  return {
    events,
    content,
    stopping,
    open: () => new MultipartUpload(requests, options),
    mostSending: () => mostSending,
    hold: () => {
      isHeld = true;
    },
    release: () => {
      isHeld = false;
      for (const resume of waiting.splice(0)) resume();
    },
  };
}

const filled = (size: number, value: number) => new Uint8Array(size).fill(value);

test("what fits into one part is one request", async () => {
  const it = setUp();
  await using upload = it.open();
  await upload.write(filled(10, 1));
  expect(await upload.complete()).toBe("created");
  expect(it.events).toEqual(["put 10"]);
});

test("parts are completed in order, with the content they were given, although buffers are used again", async () => {
  const it = setUp();
  await using upload = it.open();
  for (let part = 1; part <= 20; part++) await upload.write(filled(64 * KiB, part));
  await upload.write(filled(10, 21));
  await upload.complete();
  const order = Array.from({ length: 21 }, (_, index) => index + 1);
  expect(it.events).toEqual(["begin", `complete ${order.join(" ")}`]);
  for (const part of order) {
    expect(it.content.get(part)?.every((byte) => byte === part)).toBe(true);
    expect(it.content.get(part)).toHaveLength(part === 21 ? 10 : 64 * KiB);
  }
});

test("no more parts are sent at once than there are slots, over all uploads of a store", async () => {
  const it = setUp({ slots: 3 });
  const one = async () => {
    await using upload = it.open();
    for (let part = 0; part < 10; part++) await upload.write(filled(64 * KiB, part));
    await upload.complete();
  };
  await Promise.all([one(), one(), one(), one()]);
  expect(it.mostSending()).toBe(3);
});

test("write() waits when every slot is taken", async () => {
  const it = setUp({ slots: 1 });
  it.hold();
  await using upload = it.open();
  await upload.write(filled(64 * KiB, 1));
  let isDone = false;
  const second = upload.write(filled(64 * KiB, 2)).then(() => {
    isDone = true;
  });
  await Bun.sleep(20);
  expect(isDone).toBe(false);
  it.release();
  await second;
  await upload.complete();
});

test("a part that fails fails the upload, which is aborted only when nothing is sent any more", async () => {
  const it = setUp({ failAtPart: 2 });
  const attempt = async () => {
    await using upload = it.open();
    for (let part = 1; part <= 10; part++) await upload.write(filled(64 * KiB, part));
    await upload.complete();
  };
  await expect(attempt()).rejects.toThrow("part 2 refused");
  expect(it.events).toEqual(["begin", "abort while 0 are sent"]);
});

test("an upload that is left without complete() is aborted", async () => {
  const it = setUp();
  {
    await using upload = it.open();
    await upload.write(filled(64 * KiB, 1));
  }
  expect(it.events).toEqual(["begin", "abort while 0 are sent"]);
});

test("a stop ends the upload with its reason and aborts it", async () => {
  const it = setUp();
  const attempt = async () => {
    await using upload = it.open();
    await upload.write(filled(64 * KiB, 1));
    it.stopping.abort(new Error("stopped"));
    await upload.complete();
  };
  await expect(attempt()).rejects.toThrow("stopped");
  expect(it.events).toEqual(["begin", "abort while 0 are sent"]);
});
