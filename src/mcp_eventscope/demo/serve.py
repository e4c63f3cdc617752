"""`mcp-eventscope demo --serve`: the server of the demo, left running."""

import asyncio

from rich.console import Console
from rich.text import Text

from mcp_eventscope.demo.stack import Stack, running
from mcp_eventscope.demo.waiting import DemoError
from mcp_eventscope.demo.worker import free_port

PORT = 8000

_TRY = """\
# Is it healthy, and what has it counted?
curl {url}/healthz
curl -s {url}/metrics | grep ^eventscope_

# Open a session, and start a call that takes a minute:
mcp() {{ curl -sN {url}/mcp -H 'Mcp-Protocol-Version: 2025-11-25' \\
  -H 'Accept: application/json, text/event-stream' \\
  -H 'Content-Type: application/json' "$@"; }}
SESSION=$(mcp -i -d '{{"jsonrpc": "2.0", "id": 0, "method": "initialize",
  "params": {{"protocolVersion": "2025-11-25", "capabilities": {{}},
  "clientInfo": {{"name": "curl", "version": "0"}}}}}}' \\
  | tr -d '\\r' | grep -i ^mcp-session-id)
mcp -H "$SESSION" -d '{{"jsonrpc": "2.0", "method": "notifications/initialized"}}'
mcp -H "$SESSION" -d '{{"jsonrpc": "2.0", "id": 1, "method": "tools/call",
  "params": {{"name": "countdown", "arguments": {{"steps": 60, "interval": 1}},
  "_meta": {{"progressToken": 1}}}}}}'

# Press Ctrl-C during the call, then resume after the last id that was printed:
mcp -H "$SESSION" -H 'Last-Event-ID: '
"""


async def serve(console: Console, port: int) -> None:
    """Serve until cancelled.

    Args:
        console: Where the addresses are printed.
        port: The port; if it is taken a free one is used.

    Raises:
        DemoError: The worker did not start, or ended.
        EmbeddedUnavailableError: There is no Valkey.
    """
    async with running([free_port(port)], show_log=True) as stack:
        _print_addresses(console, stack, port)
        ended = [asyncio.create_task(worker.wait()) for worker in stack.workers]
        try:
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ended:
                task.cancel()
    msg = "a worker ended by itself; its log is above"
    raise DemoError(msg)


def _print_addresses(console: Console, stack: Stack, wanted: int) -> None:
    worker = stack.workers[0]
    console.print()
    if wanted and worker.port != wanted:
        console.print(Text(f"  Port {wanted} is taken.", style="yellow"))
    for what, path in (("MCP endpoint", "mcp"), ("Prometheus scrape", "metrics"), ("Health", "healthz")):
        row = Text(f"  {what:<19}")
        row.append(f"{worker.url}/{path}", style="bold cyan")
        console.print(row)
    console.print(Text(f"  {'Redis':<19}{stack.redis}"), soft_wrap=True)
    console.print()
    # Neither wrapped nor indented, so that it can be copied.
    console.print(Text(_TRY.format(url=worker.url), style="dim"), soft_wrap=True)
    console.print(Text("  Press Ctrl-C to stop.", style="bold"))
