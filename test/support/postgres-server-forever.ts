/** Starts a server, tells where, and waits to be killed; for the test of the watchdog. */
import { startPostgres } from "./postgres-server.ts";

const server = await startPostgres();
console.log(JSON.stringify({ pid: server.pid, directory: server.directory }));
setInterval(() => undefined, 1_000);
