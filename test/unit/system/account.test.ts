import { expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { currentAccount } from "../../../src/system/account.ts";

test("currentAccount() asks for the process's own account, whatever USER says", () => {
  const name = execFileSync("id", ["-un"], { encoding: "utf8" }).trim();
  expect(currentAccount({ USER: "somebody", LOGNAME: "else", HOME: "/home/of" })).toEqual({
    name,
    homeDirectory: "/home/of",
  });
});

test("currentAccount() knows the home directory without HOME", () => {
  const fields = execFileSync("sh", ["-c", 'grep "^$(id -un):" /etc/passwd'], { encoding: "utf8" }).split(":");
  expect(currentAccount({}).homeDirectory).toBe(fields[5] as string);
});
