/** Two sockets that are one way: bytes go on in both directions, and the end of one is the end of both. */
import type { Socket } from "node:net";

/** @param open  has both as long as they live */
export function relay(from: Socket, to: Socket, open: Set<Socket>): void {
  for (const [socket, other] of [
    [from, to],
    [to, from],
  ] as const) {
    open.add(socket);
    socket.on("error", () => other.destroy());
    socket.on("close", () => {
      open.delete(socket);
      other.destroy();
    });
    socket.pipe(other);
  }
}
