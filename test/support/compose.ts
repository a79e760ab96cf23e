/** MinIO by Docker Compose (test/compose.yaml), where a Docker engine answers; a client alone is not enough. */
import { resolve } from "node:path";
import { runProgram } from "./run-program.ts";
import type { RunningServer } from "./s3-server.ts";

const FILE = resolve(import.meta.dir, "../compose.yaml");

/** @returns undefined where there is no engine, or no Compose */
export async function startComposeMinio(): Promise<RunningServer | undefined> {
  const docker = Bun.which("docker");
  if (!docker) return undefined;
  const isThere = async (...args: string[]) => {
    const { exitCode } = await runProgram([docker, ...args], { timeoutMs: 5000 }).catch(() => ({ exitCode: 1 }));
    return exitCode === 0;
  };
  if (!(await isThere("info")) || !(await isThere("compose", "version"))) return undefined;

  const project = `wal-b-test-${process.pid}`;
  const compose = async (...args: string[]) => {
    const command = [docker, "compose", "--project-name", project, "--file", FILE, ...args];
    const { exitCode, stdout, stderr } = await runProgram(command, { timeoutMs: 300_000 });
    if (exitCode !== 0) throw new Error(`docker compose ${args[0]} ended with ${exitCode}: ${stderr.slice(-1000)}`);
    return stdout.trim();
  };
  const stop = async () => void (await compose("down", "--volumes", "--timeout", "1"));
  try {
    await compose("up", "--detach", "--wait", "minio");
    const address = await compose("port", "minio", "9000");
    return {
      description: {
        name: "minio",
        endpoint: `http://${address}`,
        region: "us-east-1",
        // As in compose.yaml.
        accessKeyId: "wal-b-test",
        secretAccessKey: "wal-b-test-secret",
      },
      stop,
    };
  } catch (error) {
    await stop().catch(() => {});
    throw error;
  }
}
