/** A database host whose way to its archive in a bucket leads through a fault proxy of its own. */
import { type FaultProxy, startFaultProxy } from "./fault-proxy.ts";
import type { NamedFault } from "./faults.ts";
import type { ProgramResult, RunOptions } from "./run-program.ts";
import { bucketListing, s3Environment } from "./s3-archive.ts";
import type { S3Server } from "./s3-server.ts";
import { Site } from "./site.ts";

export interface Archive {
  readonly server: S3Server;
  readonly bucket: string;
  readonly prefix: string;
  /** Beside what an archive there needs. */
  readonly env?: Readonly<Record<string, string>>;
}

/** A fault that one request meets ("once"), or all from there on ("always"). */
export interface Attack {
  readonly fault: NamedFault;
  readonly howOften: "once" | "always";
  /** The request that meets it first, counted from 1, and as the proxy names it. */
  readonly at: number;
  readonly request: string;
}

/** What can be got over has all the time that it needs; what stays is soon given up. */
const deadlineOf = ({ fault, howOften }: Attack) =>
  howOften === "once" || fault.consequence === "none" ? "30s" : "400ms";

/** Short only where a fault is silence: a busy server is slow too. A drip takes longer in all. */
const idleTimeoutOf = ({ name }: NamedFault) => (/silence|drip/.test(name) ? "700ms" : "20s");

export interface Patience {
  readonly deadline?: string;
  readonly idleTimeout?: string;
}

export class AttackedSite implements AsyncDisposable {
  readonly site: Site;
  readonly proxy: FaultProxy;
  readonly archive: Archive;

  private constructor(site: Site, proxy: FaultProxy, archive: Archive) {
    this.site = site;
    this.proxy = proxy;
    this.archive = archive;
  }

  static async create(archive: Archive): Promise<AttackedSite> {
    const site = await Site.create();
    return new AttackedSite(site, await startFaultProxy(archive.server.endpoint), archive);
  }

  env({ deadline = "30s", idleTimeout = "20s" }: Patience = {}): Readonly<Record<string, string | undefined>> {
    const { server, bucket, prefix, env = {} } = this.archive;
    return {
      ...env,
      ...s3Environment(server, bucket, prefix),
      AWS_ENDPOINT_URL: this.proxy.url,
      WALB_RETRY_DEADLINE: deadline,
      WALB_RECOVERY_RETRY_DEADLINE: deadline,
      WALB_STANDBY_RETRY_DEADLINE: deadline,
      WALB_IDLE_TIMEOUT: idleTimeout,
    };
  }

  async walb(args: readonly string[], options: Patience & Pick<RunOptions, "signalled"> = {}): Promise<ProgramResult> {
    return await this.site.walb(args, { env: this.env(options), signalled: options.signalled });
  }

  /** @throws Error  no request has met the fault: the attack did not happen */
  async attacked(args: readonly string[], attack: Attack): Promise<ProgramResult> {
    const { fault, howOften, at } = attack;
    await this.proxy.arm(fault.fault, { from: at, ...(howOften === "once" && { times: 1 }) });
    const result = await this.walb(args, { deadline: deadlineOf(attack), idleTimeout: idleTimeoutOf(fault) });
    if (this.proxy.answered === 0) throw new Error(`there was no request ${at}: ${this.proxy.requests.join(", ")}`);
    await this.proxy.arm();
    return result;
  }

  /** Key → ETag of everything below the prefix. */
  async archived(): Promise<Readonly<Record<string, string>>> {
    const { server, bucket, prefix } = this.archive;
    const found = await bucketListing(server, bucket, `${prefix}/`);
    return Object.fromEntries(Object.entries(found).map(([key, etag]) => [key.slice(prefix.length + 1), etag]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.proxy[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
  }
}

/** @throws Error  naming every attack that did not end as it must */
export async function underAttack(attacks: readonly Attack[], run: (attack: Attack) => Promise<void>): Promise<void> {
  const results = await Promise.allSettled(attacks.map(run));
  const failures = results.flatMap((result, index) => {
    const { howOften, at, request } = attacks[index] as Attack;
    return result.status === "rejected" ? [`${howOften}, at request ${at} (${request}): ${result.reason}`] : [];
  });
  if (failures.length > 0) throw new Error(`${failures.length} of ${attacks.length}:\n\n${failures.join("\n\n")}`);
}
