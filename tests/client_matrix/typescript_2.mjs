// The TypeScript SDK 2.x.
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const [url, name, revision] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));

const versionNegotiation = { mode: revision === "2026-07-28" ? { pin: revision } : "legacy" };
const client = new Client({ name: "typescript_2", version: "1" }, { versionNegotiation });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const { tools } = await client.listTools();
const result = await client.callTool(
  { name: "report", arguments: { name } },
  { onprogress: ({ progress }) => print({ progress }) },
);
print({ tools: tools.map((tool) => tool.name), result: result.content[0].text });
await client.close();
