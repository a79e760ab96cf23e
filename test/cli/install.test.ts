/** install.sh as users run it: piped into a shell, with curl or wget, as root and as an ordinary user. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { giveTo, ordinaryAccount, type RunAs, shortTemporaryDirectory } from "../support/account.ts";
import { ReleaseServer } from "../support/release-server.ts";
import { type ProgramResult, runProgram } from "../support/run-program.ts";
import { ensureProgram } from "../support/system-packages.ts";
import { waitFor } from "../support/wait-for.ts";
import { walbBinary } from "../support/walb.ts";

const SCRIPT = join(import.meta.dir, "../../install.sh");
const RELEASED = ["wal-b-linux-x64", "wal-b-linux-x64-musl", "wal-b-linux-arm64", "wal-b-linux-arm64-musl"];
const USERS: { who: string; account: RunAs }[] =
  process.getuid?.() === 0
    ? [
        { who: "root", account: undefined },
        { who: "an ordinary user", account: ordinaryAccount() },
      ]
    : [{ who: "an ordinary user", account: undefined }];
const CURL = `curl -fsS "$URL/install.sh" | sh -s -- "$@"`;
const WGET = `wget -q -O - "$URL/install.sh" | sh -s -- "$@"`;

/** A program that passes for wal-b, so that not every test moves 100 MB. */
const program = (version: string) => `#!/bin/sh\necho "wal-b ${version}"\n`;
const sha256 = (body: string | Uint8Array) => createHash("sha256").update(body).digest("hex");

let pathWithoutCurl: string;
beforeAll(async () => {
  for (const tool of ["curl", "wget"]) await ensureProgram(tool);
  pathWithoutCurl = await mkdtemp(join(shortTemporaryDirectory(), "walb-path-"));
  await chmod(pathWithoutCurl, 0o755);
  for (const directory of ["/usr/bin", "/bin"]) {
    for (const name of await readdir(directory)) {
      if (name !== "curl") await symlink(join(directory, name), join(pathWithoutCurl, name)).catch(() => undefined);
    }
  }
}, 600_000);
afterAll(async () => await rm(pathWithoutCurl, { recursive: true, force: true }));

/** A user's machine: a home, an empty temporary directory, and a place to install to. */
class Machine implements AsyncDisposable {
  readonly directory: string;
  readonly prefix: string;
  readonly temporary: string;
  readonly account: RunAs;
  readonly server: ReleaseServer;

  private constructor(directory: string, account: RunAs, server: ReleaseServer) {
    this.directory = directory;
    this.account = account;
    this.server = server;
    this.prefix = join(directory, "pre fix");
    this.temporary = join(directory, "tmp");
  }

  static async start(account: RunAs): Promise<Machine> {
    const directory = await mkdtemp(join(shortTemporaryDirectory(), "walb-install-"));
    await giveTo(account, directory);
    const machine = new Machine(directory, account, await ReleaseServer.start());
    await mkdir(machine.temporary);
    await giveTo(account, machine.temporary);
    machine.server.files.set("/install.sh", { body: await readFile(SCRIPT) });
    machine.release(program("1.0.0"));
    return machine;
  }

  release(body: string | Uint8Array): void {
    const sums = RELEASED.map((name) => `${sha256(body)}  ${name}\n`).join("");
    this.server.files.set("/SHA256SUMS", { body: sums });
    for (const name of RELEASED) this.server.files.set(`/${name}`, { body });
  }

  async install(args: readonly string[] = [], { command = CURL, path = "/usr/bin:/bin" } = {}): Promise<ProgramResult> {
    return await runProgram(["sh", "-c", command, "sh", ...args], {
      as: this.account,
      cwd: this.directory,
      env: {
        PATH: path,
        HOME: this.directory,
        TMPDIR: this.temporary,
        URL: this.server.url,
        WALB_INSTALL_URL: this.server.url,
      },
    });
  }

