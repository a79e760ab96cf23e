/**
 * A byte stream to the server: TCP or Unix socket, encrypted as sslmode wants it.
 *
 * The driver could negotiate TLS itself, but says "no TLS here" and "wrong certificate" in words only, and knows
 * neither "prefer" nor "allow".
 */
import { connect as connectSocket, type NetConnectOpts, type Socket } from "node:net";
import { type ConnectionOptions, checkServerIdentity, connect as connectTls } from "node:tls";
import { PostgresError } from "../errors.ts";
import type { ServerAddress } from "./libpq-settings.ts";
import type { TlsSettings } from "./tls-settings.ts";

/** The server does not do TLS; it said so, and would go on without. */
export class TlsRefusedError extends PostgresError {}

/** TCP keepalive probes begin after this long: a firewall must not forget a session that is quiet while files are copied. */
const KEEPALIVE_AFTER_MS = 30_000;

/** SSLRequest of the protocol: length 8, code 80877103. */
const SSL_REQUEST = Buffer.from([0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);

export const isSocketDirectory = (host: string) => host.startsWith("/");

export const socketPath = ({ address, port }: ServerAddress) => `${address}/.s.PGSQL.${port}`;

/**
 * @param signal  aborts with the error to throw
 * @throws Error  of node:net or node:tls, or the signal's reason
 */
export async function openPlainSocket(server: ServerAddress, signal: AbortSignal): Promise<Socket> {
  const where: NetConnectOpts = isSocketDirectory(server.address)
    ? { path: socketPath(server) }
    : {
        host: server.address,
        port: server.port,
        noDelay: true,
        keepAlive: true,
        keepAliveInitialDelay: KEEPALIVE_AFTER_MS,
      };
  const socket = connectSocket(where);
  await settled(socket, "connect", signal);
  return socket;
}

/**
 * @throws TlsRefusedError  the server does not do TLS
 * @throws Error  of node:tls: the handshake failed or the certificate is not accepted
 */
export async function openEncryptedSocket(
  server: ServerAddress,
  tls: TlsSettings,
  signal: AbortSignal,
): Promise<Socket> {
  const socket = await openPlainSocket(server, signal);
  socket.write(SSL_REQUEST);
  const answer = await settled<Buffer>(socket, "data", signal);
  socket.pause();
  // More than one byte would be bytes that somebody slipped in before the encryption began (CVE-2021-23222).
  if (answer.length !== 1 || answer[0] !== ASCII_S) {
    socket.destroy();
    if (answer.length === 1 && answer[0] === ASCII_N) throw new TlsRefusedError("the server does not support SSL");
    throw new PostgresError("the server's answer to the request for SSL was not understood");
  }

  const encrypted = connectTls({ ...verification(server, tls), socket });
  await settled(encrypted, "secureConnect", signal);
  return encrypted;
}

const ASCII_S = 0x53;
const ASCII_N = 0x4e;

function verification({ host, address }: ServerAddress, tls: TlsSettings): ConnectionOptions {
  const { verify, rootCertificates, certificate, key, passphrase } = tls;
  return {
    // RFC 6066: no server name indication for an address.
    ...(/^[\d.]+$|:/.test(host) ? { host: address } : { host, servername: host }),
    rejectUnauthorized: verify !== "none",
    checkServerIdentity: (_, peer) => (verify === "full" ? checkServerIdentity(host, peer) : undefined),
    ...(rootCertificates !== undefined && { ca: rootCertificates }),
    ...(certificate !== undefined && { cert: certificate }),
    ...(key !== undefined && { key }),
    ...(passphrase !== undefined && { passphrase }),
  };
}

/** Waits for the event; destroys the socket when it fails, ends or the signal comes first. */
function settled<Value = void>(socket: Socket, event: string, signal: AbortSignal): Promise<Value> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => {
      stopListening();
      // What else it has to say is of no interest, but must not end the process.
      socket.on("error", () => undefined).destroy();
      reject(error);
    };
    const succeed = (value: Value) => {
      stopListening();
      resolve(value);
    };
    const closed = () => fail(new PostgresError("the server closed the connection"));
    const aborted = () => fail(signal.reason);
    const stopListening = () => {
      socket.off(event, succeed).off("error", fail).off("close", closed).off("end", closed);
      signal.removeEventListener("abort", aborted);
    };

    if (signal.aborted) return fail(signal.reason);
    socket.once(event, succeed).once("error", fail).once("close", closed).once("end", closed);
    signal.addEventListener("abort", aborted, { once: true });
  });
}
