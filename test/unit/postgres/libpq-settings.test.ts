import { describe, expect, test } from "bun:test";
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { UsageError } from "../../../src/errors.ts";
import type { Environment } from "../../../src/postgres/libpq-parameters.ts";
import { libpqSettings } from "../../../src/postgres/libpq-settings.ts";

const account = { name: "postgres", homeDirectory: "/nonexistent" };
const settingsFor = (env: Environment, dataDirectory?: string) => libpqSettings({ env, account, dataDirectory });

/** "host address port" of each server. */
const serversFor = (env: Environment, dataDirectory?: string) =>
  settingsFor(env, dataDirectory).servers.map(({ host, address, port }) => `${host} ${address} ${port}`);

describe("libpqSettings()", () => {
  test("has libpq's defaults in an empty environment", () => {
    expect(settingsFor({})).toEqual({
      servers: [
        { host: "/var/run/postgresql", address: "/var/run/postgresql", port: 5432 },
        { host: "/tmp", address: "/tmp", port: 5432 },
      ],
      user: "postgres",
      database: "postgres",
      password: undefined,
      passwordFile: "/nonexistent/.pgpass",
      tls: {
        mode: "prefer",
        verify: "none",
        rootCertificates: undefined,
        certificate: undefined,
        key: undefined,
        passphrase: undefined,
      },
      connectTimeoutMs: 60_000,
      applicationName: "wal-b",
      options: undefined,
    });
  });

  test.each([
    // environment, servers
    [{ PGHOST: "db1" }, ["db1 db1 5432"]],
    [{ PGHOST: "/srv/sockets", PGPORT: "5433" }, ["/srv/sockets /srv/sockets 5433"]],
    [{ PGHOST: "db1,db2" }, ["db1 db1 5432", "db2 db2 5432"]],
    [{ PGHOST: "db1, db2", PGPORT: "1,2" }, ["db1 db1 1", "db2 db2 2"]],
    [{ PGHOST: "db1,db2", PGPORT: "7" }, ["db1 db1 7", "db2 db2 7"]],
    [{ PGHOST: "db1,db2", PGPORT: ",2" }, ["db1 db1 5432", "db2 db2 2"]],
    [{ PGHOST: "db1", PGHOSTADDR: "10.0.0.1" }, ["db1 10.0.0.1 5432"]],
    [{ PGHOSTADDR: "10.0.0.1" }, ["10.0.0.1 10.0.0.1 5432"]],
    [{ PGHOST: "" }, ["/var/run/postgresql /var/run/postgresql 5432", "/tmp /tmp 5432"]],
    [{ PGHOST: ",db2" }, ["/var/run/postgresql /var/run/postgresql 5432", "/tmp /tmp 5432", "db2 db2 5432"]],
    [{ PGPORT: "5433" }, ["/var/run/postgresql /var/run/postgresql 5433", "/tmp /tmp 5433"]],
  ] as [Environment, string[]][])("finds the servers of %o", (env, servers) => {
    expect(serversFor(env)).toEqual(servers);
  });

  test.each([
    // environment, message
    [{ PGPORT: "x" }, 'invalid port number "x"'],
    [{ PGPORT: "0" }, 'invalid port number "0"'],
    [{ PGPORT: "65536" }, 'invalid port number "65536"'],
    [{ PGHOST: "a", PGPORT: "1,2" }, "could not match 2 port numbers to 1 hosts"],
    [{ PGHOST: "a,b", PGHOSTADDR: "1.1.1.1" }, "could not match 2 host names to 1 addresses"],
    [{ PGHOST: "@abstract" }, 'PGHOST cannot be "@abstract"'],
    [{ PGSSLMODE: "on" }, 'PGSSLMODE cannot be "on"'],
    [{ PGCONNECT_TIMEOUT: "1s" }, 'PGCONNECT_TIMEOUT cannot be "1s"'],
    // What cannot be done and would protect less than was asked for.
    [{ PGREQUIREPEER: "postgres" }, 'PGREQUIREPEER cannot be "postgres"'],
    [{ PGCHANNELBINDING: "require" }, 'PGCHANNELBINDING cannot be "require"'],
    [{ PGSSLCRL: "/x" }, 'PGSSLCRL cannot be "/x"'],
    [{ PGSSLMODE: "verify-full" }, 'root certificate file "/nonexistent/.postgresql/root.crt" does not exist'],
    [
      { PGSSLROOTCERT: "system", PGSSLMODE: "require" },
      'weak sslmode "require" cannot be used with sslrootcert "system"',
    ],
    [{ PGSSLCERT: "/nonexistent/c" }, 'certificate file "/nonexistent/c" does not exist'],
  ] as [Environment, string][])("refuses %o", (env, message) => {
    expect(() => settingsFor(env)).toThrow(UsageError);
    expect(() => settingsFor(env)).toThrow(message);
  });

  test.each([
    ["0", 0],
    ["-1", 0], // libpq: wait for ever
    ["5", 5_000],
  ])("PGCONNECT_TIMEOUT=%s waits %i ms", (PGCONNECT_TIMEOUT, expected) => {
    expect(settingsFor({ PGCONNECT_TIMEOUT }).connectTimeoutMs).toBe(expected);
  });

  test("lets a service win over the environment", async () => {
    await using files = await directory({ services: "[main]\nhost=db1\nuser=alice\ndbname=app\nsslmode=disable\n" });
    const env = { PGSERVICE: "main", PGSERVICEFILE: join(files.path, "services"), PGHOST: "db2", PGPORT: "7" };
    expect(settingsFor(env)).toMatchObject({
      servers: [{ host: "db1", address: "db1", port: 7 }],
      user: "alice",
      database: "app",
      tls: { mode: "disable" },
    });
  });

  test("needs a user name from somewhere", () => {
    const nobody = { name: undefined, homeDirectory: undefined };
    expect(() => libpqSettings({ env: {}, account: nobody })).toThrow("no user name to connect with");
    expect(libpqSettings({ env: { PGUSER: "u" }, account: nobody })).toMatchObject({
      user: "u",
      passwordFile: undefined,
    });
  });
});

