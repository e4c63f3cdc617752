// The command line of the Inspector, which prints results alone: `watch.mjs` reports the log messages.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";

const [url, name] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));
const program = fileURLToPath(
  new URL("node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js", import.meta.url),
);
const env = { ...process.env, NODE_OPTIONS: `--import=${new URL("watch.mjs", import.meta.url)}` };

async function called(method, ...options) {
  const command = [program, "--cli", url, "--transport", "http", "--method", method, ...options];
  const inspector = spawn(process.execPath, command, { env, stdio: ["ignore", "pipe", "pipe"] });
  createInterface({ input: inspector.stderr }).on("line", (line) => {
    const received = /^received (\d+)$/.exec(line);
    if (received) print({ progress: Number(received[1]) });
    else console.error(line);
  });
  const output = text(inspector.stdout);
  const [status] = await once(inspector, "close");
  if (status) process.exit(status);
  return JSON.parse(await output);
}

const { tools } = await called("tools/list");
const { content } = await called("tools/call", "--tool-name", "report", "--tool-arg", `name=${name}`);
print({ tools: tools.map((tool) => tool.name), result: content[0].text });
