/**
 * Places to listen that nobody else is given meanwhile. A port that the kernel chose is free again for everybody as soon as it
 * is closed, and the test files beside this one ask for some each second.
 */
import { randomInt } from "node:crypto";
import { createServer, type Server } from "node:net";

/** Above those that services have by custom, and below those that Linux chooses from where nobody changed that. */
const [LOWEST_PORT, LINUX_CHOOSES_FROM] = [10_000, 32_768];

/** An address of 127.0.0.0/8, all of which is loopback: for who closes its port and wants it again. */
export function ownAddress(): string {
  return ["127", randomInt(1, 255), randomInt(0, 256), randomInt(1, 255)].join(".");
}

/** Of 127.0.0.1, free at this moment and below those that the kernel chooses; the server that is given it should start soon. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(LOWEST_PORT, LINUX_CHOOSES_FROM);
    const listener = await listen("127.0.0.1", port).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== "EADDRINUSE") throw error;
    });
    if (listener === undefined) continue;
    await new Promise((resolve) => listener.close(resolve));
    return port;
  }
}

async function listen(address: string, port: number): Promise<Server> {
  const listener = createServer();
  await new Promise<void>((resolve, reject) => void listener.once("error", reject).listen(port, address, resolve));
  return listener;
}
