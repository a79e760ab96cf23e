/** A test server's cluster run once more, with TCP on 127.0.0.1 and optionally TLS: for what a Unix socket cannot show. */
import { spawn } from "node:child_process";
import { chmod, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo } from "./account.ts";
import { freePort } from "./loopback.ts";
import type { PostgresServer } from "./postgres-server.ts";
import { runProgram } from "./run-program.ts";
import { waitFor } from "./wait-for.ts";

export interface TcpServer extends AsyncDisposable {
  readonly port: number;
}

export interface TcpOptions {
  readonly hba: readonly string[];
  readonly settings?: Readonly<Record<string, string>>;
}

/** Stops the server and starts it on a free port; disposing ends it, and the cluster may be started again. */
export async function restartWithTcp(server: PostgresServer, { hba, settings = {} }: TcpOptions): Promise<TcpServer> {
  await server.stop();
  await writeFile(join(server.dataDirectory, "pg_hba.conf"), `${hba.join("\n")}\n`);
  const port = await freePort();
  const all = {
    listen_addresses: "127.0.0.1",
    port: String(port),
    unix_socket_directories: server.socketDirectory,
    ...settings,
  };
  const child = spawn(
    server.bin("postgres"),
    ["-D", server.dataDirectory, ...Object.entries(all).flatMap(([name, value]) => ["-c", `${name}=${value}`])],
    {
      cwd: server.directory,
      stdio: ["ignore", "ignore", "pipe"],
      ...(server.account && { uid: server.account.uid, gid: server.account.gid }),
    },
  );
  let log = "";
  child.stderr.setEncoding("utf8").on("data", (text) => {
    log += text;
  });
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const stop = async () => {
    child.kill("SIGQUIT");
    await ended;
  };
  try {
    await waitFor(() => {
      if (child.exitCode !== null) throw new Error(`the server ended:\n${log}`);
      return log.includes("ready to accept connections");
    });
  } catch (error) {
    await stop();
    throw error;
  }
  return { port, [Symbol.asyncDispose]: stop };
}

export interface Certificates {
  readonly authority: string;
  readonly certificate: string;
  readonly key: string;
}

/** A certificate authority of our own and a certificate from it, valid for a day. */
export async function makeCertificates(
  server: PostgresServer,
  name: string,
  subjectAltName: string,
): Promise<Certificates> {
  const directory = await server.makeDirectory(`certificates-${name}`);
  const path = (file: string) => join(directory, file);
  const openssl = async (...args: string[]) => {
    const { exitCode, stderr } = await runProgram(["openssl", ...args], { cwd: directory });
    if (exitCode !== 0) throw new Error(`openssl ${args.join(" ")}: ${stderr}`);
  };
  const newKey = ["-newkey", "rsa:2048", "-nodes"];
  await openssl(
    "req",
    "-x509",
    ...newKey,
    "-keyout",
    "ca.key",
    "-out",
    "ca.crt",
    "-days",
    "1",
    "-subj",
    `/CN=authority of ${name}`,
  );
  await openssl("req", ...newKey, "-keyout", "own.key", "-out", "own.csr", "-subj", `/CN=${name}`);
  await writeFile(path("extensions"), `subjectAltName=${subjectAltName}\n`);
  const signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "extensions"];
  await openssl("x509", "-req", "-in", "own.csr", ...signed, "-out", "own.crt");
  await chmod(path("own.key"), 0o600);
  for (const file of ["own.key", "own.crt", "ca.crt"]) await giveTo(server.account, path(file));
  return { authority: path("ca.crt"), certificate: path("own.crt"), key: path("own.key") };
}
