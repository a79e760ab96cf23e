/**
 * wal-push and wal-fetch with each fault at each of their requests to a real S3 server, once and for good. Whatever it is, the
 * archive has nothing but what belongs there, nothing is marked that is not archived, nothing unverified is put in place,
 * absence is told only where the store proved it, and the next run succeeds.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type Archive, type Attack, AttackedSite, underAttack } from "../support/attacked-site.ts";
import { FAULTS, type NamedFault } from "../support/faults.ts";
import { everyS3Server } from "../support/s3-server.ts";

const [A, B, D] = [1, 2, 4].map((n) => `00000001000000000000000${n}`) as [string, string, string];
const ABSENT = "000000010000000000000005";
const DESTINATION = "pg_wal/RECOVERYXLOG";
/** Of the store it is known that it does not overwrite. */
const KNOWN = { WALB_S3_CONDITIONAL_WRITES: "require" };
const PUSH = ["wal-push", `pg_wal/${A}`];

/** The fault at each of these requests, from one of them on. */
function attacksBy(fault: NamedFault, requests: readonly string[], from = 1): readonly Attack[] {
  const ways = ["once", "always"] as const;
  const all = requests.flatMap((request, index) =>
    ways.map((howOften) => ({ fault, howOften, at: index + 1, request })),
  );
  return all.filter(({ at }) => at >= from);
}

const GIVEN_UP = { "asks again": [69], access: [77], usage: [64], damage: [65], none: [0] } as const;

/** What a command may end with when it cannot do without the answer. */
function exitCodes({ fault: { consequence, strikes }, howOften, request }: Attack): readonly number[] {
  const isOnce = howOften === "once";
  if (isOnce && consequence === "asks again") return [0];
  // An answer to PUT has no body; of a list or an error it may be one part that nobody needs, or the answer is asked for again.
  if (strikes === "body") return consequence === "none" ? [0] : [0, 65, 69];
  // HEAD has no words of S3's, so GET is asked.
  return isOnce && request.startsWith("HEAD ") ? [0, ...GIVEN_UP[consequence]] : GIVEN_UP[consequence];
}

