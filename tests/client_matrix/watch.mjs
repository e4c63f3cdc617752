// Preloaded into a client that shows nothing of a running call: reports the log messages that it receives.
const original = globalThis.fetch;

globalThis.fetch = async (...request) => {
  const response = await original(...request);
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
  const decoder = new TextDecoder();
  let rest = "";
  const watched = response.body.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        controller.enqueue(chunk);
        const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
        rest = lines.pop();
        for (const line of lines.filter((line) => line.includes("notifications/message"))) {
          process.stderr.write(`received ${JSON.parse(line.slice("data:".length)).params.data}\n`);
        }
      },
    }),
  );
  const { status, statusText, headers } = response;
  return new Response(watched, { status, statusText, headers });
};
