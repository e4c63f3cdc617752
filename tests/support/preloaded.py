"""A server that is made once and then forked into workers, as with `gunicorn --preload`.

Run as a program: it forks a worker for each port that it is given, and ends, with them, when its standard input does.
"""

import os
import signal
import sys

import uvicorn
from mcp.server import MCPServer

from mcp_eventscope import http_app
from support.servers import HOST


def main() -> None:
    """Make the server, fork, and wait."""
    mcp: MCPServer[object] = MCPServer("preloaded", log_level="WARNING")

    @mcp.tool()
    def echo(text: str) -> str:
        """Return the text."""
        return text

    app = http_app(mcp, redis_url=sys.argv[1])
    workers = []
    for port in map(int, sys.argv[2:]):
        worker = os.fork()
        if not worker:
            uvicorn.run(app, host=HOST, port=port, log_level="warning", ws="none", timeout_graceful_shutdown=1)
            os._exit(0)
        workers.append(worker)
    sys.stdin.read()
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    for worker in workers:
        os.waitpid(worker, 0)


if __name__ == "__main__":
    main()
