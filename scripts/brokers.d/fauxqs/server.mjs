// The program of fauxqs listens on every interface; this one on this machine only, unless a container says otherwise.
import { buildApp } from "fauxqs";

const app = buildApp({ logger: false });
await app.listen({ port: Number(process.argv[2]), host: process.env.FAUXQS_HOST ?? "127.0.0.1" });
process.on("SIGTERM", async () => {
  await app.close();
  process.exit(0);
});
