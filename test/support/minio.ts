/** MinIO, the S3 store that most people run themselves: from PATH, or built by Go once into .cache/. */
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import { shortTemporaryDirectory } from "./account.ts";
import { freePort } from "./loopback.ts";
import { runProgram } from "./run-program.ts";
import type { RunningServer } from "./s3-server.ts";
import { ServerUnavailableError, startServer, waitForHttp } from "./server-process.ts";

const CACHE = resolve(import.meta.dir, "../../.cache/minio");
/** Three minutes on two cores, more on a busy machine. */
const BUILD_MS = 20 * 60_000;

/** @throws ServerUnavailableError  it is not there and cannot be built */
export async function startMinio(): Promise<RunningServer> {
  const program = Bun.which("minio") ?? (await buildMinio());
  const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-minio-"));
  const accessKeyId = "wal-b-test";
  const secretAccessKey = crypto.randomUUID();
  const address = `127.0.0.1:${await freePort()}`;
  const console = `127.0.0.1:${await freePort()}`;
  const data = join(directory, "data");
  await mkdir(data);
  const server = startServer([program, "server", "--quiet", "--address", address, "--console-address", console, data], {
    env: {
      MINIO_ROOT_USER: accessKeyId,
      MINIO_ROOT_PASSWORD: secretAccessKey,
      MINIO_BROWSER: "off",
      MINIO_UPDATE: "off",
      HOME: directory,
    },
    logFile: join(directory, "minio.log"),
    directory,
  });
  const stop = async () => {
    await server.stop();
    await rm(directory, { recursive: true, force: true });
  };
  try {
    await waitForReady(`http://${address}/minio/health/ready`, server);
  } catch (error) {
    await stop();
    throw error;
  }
  return {
    description: { name: "minio", endpoint: `http://${address}`, region: "us-east-1", accessKeyId, secretAccessKey },
    stop,
  };
}

/** It answers 503 until it is ready. */
async function waitForReady(url: string, server: Parameters<typeof waitForHttp>[1]): Promise<void> {
  await waitForHttp(url, server);
  for (let tries = 0; tries < 300; tries++) {
    server.checkRunning();
    if ((await fetch(url)).ok) return;
    await Bun.sleep(100);
  }
  throw new Error(`${url} does not become ready`);
}

async function buildMinio(): Promise<string> {
  const program = join(CACHE, "minio");
  if (existsSync(program)) return program;
  const go = Bun.which("go") ?? (existsSync("/usr/local/go/bin/go") ? "/usr/local/go/bin/go" : undefined);
  if (!go) throw new ServerUnavailableError('MinIO: neither "minio" nor "go" is on PATH, and no Docker engine answers');
  await mkdir(CACHE, { recursive: true });
  process.stderr.write("building MinIO, once: this takes some minutes\n");
  const env = { ...process.env, GOBIN: CACHE, CGO_ENABLED: "0" };
  const built = await runProgram([go, "install", "github.com/minio/minio@latest"], { env, timeoutMs: BUILD_MS });
  if (built.exitCode !== 0)
    throw new ServerUnavailableError(`MinIO: go install ended with ${built.exitCode}: ${built.stderr.slice(-500)}`);
  return program;
}
