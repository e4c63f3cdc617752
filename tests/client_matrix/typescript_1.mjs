// The TypeScript SDK 1.x.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, name] = process.argv.slice(2);
const print = (line) => console.log(JSON.stringify(line));

const client = new Client({ name: "typescript_1", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
const { tools } = await client.listTools();
const result = await client.callTool({ name: "report", arguments: { name } }, undefined, {
  onprogress: ({ progress }) => print({ progress }),
});
print({ tools: tools.map((tool) => tool.name), result: result.content[0].text });
await client.close();
