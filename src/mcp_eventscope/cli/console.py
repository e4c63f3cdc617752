"""`console`: serves the console's page on this host, without an application."""

import socket

import click
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from mcp_eventscope.cli.connection import opened, settings_of
from mcp_eventscope.cli.output import Exit, print_json, print_lines
from mcp_eventscope.console.app import PATH, Console, redirect
from mcp_eventscope.settings import check

HOST = "127.0.0.1"
STOP_SECONDS = 2
"""Seconds that requests may take to end when the command is interrupted."""


async def run(  # noqa: PLR0913 - the options of the command
    redis_url: str | None,
    key_prefix: str | None,
    *,
    port: int,
    token: str | None,
    payloads: bool,
    as_json: bool,
) -> Exit:
    """Serve until a signal."""
    settings = settings_of(redis_url, key_prefix)
    token = token or settings.console_token
    if token is not None:
        try:
            check("console_token", token, "--token")
        except (TypeError, ValueError) as error:
            raise click.UsageError(str(error)) from None
    with _listener(port) as listener:
        async with opened(settings) as target:
            console = Console(
                target.inspector,
                address=target.address,
                max_session_bytes=settings.max_session_bytes,
                token=token,
                payloads=payloads,
            )
            app = Starlette(routes=[Route("/", redirect), Route(PATH, redirect), Mount(PATH, console.app)])
            url = f"http://{HOST}:{listener.getsockname()[1]}{PATH}/"
            if as_json:
                print_json("console", url=url)
            else:
                print_lines([f"{url} shows {settings.key_prefix} on {target.address}; Ctrl+C ends it"])
            # The peers are those of the connections: no proxy is trusted.
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=STOP_SECONDS,
            )
            async with console.running():
                await uvicorn.Server(config).serve([listener])
    return Exit.OK


def _listener(port: int) -> socket.socket:
    """A socket that listens on the port.

    Raises:
        UsageError: The port is in use, or may not be opened.
    """
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()  # Before the address is printed: connections wait for the server.
    except OSError as error:
        listener.close()
        msg = f"--port must be one that is free, got {port} ({error.strerror}); choose another one, or 0 for any"
        raise click.UsageError(msg) from None
    return listener
