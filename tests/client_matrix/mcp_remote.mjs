// mcp-remote, which connects a client on standard input and output with a server on HTTP; the client is this program.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const [url, name, revision] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));
const program = fileURLToPath(new URL("node_modules/mcp-remote/dist/proxy.js", import.meta.url));

const remote = spawn(process.execPath, [program, url, "--allow-http", "--transport", "http-only"], {
  stdio: ["pipe", "pipe", "inherit"],
});
const send = (message) => remote.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`);
const waiting = new Map();
createInterface({ input: remote.stdout }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.method === "notifications/progress") print({ progress: message.params.progress });
  waiting.get(message.id)?.(message);
});
remote.on("exit", (status) => waiting.size && process.exit(status || 1));

async function request(id, method, params) {
  const answered = new Promise((resolve) => waiting.set(id, resolve));
  send({ id, method, params });
  const { result, error } = await answered;
  waiting.delete(id);
  if (error) throw new Error(error.message);
  return result;
}

await request(1, "initialize", {
  protocolVersion: revision,
  capabilities: {},
  clientInfo: { name: "mcp_remote", version: "1" },
});
send({ method: "notifications/initialized" });
const { tools } = await request(2, "tools/list", {});
const { content } = await request(3, "tools/call", { name: "report", arguments: { name }, _meta: { progressToken: 1 } });
print({ tools: tools.map((tool) => tool.name), result: content[0].text });
remote.stdin.end();
await once(remote, "exit");