describe("the server of a data directory", () => {
  const pidFile = (pid: number, rest: string) => ({ "postmaster.pid": `${pid}\n/x\n0\n${rest}` });

  test.each([
    // lines of postmaster.pid, environment, servers
    ["5433\n/srv/s\nlocalhost\n", {}, ["/srv/s /srv/s 5433"]],
    ["5433\n\n*\n", {}, ["localhost localhost 5433"]],
    ["5433\n\n10.0.0.1\n", {}, ["10.0.0.1 10.0.0.1 5433"]],
    ["5433\n/srv/s\n\n", { PGHOST: "db1" }, ["db1 db1 5432"]],
    ["5433\n/srv/s\n\n", { PGHOSTADDR: "10.0.0.1" }, ["10.0.0.1 10.0.0.1 5432"]],
    ["5433\n/srv/s\n\n", { PGPORT: "7" }, ["/var/run/postgresql /var/run/postgresql 7", "/tmp /tmp 7"]],
    ["", {}, ["/var/run/postgresql /var/run/postgresql 5432", "/tmp /tmp 5432"]], // starting
  ] as [string, Environment, string[]][])("is that of %j unless %o says otherwise", async (rest, env, servers) => {
    await using files = await directory(pidFile(process.pid, rest));
    expect(serversFor(env, files.path)).toEqual(servers);
  });

  test("is not one that left its file behind", async () => {
    await using files = await directory(pidFile(2 ** 22 + 1, "5433\n/srv/s\n\n"));
    expect(serversFor({}, files.path)[0]).toBe("/var/run/postgresql /var/run/postgresql 5432");
  });
});

describe("certificates", () => {
  test.each([
    // mode, what is verified when there is a root certificate
    ["prefer", "ca"],
    ["require", "ca"],
    ["verify-ca", "ca"],
    ["verify-full", "full"],
  ])('with "%s" and a root certificate verify "%s"', async (PGSSLMODE, verify) => {
    await using files = await directory({ "root.crt": "PEM" });
    const { tls } = settingsFor({ PGSSLMODE, PGSSLROOTCERT: join(files.path, "root.crt") });
    expect(tls).toMatchObject({ verify, rootCertificates: "PEM" });
  });

  test("of the system mean verify-full", () => {
    expect(settingsFor({ PGSSLROOTCERT: "system" }).tls).toMatchObject({ mode: "verify-full", verify: "full" });
  });

  test("in a home that cannot be looked into are none, and those that were named are an error", async () => {
    await using home = await directory({});
    // Root may look everywhere, but nobody through a link that leads to itself.
    const unreachable = join(home.path, ".postgresql");
    await symlink(unreachable, unreachable);
    const lookingThere = (env: Record<string, string>) =>
      libpqSettings({ env, account: { name: "postgres", homeDirectory: home.path } }).tls;
    expect(lookingThere({})).toMatchObject({ mode: "prefer", verify: "none", certificate: undefined });
    expect(() => lookingThere({ PGSSLMODE: "verify-ca" })).toThrow("does not exist");
    for (const name of ["PGSSLROOTCERT", "PGSSLCERT"])
      expect(() => lookingThere({ [name]: join(unreachable, "crt") })).toThrow("could not look for a certificate");
  });

  test("need a key that nobody else can read", async () => {
    await using files = await directory({ crt: "PEM", key: "KEY" });
    const env = { PGSSLCERT: join(files.path, "crt"), PGSSLKEY: join(files.path, "key") };
    await Bun.$`chmod 600 ${env.PGSSLKEY}`.quiet();
    expect(settingsFor(env).tls).toMatchObject({ certificate: "PEM", key: "KEY" });
    await Bun.$`chmod 644 ${env.PGSSLKEY}`.quiet();
    expect(() => settingsFor(env)).toThrow("has group or world access");
  });
});

async function directory(files: Readonly<Record<string, string>>) {
  const path = await mkdtemp(join(tmpdir(), "walb-libpq-"));
  for (const [name, content] of Object.entries(files)) await writeFile(join(path, name), content);
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true }) };
}
