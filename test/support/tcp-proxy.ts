/** A way to a server that a test can close and open again, without touching the server. */
import { createServer, connect as dial, type Server, type Socket } from "node:net";
import { ownAddress } from "./loopback.ts";
import { relay } from "./relay.ts";

export interface TcpProxy extends AsyncDisposable {
  /** Where it listens: the same as long as it lives. */
  readonly url: string;
  /** Connections are refused, and those that are open are cut. */
  close(): Promise<void>;
  open(): Promise<void>;
}

/** @param target  a URL such as http://127.0.0.1:9000 */
export async function startTcpProxy(target: string): Promise<TcpProxy> {
  const { hostname, port, protocol } = new URL(target);
  const address = ownAddress();
  const sockets = new Set<Socket>();
  let server: Server | undefined;
  let ownPort = 0;

  const open = async () => {
    const opened = createServer((from) => {
      const to = dial(Number(port), hostname);
      relay(from, to, sockets);
    });
    await new Promise<void>((resolve, reject) => {
      opened.once("error", reject);
      opened.listen(ownPort, address, resolve);
    });
    ownPort = (opened.address() as { port: number }).port;
    server = opened;
  };
  const close = async () => {
    const closing = server;
    server = undefined;
    if (!closing) return;
    const closed = new Promise((resolve) => closing.close(resolve));
    for (const socket of sockets) socket.destroy();
    await closed;
  };

  await open();
  return { url: `${protocol}//${address}:${ownPort}`, open, close, [Symbol.asyncDispose]: close };
}
