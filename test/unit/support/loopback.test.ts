/** What a test closes and opens again, or hands to a server that starts soon, is given to nobody else in between. */
import { expect, test } from "bun:test";
import { createServer } from "node:http";
import { createServer as createListener } from "node:net";
import { freePort } from "../../support/loopback.ts";
import { startTcpProxy } from "../../support/tcp-proxy.ts";

test("no port that is free is one that Linux may choose", async () => {
  for (let n = 0; n < 50; n++) expect(await freePort()).toBeLessThan(32_768);
});

test("a way to a server is opened again where another server listens on its port", async () => {
  const target = createServer((_request, response) => void response.end("here"));
  await new Promise<void>((resolve) => void target.listen(0, "127.0.0.1", resolve));
  await using proxy = await startTcpProxy(`http://127.0.0.1:${(target.address() as { readonly port: number }).port}`);
  await proxy.close();
  const other = createListener();
  await new Promise<void>((resolve) => void other.listen(Number(new URL(proxy.url).port), "127.0.0.1", resolve));
  await proxy.open();
  expect(await (await fetch(proxy.url)).text()).toBe("here");
  await new Promise((resolve) => other.close(resolve));
  target.closeAllConnections();
  await new Promise((resolve) => target.close(resolve));
});
