/**
 * Ceph's RADOS gateway from Debian's packages: one monitor, one manager, one storage daemon in memory, one gateway, all of
 * them children of this process, on 127.0.0.1 and in a temporary directory. Up in about ten seconds.
 */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { shortTemporaryDirectory } from "./account.ts";
import { freePort } from "./loopback.ts";
import { runProgram } from "./run-program.ts";
import type { RunningServer } from "./s3-server.ts";
import { type ServerProcess, ServerUnavailableError, startServer, waitForHttp } from "./server-process.ts";
import { canInstallPackages, installPackages } from "./system-packages.ts";

const PROGRAMS = ["ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "ceph-authtool"];
const PACKAGES = ["radosgw", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-common"];

/** @throws ServerUnavailableError  the packages are not there and cannot be installed */
export async function startCephRgw(): Promise<RunningServer> {
  await ensurePackages();
  try {
    return await startCluster();
  } catch (error) {
    // A busy machine, or a port that somebody else took meanwhile.
    process.stderr.write(`starting Ceph once more: ${error instanceof Error ? error.message : error}\n`);
    return await startCluster();
  }
}

async function startCluster(): Promise<RunningServer> {
  const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-ceph-"));
  const running: ServerProcess[] = [];
  const stop = async () => {
    // Nothing of it outlives the test, so nothing needs to be put in order.
    await Promise.all(running.map((server) => server.stop(200)));
    await rm(directory, { recursive: true, force: true });
  };
  try {
    return { description: await startAll(directory, running), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

export interface CephUser {
  readonly name: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

/**
 * @param role  "administrator" may read and delete what other users wrote, as the owner of a bucket may on AWS; in Ceph an
 *              object belongs to who wrote it
 */
export async function createCephUser(conf: string, role: "administrator" | "user" = "user"): Promise<CephUser> {
  const name = `u${crypto.randomUUID().slice(0, 8)}`;
  const user = { name, accessKeyId: `key-of-${name}`, secretAccessKey: crypto.randomUUID() };
  await run(conf, [
    ...["radosgw-admin", "user", "create", "-n", "client.rgw", "--uid", name, "--display-name", name],
    ...["--access-key", user.accessKeyId, "--secret-key", user.secretAccessKey],
    ...(role === "administrator" ? ["--admin"] : []),
  ]);
  return user;
}

async function startAll(directory: string, running: ServerProcess[]): Promise<RunningServer["description"]> {
  const conf = join(directory, "ceph.conf");
  const fsid = crypto.randomUUID();
  const monitorPort = await freePort();
  const port = await freePort();
  for (const name of ["mon", "osd", "mgr", "rgw", "run", "log"]) await mkdir(join(directory, name));
  await writeFile(conf, configuration({ directory, fsid, monitorPort, port }));

  const daemon = (...command: string[]) => {
    const server = startServer([...command, "-c", conf, "-f"], {
      env: { CEPH_CONF: conf },
      logFile: join(directory, `log/${command[0]}.out`),
      directory,
    });
    running.push(server);
    return server;
  };

  const keyring = join(directory, "keyring");
  await run(conf, ["ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"]);
  for (const name of ["client.admin", "client.rgw", "osd.0", "mgr.x"]) {
    const capabilities = ["mon", "osd", "mgr"].flatMap((kind) => ["--cap", kind, "allow *"]);
    await run(conf, ["ceph-authtool", keyring, "--gen-key", "-n", name, ...capabilities]);
  }
  await run(conf, ["ceph-mon", "--mkfs", "-i", "a", "--keyring", keyring, "--fsid", fsid]);
  daemon("ceph-mon", "-i", "a");
  daemon("ceph-mgr", "-i", "x");

  const osd = crypto.randomUUID();
  const map = join(directory, "monmap");
  await runSoon(conf, ["ceph", "mon", "getmap", "-o", map]);
  await runSoon(conf, ["ceph", "osd", "create", osd]);
  await run(conf, ["ceph-osd", "-i", "0", "--mkfs", "--monmap", map, "--osd-uuid", osd]);
  // Without the map a client does not know the cluster's id before the monitor's first message, and a command that is
  // faster is refused with "wrong fsid": one start in five (16.2.15, measured).
  daemon("ceph-osd", "-i", "0", "--monmap", map);
  const gateway = daemon("radosgw", "-n", "client.rgw", "--monmap", map);

  const endpoint = `http://127.0.0.1:${port}`;
  // A gateway without a storage daemon waits for it; one that has ended should be the error that is shown.
  const everyone = { ...gateway, checkRunning: () => checkAll(running) };
  await waitForHttp(endpoint, everyone, 60_000);
  const { accessKeyId, secretAccessKey } = await createCephUser(conf, "administrator");
  return { name: "ceph-rgw", endpoint, region: "us-east-1", accessKeyId, secretAccessKey, cephConf: conf };
}

/** Every answer of the cluster is waited for, but not for ever. */
async function run(conf: string, command: readonly string[]): Promise<string> {
  const env = { ...process.env, CEPH_CONF: conf };
  const { exitCode, stdout, stderr } = await runProgram([...command], { env, timeoutMs: 60_000 });
  if (exitCode !== 0)
    throw new Error(`Ceph: ${command.slice(0, 3).join(" ")} ended with ${exitCode}: ${stderr.slice(-500)}`);
  return stdout;
}

function checkAll(running: readonly ServerProcess[]): void {
  for (const server of running) server.checkRunning();
}

/** Until the monitor has elected itself it refuses. */
async function runSoon(conf: string, command: readonly string[]): Promise<void> {
  for (let tries = 1; ; tries++) {
    try {
      await run(conf, command);
      return;
    } catch (error) {
      if (tries === 10) throw error;
      await Bun.sleep(500);
    }
  }
}

async function ensurePackages(): Promise<void> {
  const missing = PROGRAMS.filter((program) => !Bun.which(program));
  if (missing.length === 0) return;
  if (!canInstallPackages()) {
    throw new ServerUnavailableError(`Ceph: ${missing.join(", ")} not found; install ${PACKAGES.join(" ")}`);
  }
  await installPackages(PACKAGES).catch((cause: unknown) => {
    throw new ServerUnavailableError(`Ceph: ${cause}`);
  });
}

interface Cluster {
  readonly directory: string;
  readonly fsid: string;
  readonly monitorPort: number;
  readonly port: number;
}

function configuration({ directory, fsid, monitorPort, port }: Cluster): string {
  return `[global]
fsid = ${fsid}
mon host = [v1:127.0.0.1:${monitorPort}/0]
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
osd objectstore = memstore
memstore device bytes = 4294967296
ms bind msgr2 = false
setuser match path =
run dir = ${directory}/run
log file = ${directory}/log/$name.log
admin socket = ${directory}/run/$name.asok
pid file = ${directory}/run/$name.pid
mon data = ${directory}/mon
osd data = ${directory}/osd
mgr data = ${directory}/mgr
keyring = ${directory}/keyring
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:${port} tcp_nodelay=1
rgw data = ${directory}/rgw
rgw dynamic resharding = false
rgw enable usage log = false
`;
}
