/** Connections as libpq makes them: encryption, passwords, services, and what is said when there is none. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmod, writeFile } from "node:fs/promises";
import { createServer, connect as openSocket, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { PostgresError, textOf } from "../../src/errors.ts";
import { startBackupSession } from "../../src/postgres/backup-session.ts";
import { type Connection, connectToPostgres } from "../../src/postgres/connection.ts";
import { libpqSettings } from "../../src/postgres/libpq-settings.ts";
import { type PostgresServer, startPostgres } from "../support/postgres-server.ts";
import { type Certificates, makeCertificates, restartWithTcp, type TcpServer } from "../support/tcp-server.ts";
import { recordedLog } from "../unit/postgres/recorded-log.ts";

type Env = Record<string, string>;

const PASSWORD = "se:cr\\et";

describe("over a Unix socket", () => {
  let server: PostgresServer;
  beforeAll(async () => {
    server = await startPostgres({ major: 15 });
  });
  afterAll(async () => await server[Symbol.asyncDispose]());

  test("the session has the settings that hours of copying need, whatever the role's own are", async () => {
    await server.query(`CREATE ROLE hasty LOGIN; ALTER ROLE hasty SET statement_timeout = '200ms';
                        ALTER ROLE hasty SET idle_session_timeout = '200ms'; ALTER ROLE hasty SET search_path = evil;
                        ALTER ROLE hasty SET datestyle = 'German'`);
    await using connection = await connect({ ...server.env, PGUSER: "hasty", PGOPTIONS: "-c geqo=off" });
    const settings = await connection.query<{ name: string; setting: string }>(
      `SELECT name, setting FROM pg_settings WHERE name = ANY ($1) ORDER BY name`,
      ["{search_path,statement_timeout,idle_session_timeout,client_encoding,application_name,DateStyle,geqo}"],
    );
    expect(Object.fromEntries(settings.map(({ name, setting }) => [name, setting]))).toEqual({
      application_name: "wal-b",
      client_encoding: "UTF8",
      DateStyle: "ISO, DMY",
      geqo: "off",
      idle_session_timeout: "0",
      search_path: "pg_catalog",
      statement_timeout: "0",
    });
  });

  test("values come as text, and queries at the same time take turns", async () => {
    await using connection = await connect(server.env);
    const answers = await Promise.all(
      [1, 2, 3].map((n) => connection.query("SELECT $1::bigint AS n, '0/10'::pg_lsn AS lsn, NULL AS nothing", [n])),
    );
    expect(answers).toEqual([1, 2, 3].map((n) => [{ n: String(n), lsn: "0/10", nothing: null }]) as never);
  });

  test("a failed query is the server's answer, and the session goes on", async () => {
    await using connection = await connect(server.env);
    await expect(connection.query("SELECT 1/0")).rejects.toMatchObject({
      message: "division by zero",
      sqlState: "22012",
    });
    expect(await connection.query("SELECT 1 AS one")).toEqual([{ one: "1" }]);
  });

  test("the server of a data directory is found without any variable", async () => {
    const account = { name: "postgres", homeDirectory: undefined };
    const settings = libpqSettings({ env: {}, account, dataDirectory: server.dataDirectory });
    await using connection = await connectToPostgres(settings, { ...recordedLog(), signal: NEVER });
    expect(connection.place).toBe(`socket "${server.socketDirectory}/.s.PGSQL.5432"`);
  });

  test("hosts are tried in their order until one answers", async () => {
    await using connection = await connect({ ...server.env, PGHOST: `/nonexistent,${server.socketDirectory}` });
    expect(connection.serverVersion).toBeGreaterThan(150_000);
  });

  test("aborting ends a query that runs", async () => {
    const stop = new AbortController();
    await using connection = await connect(server.env, stop.signal);
    const query = connection.query("SELECT pg_sleep(60)");
    setTimeout(() => stop.abort(new Error("asked to stop")), 50);
    await expect(query).rejects.toThrow("asked to stop");
    expect(connection.lost.aborted).toBe(true);
  });

  test("a closed connection says that it is closed", async () => {
    const connection = await connect(server.env);
    await connection[Symbol.asyncDispose]();
    await connection[Symbol.asyncDispose]();
    await expect(connection.query("SELECT 1")).rejects.toThrow("the connection to PostgreSQL is closed");
    expect(connection.lost.aborted).toBe(false);
  });

  test.each([
    // environment, detail, beginning of the hint
    [
      { PGUSER: "nobody" },
      'role "nobody" does not exist.',
      "Run wal-b as the account that owns the server, set PGUSER",
    ],
    [{ PGDATABASE: "none" }, 'database "none" does not exist.', "Set PGDATABASE to a database that exists"],
    [{ PGPORT: "5999" }, /^connect ENOENT .*\.5999\.$/, "Check that the server is running"],
    [{ PGHOST: "127.0.0.1", PGPORT: "1" }, "connect ECONNREFUSED 127.0.0.1:1.", "Check that the server is running"],
    [{ PGHOST: "x.invalid" }, "getaddrinfo ENOTFOUND x.invalid.", "Check the name in PGHOST"],
  ] as [Env, string | RegExp, string][])("with %o says what is wrong and what to do", async (env, detail, hint) => {
    const failure = await failureOf(connect({ ...server.env, ...env }));
    expect(failure.message).toStartWith("could not connect to PostgreSQL at ");
    expect(failure.detail).toMatch(detail);
    expect(failure.hint).toStartWith(hint);
  });

  test("peer authentication that fails is explained", async () => {
    await writeFile(join(server.dataDirectory, "pg_hba.conf"), "local all postgres trust\nlocal all all peer\n");
    await server.query("SELECT pg_reload_conf(); CREATE ROLE other LOGIN");
    const failure = await failureOf(connect({ ...server.env, PGUSER: "other" }));
    expect(failure.detail).toBe('Peer authentication failed for user "other".');
    expect(failure.hint).toContain('with "peer" this account must have the name of the role, "other"');
  });

  test("a pooler in between is noticed, and no backup is started through it", async () => {
    await using pooler = await relay(server, (bytes) => {
      // BackendKeyData carries the number of the server's process; a pooler has its own.
      const at = bytes.indexOf(Buffer.from([0x4b, 0, 0, 0, 12]));
      if (at >= 0) bytes.writeUInt32BE(1, at + 5);
      return bytes;
    });
    const connection = await connect({ ...server.env, PGHOST: "127.0.0.1", PGPORT: String(pooler.port) });
    expect(connection.peer).toBe("pooler");
    const { log } = recordedLog();
    const failure = await failureOf(startBackupSession({ connection, label: "x", checkpoint: "fast", log }));
    expect(failure.message).toContain("is a connection pooler, not the server itself");
  });

  test("a server that accepts and says nothing is given up after PGCONNECT_TIMEOUT", async () => {
    await using silent = await listen(() => undefined);
    const env = { PGHOST: "127.0.0.1", PGPORT: String(silent.port), PGUSER: "x", PGCONNECT_TIMEOUT: "1" };
    const started = performance.now();
    expect((await failureOf(connect(env))).detail).toBe("no answer within 1 seconds.");
    expect((await failureOf(connect({ ...env, PGSSLMODE: "disable" }))).detail).toBe("no answer within 1 seconds.");
    expect(performance.now() - started).toBeLessThan(4_000);

    const stop = new AbortController();
    setTimeout(() => stop.abort(new Error("asked to stop")), 50);
    await expect(connect(env, stop.signal)).rejects.toThrow("asked to stop");
  });

  test.each([
    ["nonsense", "the server's answer to the request for SSL was not understood"],
    ["S and more", "the server's answer to the request for SSL was not understood"], // CVE-2021-23222
  ])("a server that answers %j to the request for SSL is not believed", async (answer, detail) => {
    await using strange = await listen((socket) => socket.once("data", () => socket.write(answer)));
    const env = { PGHOST: "127.0.0.1", PGPORT: String(strange.port), PGUSER: "x", PGSSLMODE: "require" };
    expect((await failureOf(connect(env))).detail).toContain(detail);
  });

  test("a server that hangs up is an error, not a wait", async () => {
    await using rude = await listen((socket) => socket.end());
    const env = { PGHOST: "127.0.0.1", PGPORT: String(rude.port), PGUSER: "x" };
    expect((await failureOf(connect(env))).message).toStartWith("could not connect to PostgreSQL");
  });
});

describe("over TCP without SSL", () => {
  let server: PostgresServer;
  let tcp: TcpServer;
  let env: Env;
  beforeAll(async () => {
    server = await startPostgres({ major: 12 });
    await server.query(`SET password_encryption = 'scram-sha-256'; CREATE ROLE alice LOGIN PASSWORD '${PASSWORD}';
                        SET password_encryption = 'md5'; CREATE ROLE bob LOGIN PASSWORD '${PASSWORD}'`);
    tcp = await restartWithTcp(server, {
      hba: [
        "local all all trust",
        "host all alice all scram-sha-256",
        "host all bob all md5",
        "host all all all reject",
      ],
    });
    env = { PGHOST: "127.0.0.1", PGPORT: String(tcp.port), PGUSER: "alice" };
  });
  afterAll(async () => {
    await tcp[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  test.each(["alice", "bob"])("PGPASSWORD lets %s in", async (PGUSER) => {
    await using connection = await connect({ ...env, PGUSER, PGPASSWORD: PASSWORD });
    expect(await connection.query("SELECT current_user AS name")).toEqual([{ name: PGUSER }]);
  });

  test("the password file lets in, if it is its owner's alone", async () => {
    const PGPASSFILE = join(server.directory, "pgpass");
    await writeFile(PGPASSFILE, `# comment\n127.0.0.1:1:*:*:no\n127.0.0.1:${tcp.port}:postgres:alice:se\\:cr\\\\et\n`);
    await chmod(PGPASSFILE, 0o600);
    await using connection = await connect({ ...env, PGPASSFILE });
    expect(connection.user).toBe("alice");

    await chmod(PGPASSFILE, 0o644);
    expect((await failureOf(connect({ ...env, PGPASSFILE }))).hint).toBe(
      `Set PGPASSWORD or put the password into "${PGPASSFILE}".`,
    );
  });

  test("a service says where the server is, and wins over the environment", async () => {
    const PGSERVICEFILE = join(server.directory, "services");
    await writeFile(PGSERVICEFILE, `[main]\nhost=127.0.0.1\nport=${tcp.port}\nuser=alice\npassword=${PASSWORD}\n`);
    await using connection = await connect({ PGSERVICE: "main", PGSERVICEFILE, PGPORT: "1", PGUSER: "nobody" });
    expect(connection.user).toBe("alice");
  });

  test("a wrong or missing password is told apart, and no password is ever told", async () => {
    const missing = await failureOf(connect(env));
    expect(missing.detail).toBe("the server asks for a password, and none was given.");
    const wrong = await failureOf(connect({ ...env, PGPASSWORD: "not-the-password" }));
    expect(wrong.detail).toBe('password authentication failed for user "alice".');
    expect(textOf(wrong) + Bun.inspect(wrong)).not.toContain("not-the-password");
  });

  test("after a refusal the next host is not asked", async () => {
    const hosts = { PGHOST: "127.0.0.1,/nonexistent", PGPORT: `${tcp.port},1` };
    const failure = await failureOf(connect({ ...env, ...hosts, PGPASSWORD: "wrong" }));
    expect(failure.detail).not.toContain("nonexistent");
  });

  test("pg_hba.conf's refusal is passed on", async () => {
    const failure = await failureOf(connect({ ...env, PGUSER: "postgres" }));
    expect(failure.detail).toStartWith('pg_hba.conf rejects connection for host "127.0.0.1", user "postgres"');
    expect(failure.hint).toStartWith('Check which line of pg_hba.conf is for role "postgres"');
  });

  test("sslmode=require fails and says which setting is missing", async () => {
    const failure = await failureOf(connect({ ...env, PGSSLMODE: "require", PGPASSWORD: PASSWORD }));
    expect(failure.detail).toBe("the server does not support SSL.");
    expect(failure.hint).toBe('Set ssl = on in postgresql.conf, or PGSSLMODE to other than "require".');
  });
});

describe("over TCP with SSL", () => {
  let server: PostgresServer;
  let tcp: TcpServer;
  let own: Certificates;
  let client: Certificates;
  let env: Env;
  beforeAll(async () => {
    server = await startPostgres({ major: 18 });
    await server.query(
      `CREATE ROLE alice LOGIN PASSWORD '${PASSWORD}'; CREATE ROLE bob LOGIN; CREATE ROLE plain LOGIN`,
    );
    own = await makeCertificates(server, "localhost", "DNS:localhost");
    client = await makeCertificates(server, "bob", "DNS:bob");
    tcp = await restartWithTcp(server, {
      hba: ["hostssl all alice all scram-sha-256", "hostssl all bob all cert", "hostnossl all plain all trust"],
      settings: { ssl: "on", ssl_cert_file: own.certificate, ssl_key_file: own.key, ssl_ca_file: client.authority },
    });
    env = {
      PGHOST: "localhost",
      PGHOSTADDR: "127.0.0.1",
      PGPORT: String(tcp.port),
      PGUSER: "alice",
      PGPASSWORD: PASSWORD,
    };
  });
  afterAll(async () => {
    await tcp[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  test.each([
    // PGSSLMODE, user, encrypted
    ["allow", "alice", "t"], // the server insists
    ["prefer", "alice", "t"],
    ["require", "alice", "t"],
    ["disable", "plain", "f"],
    ["allow", "plain", "f"],
    ["prefer", "plain", "f"], // the server refuses it encrypted
  ])("sslmode %s as %s: encrypted is %s", async (PGSSLMODE, PGUSER, encrypted) => {
    await using connection = await connect({ ...env, PGSSLMODE, PGUSER });
    const rows = await connection.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()");
    expect(rows).toEqual([{ ssl: encrypted }]);
  });

  test.each([
    ["disable", "alice", "no encryption"],
    ["require", "plain", "SSL encryption"],
  ])("sslmode %s as %s is refused: %s", async (PGSSLMODE, PGUSER, detail) => {
    const failure = await failureOf(connect({ ...env, PGSSLMODE, PGUSER }));
    expect(failure.detail).toContain("no pg_hba.conf entry");
    expect(failure.detail).toContain(detail);
  });

  test.each([
    // PGSSLMODE, whose authority, host, fails with
    ["require", "own", "localhost", undefined],
    ["verify-ca", "own", "localhost", undefined],
    ["verify-ca", "own", "127.0.0.1", undefined],
    ["verify-full", "own", "localhost", undefined],
    ["verify-full", "own", "127.0.0.1", "does not match certificate's altnames"],
    ["verify-full", "other", "localhost", "unable to verify the first certificate"],
    ["verify-ca", "other", "localhost", "unable to verify the first certificate"],
    ["require", "other", "localhost", "unable to verify the first certificate"], // because there is a root certificate
  ])("sslmode %s with the %s authority for %s: failure is %p", async (PGSSLMODE, authority, PGHOST, problem) => {
    const PGSSLROOTCERT = authority === "own" ? own.authority : client.authority;
    const attempt = connect({ ...env, PGSSLMODE, PGSSLROOTCERT, PGHOST });
    if (problem === undefined) {
      await using connection = await attempt;
      expect(connection.user).toBe("alice");
    } else {
      const failure = await failureOf(attempt);
      expect(failure.detail).toContain(problem);
      expect(failure.hint).toContain("PGSSLROOTCERT");
    }
  });

  test("the system's authorities do not know ours", async () => {
    const failure = await failureOf(connect({ ...env, PGSSLROOTCERT: "system" }));
    expect(failure.hint).toContain("PGSSLROOTCERT");
  });

  test("a client certificate lets in, and only the right one", async () => {
    const bob = { ...env, PGUSER: "bob", PGSSLMODE: "require" };
    await using connection = await connect({ ...bob, PGSSLCERT: client.certificate, PGSSLKEY: client.key });
    expect(connection.user).toBe("bob");
    expect((await failureOf(connect(bob))).detail).toContain("connection requires a valid client certificate");
    const wrong = await failureOf(connect({ ...bob, PGSSLCERT: own.certificate, PGSSLKEY: own.key }));
    expect(wrong.hint).toContain("PGSSLCERT");
  });
});

const NEVER = new AbortController().signal;

async function connect(env: Env, signal: AbortSignal = NEVER): Promise<Connection> {
  const settings = libpqSettings({ env, account: { name: "postgres", homeDirectory: "/nonexistent" } });
  return await connectToPostgres(settings, { ...recordedLog(), signal });
}

async function failureOf(promise: Promise<unknown>): Promise<PostgresError> {
  const failure: unknown = await promise.then(
    () => "no failure",
    (error) => error,
  );
  if (failure instanceof PostgresError) return failure;
  throw new Error(`not the failure that was expected: ${failure}`);
}

interface Listener extends AsyncDisposable {
  readonly port: number;
}

async function listen(accept: (socket: Socket) => unknown): Promise<Listener> {
  const sockets = new Set<Socket>();
  const server: Server = createServer((socket) => {
    sockets.add(socket.on("error", () => undefined));
    accept(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  return {
    port: typeof address === "object" && address ? address.port : 0,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** Passes bytes on to the server, what comes back through `change`. */
async function relay(server: PostgresServer, change: (bytes: Buffer) => Buffer): Promise<Listener> {
  return await listen((socket) => {
    const upstream = openSocket(join(server.socketDirectory, ".s.PGSQL.5432"));
    socket.on("data", (bytes) => upstream.write(bytes)).on("close", () => upstream.destroy());
    upstream.on("data", (bytes) => socket.write(change(Buffer.from(bytes)))).on("close", () => socket.destroy());
    upstream.on("error", () => undefined);
  });
}