const ERROR = /^wal-b: ERROR: (could not (read|write|list) "s3:\/\/[^\n]+|archived "\w+" is damaged)$/m;

const { servers, stop } = await everyS3Server();
afterAll(stop);

const named = (faults: readonly NamedFault[]) => faults.map((fault) => [fault.name, fault] as const);

/** What a client cannot tell from another one, or does the same for: left out where a flow is long. */
const LIKE_ANOTHER =
  /^(503|429|409|301|307|a 404 page|200 with|a clock|a connection that is reset|silence in the middle)/;

const PLACES = servers.map((server, index) => ({
  name: server.name,
  server,
  // A request that a server never sees is the same for each of them.
  faults: named(FAULTS.filter(({ strikes }) => index === 0 || strikes !== "request")),
  someFaults: named(index === 0 ? FAULTS.filter(({ name }) => !LIKE_ANOTHER.test(name)) : []),
}));

describe.each(PLACES)("on $name", ({ server, faults, someFaults }) => {
  let bucket = "";
  let number = 0;
  const newArchive = (env = {}): Archive => ({ server, bucket, prefix: `archive-${++number}`, env });
  beforeAll(async () => {
    bucket = await server.createBucket();
  });

  // What is asked for the first time only is seen with one segment, what is asked for each segment with another one that waits.
  describe.each([
    ["one segment, by a host that archives there for the first time", [A], {}, 1, someFaults],
    ["one segment while another one waits", [A, B], KNOWN, 2, faults],
  ] as const)("wal-push of %s", (_what, names, env, from, chosen) => {
    const scene = async () => {
      const made = await AttackedSite.create(newArchive(env));
      for (const [fill, name] of names.entries()) await made.site.waiting(name, { fill });
      return made;
    };
    const done = names.map((name) => (name === A ? `${name}.ready` : `${name}.done`));
    let requests: readonly string[];
    let complete: Readonly<Record<string, string>>;

    beforeAll(async () => {
      await using calm = await scene();
      expect(await calm.walb(PUSH)).toMatchObject({ exitCode: 0 });
      requests = calm.proxy.requests;
      complete = await calm.archived();
      expect(Object.keys(complete)).toEqual(names.map((name) => `wal_005/${name}.zst`));
      expect(await calm.site.marks()).toEqual(done);
    });

    test.each(chosen)("%s", async (_, fault) => {
      await underAttack(attacksBy(fault, requests, from), async (attack) => {
        await using attacked = await scene();
        const { site } = attacked;
        const { exitCode, stderr } = await attacked.attacked(PUSH, attack);
        // B is archived ahead of its turn: what befalls it is told, and is no failure of A's.
        const isAhead = attack.request.endsWith(`${B}.zst`);
        // Where silence is not waited for, a busy server may be too slow for A.
        const ofA = fault.name.includes("silence") && attack.howOften === "always" ? [0, 69] : [0];
        expect(isAhead ? ofA : exitCodes(attack), stderr).toContain(exitCode as number);
        if (exitCode !== 0) expect(stderr).toMatch(ERROR);

        const archived = await attacked.archived();
        expect(complete).toMatchObject(archived);
        if (exitCode === 0) expect(archived).toHaveProperty([`wal_005/${A}.zst`]);
        const marks = await site.marks();
        for (const name of names.slice(1)) {
          if (marks.includes(`${name}.done`)) expect(archived).toHaveProperty([`wal_005/${name}.zst`]);
          else if (isAhead && exitCode === 0)
            expect(stderr).toContain(`wal-b: WARNING: could not archive "${name}" ahead of its turn\n`);
          else expect(exitCode).not.toBe(0);
        }
        expect(marks).toHaveLength(names.length);

        expect(await attacked.walb(PUSH)).toMatchObject({ exitCode: 0 });
        expect(await attacked.archived()).toEqual(complete);
        expect(await site.marks()).toEqual(done);
      });
    });
  });

  describe.each([
    ["the same content", 7, 0],
    ["other content", 8, 65],
  ] as const)("wal-push of what is archived already, with %s", (_, fill, without) => {
    let archive: Archive;
    let requests: readonly string[];
    let before: Readonly<Record<string, string>>;

    beforeAll(async () => {
      archive = newArchive(KNOWN);
      await using first = await AttackedSite.create(archive);
      await first.site.segment(A);
      expect(await first.walb(PUSH)).toMatchObject({ exitCode: 0 });
      before = await first.archived();
      await using calm = await AttackedSite.create(archive);
      await calm.site.segment(A, { fill });
      expect(await calm.walb(PUSH)).toHaveProperty("exitCode", without);
      requests = calm.proxy.requests;
    });

    test.each(someFaults)("%s", async (_name, fault) => {
      // Whose archive it is was asked for first: as for a segment that is new.
      await underAttack(attacksBy(fault, requests, requests.length - 1), async (attack) => {
        await using attacked = await AttackedSite.create(archive);
        await attacked.site.segment(A, { fill });
        const { exitCode, stderr } = await attacked.attacked(PUSH, attack);
        const expected = exitCodes(attack).map((code) => code || without);
        expect(expected, stderr).toContain(exitCode as number);
        expect(await attacked.archived()).toEqual(before);
        expect(await attacked.walb(PUSH)).toHaveProperty("exitCode", without);
      });
    });
  });

  describe("wal-fetch", () => {
    let archive: Archive;
    let content: Uint8Array;
    let requests: Readonly<Record<string, readonly string[]>>;
    const scene = async () => {
      const made = await AttackedSite.create(archive);
      await made.site.control();
      await made.site.write("recovery.signal");
      return made;
    };
    const inRecovery = (code: number): number => (code === 0 ? 0 : 200);

    beforeAll(async () => {
      archive = newArchive(KNOWN);
      await using made = await AttackedSite.create(archive);
      content = await made.site.segment(A);
      await made.site.segment(D);
      for (const name of [A, D])
        expect(await made.walb(["wal-push", "-p", "1", `pg_wal/${name}`])).toMatchObject({ exitCode: 0 });
      await using calm = await scene();
      expect(await calm.walb(["wal-fetch", A, DESTINATION])).toMatchObject({ exitCode: 0 });
      const there = calm.proxy.requests;
      await calm.proxy.arm();
      expect(await calm.walb(["wal-fetch", ABSENT, DESTINATION])).toMatchObject({ exitCode: 74 });
      requests = { there, absent: calm.proxy.requests };
    });

    test.each(faults)("%s: a segment is put in place whole, or not at all", async (_, fault) => {
      const args = ["wal-fetch", A, DESTINATION];
      await underAttack(attacksBy(fault, requests["there"] ?? []), async (attack) => {
        await using attacked = await scene();
        const { site } = attacked;
        const before = await site.listing();
        const { exitCode, stderr } = await attacked.attacked(args, attack);
        expect(exitCodes(attack).map(inRecovery), stderr).toContain(exitCode as number);
        const fetched = () => Bun.file(join(site.data, DESTINATION)).bytes();
        if (exitCode === 0) {
          expect(Buffer.compare(await fetched(), content)).toBe(0);
        } else {
          expect(stderr).toMatch(ERROR);
          expect(await site.listing()).toEqual(before);
        }
        expect(await attacked.walb(args)).toMatchObject({ exitCode: 0 });
        expect(Buffer.compare(await fetched(), content)).toBe(0);
      });
    });

    test.each(faults)("%s: a segment is told to be absent only when the store said so", async (_, fault) => {
      const args = ["wal-fetch", ABSENT, DESTINATION];
      await underAttack(attacksBy(fault, requests["absent"] ?? []), async (attack) => {
        await using attacked = await scene();
        const before = await attacked.site.listing();
        const { exitCode, stderr } = await attacked.attacked(args, attack);
        const codes = exitCodes(attack).map((code): number => (code === 0 ? 74 : 200));
        expect(codes, stderr).toContain(exitCode as number);
        expect(await attacked.site.listing()).toEqual(before);
        expect(await attacked.walb(args)).toMatchObject({ exitCode: 74 });
      });
    });
  });
});