  /** Installs to a path with a space in it. */
  async installHere(args: readonly string[] = [], options = {}): Promise<ProgramResult> {
    return await this.install(["--prefix", this.prefix, ...args], options);
  }

  bin(name: string): string {
    return join(this.prefix, "bin", name);
  }

  /** Every path on the machine, with what links point to and files contain. */
  async state(directory = this.directory): Promise<Record<string, string>> {
    const found: Record<string, string> = {};
    for (const name of await readdir(directory)) {
      const path = join(directory, name);
      const kind = await lstat(path);
      if (kind.isSymbolicLink()) found[path] = `-> ${await readlink(path)}`;
      else if (kind.isFile()) found[path] = sha256(await readFile(path));
      else Object.assign(found, { [path]: "directory" }, await this.state(path));
    }
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server[Symbol.asyncDispose]();
    await rm(this.directory, { recursive: true, force: true });
  }
}

for (const { who, account } of USERS) {
  describe(`install.sh as ${who}`, () => {
    for (const { tool, command } of [
      { tool: "curl", command: CURL },
      { tool: "wget", command: WGET },
    ]) {
      test(`installs with ${tool} and leaves nothing in the temporary directory`, async () => {
        await using machine = await Machine.start(account);
        const path = tool === "wget" ? pathWithoutCurl : "/usr/bin:/bin";

        const { exitCode, stdout, stderr } = await machine.installHere([], { command, path });

        expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
        expect(stdout).toContain(`installed ${machine.bin("wal-b")}: wal-b 1.0.0\n`);
        expect(stdout).toContain(`${machine.prefix}/bin is not on your PATH`);
        expect((await lstat(machine.bin("wal-b"))).mode & 0o7777).toBe(0o755);
        expect((await lstat(machine.prefix)).mode & 0o7777).toBe(0o755);
        expect(await readdir(machine.temporary)).toEqual([]);
        expect(await readdir(join(machine.prefix, "bin"))).toEqual(["wal-b"]);
      });
    }

    const FAILURES: { when: string; says: string; args?: string[]; arrange(machine: Machine): void | Promise<void> }[] =
      [
        {
          when: "the checksum is wrong",
          says: "the checksum of",
          arrange: ({ server }) => {
            for (const name of RELEASED) server.files.set(`/${name}`, { body: program("6.6.6") });
          },
        },
        {
          when: "the download is cut off",
          says: "could not download",
          arrange: ({ server }) => {
            const body = program("1.0.0").padEnd(100_000, "#");
            for (const name of RELEASED) server.files.set(`/${name}`, { body, cutOffAfterBytes: 20_000 });
          },
        },
        {
          when: "SHA256SUMS does not list the file",
          says: "does not list",
          arrange: ({ server }) => void server.files.set("/SHA256SUMS", { body: `${sha256("")}  wal-b-plan9-x64\n` }),
        },
        {
          when: "SHA256SUMS has no checksum for the file",
          says: "no valid checksum",
          arrange: ({ server }) =>
            void server.files.set("/SHA256SUMS", { body: RELEASED.map((name) => `<html>  ${name}\n`).join("") }),
        },
        {
          when: "SHA256SUMS is not there",
          says: "could not download",
          arrange: ({ server }) => void server.files.delete("/SHA256SUMS"),
        },
        {
          when: "the program is not there",
          says: "could not download",
          arrange: ({ server }) => {
            for (const name of RELEASED) server.files.delete(`/${name}`);
          },
        },
        {
          when: "the program does not start",
          says: "does not start on this machine",
          arrange: (machine) => machine.release("#!/bin/sh\necho broken >&2\nexit 127\n"),
        },
        {
          when: "another version is found than was asked for",
          says: "asked for version 2.0.0",
          args: ["--version", "2.0.0"],
          arrange: () => undefined,
        },
        {
          when: "a wal-e is there that is not ours",
          says: "exists and is not wal-b",
          args: ["--as-wal-e"],
          arrange: async (machine) => {
            await mkdir(join(machine.prefix, "bin"), { recursive: true });
            for (const path of [machine.prefix, join(machine.prefix, "bin")]) await giveTo(machine.account, path);
            await writeFile(machine.bin("wal-e"), "#!/usr/bin/python\n");
          },
        },
        { when: "an option is unknown", says: 'no option "--sudo"', args: ["--sudo"], arrange: () => undefined },
        { when: "a value is missing", says: "--version needs a value", args: ["--version"], arrange: () => undefined },
      ];
    for (const { when, says, args = [], arrange } of FAILURES) {
      for (const { tool, command } of [
        { tool: "curl", command: CURL },
        { tool: "wget", command: WGET },
      ]) {
        test(`changes nothing when ${when} (${tool})`, async () => {
          await using machine = await Machine.start(account);
          await arrange(machine);
          const before = await machine.state();

          const path = tool === "wget" ? pathWithoutCurl : "/usr/bin:/bin";
          const { exitCode, stderr } = await machine.installHere(args, { command, path });

          expect(stderr).toContain(says);
          expect(exitCode).toBe(1);
          expect(await machine.state()).toEqual(before);
        });
      }
    }

    test("keeps the installed version when an update fails", async () => {
      await using machine = await Machine.start(account);
      await machine.installHere();
      machine.release("#!/bin/sh\nexit 1\n");
      const before = await machine.state();

      expect((await machine.installHere()).exitCode).toBe(1);

      expect(await machine.state()).toEqual(before);
      expect(await readFile(machine.bin("wal-b"), "utf8")).toBe(program("1.0.0"));
    });

    test("replaces an installed version by another file in one step", async () => {
      await using machine = await Machine.start(account);
      await machine.installHere();
      const before = await lstat(machine.bin("wal-b"));
      machine.release(program("2.0.0"));

      expect((await machine.installHere(["--version=v2.0.0"])).exitCode).toBe(0);

      expect(await readFile(machine.bin("wal-b"), "utf8")).toBe(program("2.0.0"));
      // A new inode: a wal-b that runs at that moment keeps its own.
      expect((await lstat(machine.bin("wal-b"))).ino).not.toBe(before.ino);
      expect(await readdir(join(machine.prefix, "bin"))).toEqual(["wal-b"]);
    });

    test("--as-wal-e installs wal-e too, --uninstall removes both and nothing else", async () => {
      await using machine = await Machine.start(account);
      expect((await machine.installHere(["--as-wal-e"])).exitCode).toBe(0);
      expect((await machine.installHere(["--as-wal-e"])).exitCode).toBe(0);
      expect(await readlink(machine.bin("wal-e"))).toBe("wal-b");
      expect((await runProgram([machine.bin("wal-e")])).stdout).toBe("wal-b 1.0.0\n");
      await writeFile(machine.bin("other"), "");

      const { exitCode, stdout } = await machine.installHere(["--uninstall"]);

      expect({ exitCode, stdout }).toEqual({
        exitCode: 0,
        stdout: `removed ${machine.bin("wal-b")}\nremoved ${machine.bin("wal-e")}\n`,
      });
      expect(await readdir(join(machine.prefix, "bin"))).toEqual(["other"]);
      expect((await machine.installHere(["--uninstall"])).stderr).toContain("there is no wal-b");
    });

    test("--force replaces a foreign wal-e; --uninstall leaves a foreign one", async () => {
      await using machine = await Machine.start(account);
      await machine.installHere();
      await writeFile(machine.bin("wal-e"), "#!/usr/bin/python\n");
      await machine.installHere(["--uninstall"]);
      expect(await readdir(join(machine.prefix, "bin"))).toEqual(["wal-e"]);

      expect((await machine.installHere(["--as-wal-e", "--force"])).exitCode).toBe(0);

      expect(await readlink(machine.bin("wal-e"))).toBe("wal-b");
    });

    test("a wal-b that does not answer as wal-b is replaced with --force only", async () => {
      await using machine = await Machine.start(account);
      await machine.installHere();
      await writeFile(machine.bin("wal-b"), "#!/bin/sh\necho something else\n");
      const before = await machine.state();
      const { exitCode, stderr } = await machine.installHere();
      expect({ exitCode, stderr }).toMatchObject({
        exitCode: 1,
        stderr: expect.stringContaining("--force replaces it"),
      });
      expect(await machine.state()).toEqual(before);
      expect(await machine.installHere(["--force"])).toMatchObject({ exitCode: 0 });
    });

    test("--uninstall leaves a wal-b that does not answer as wal-b", async () => {
      await using machine = await Machine.start(account);
      await machine.installHere();
      await writeFile(machine.bin("wal-b"), "#!/bin/sh\necho something else\n");

      const { exitCode, stderr } = await machine.installHere(["--uninstall"]);

      expect({ exitCode, stderr }).toMatchObject({ exitCode: 1, stderr: expect.stringContaining("so it stays") });
      expect(existsSync(machine.bin("wal-b"))).toBe(true);
    });

    test("does nothing when the script itself is cut off anywhere", async () => {
      await using machine = await Machine.start(account);
      const script = await readFile(SCRIPT);
      const before = await machine.state();
      const lastLine = script.lastIndexOf("\n{ main") + 1;
      expect(lastLine).toBeGreaterThan(0);
      // Every place in the line that starts it all, and a sample of the rest.
      const places = [...Array(20).keys()].map((at) => Math.floor((script.length * at) / 20));
      for (let at = lastLine; at < script.lastIndexOf("}"); at++) places.push(at);

      for (const place of places) {
        machine.server.files.set("/install.sh", { body: script.subarray(0, place) });
        await machine.install();
        expect({ place, state: await machine.state() }).toEqual({ place, state: before });
      }
      expect(machine.server.requests.filter((path) => path !== "/install.sh")).toEqual([]);
    });

    test("leaves nothing behind when it is ended by a signal in the middle of the download", async () => {
      await using machine = await Machine.start(account);
      for (const name of RELEASED) machine.server.files.set(`/${name}`, { body: "", hangs: true });
      const before = await machine.state();
      const command = `sh "$SCRIPT" "$@" & echo $! > tmp/pid; wait $!; status=$?; rm tmp/pid; exit $status`;
      await writeFile(join(machine.directory, "install.sh"), await readFile(SCRIPT));
      const run = machine.installHere([], { command: command.replace("$SCRIPT", "./install.sh") });
      await waitFor(() => machine.server.requests.some((path) => path.includes("wal-b")), { intervalMs: 10 });

      process.kill(Number(await readFile(join(machine.temporary, "pid"), "utf8")), "SIGTERM");

      expect((await run).exitCode).toBe(143);
      await rm(join(machine.directory, "install.sh"));
      expect(await machine.state()).toEqual(before);
    });

    test("prints its options and does nothing else when asked to", async () => {
      await using machine = await Machine.start(account);
      const before = await machine.state();
      const { exitCode, stdout } = await machine.install(["--help"]);
      expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: expect.stringContaining("--as-wal-e") });
      expect(await machine.state()).toEqual(before);
    });
  });
}

test("install.sh installs to ~/.local for an ordinary user who gives no prefix", async () => {
  await using machine = await Machine.start(ordinaryAccount());
  expect((await machine.install()).exitCode).toBe(0);
  expect(existsSync(join(machine.directory, ".local/bin/wal-b"))).toBe(true);
});

test("install.sh installs the real binary, which starts", async () => {
  await using machine = await Machine.start(undefined);
  machine.release(await readFile(await walbBinary()));
  const { exitCode, stdout, stderr } = await machine.installHere();
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: "" });
  const { version } = (await Bun.file(join(import.meta.dir, "../../package.json")).json()) as { version: string };
  expect(stdout).toContain(version);
  expect((await runProgram([machine.bin("wal-b"), "--version"])).exitCode).toBe(0);
}, 60_000);
