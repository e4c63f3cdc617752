"""`serve`: an MCP server with `http_app()` and uvicorn."""

import importlib
import os
import sys
from typing import Any

import click
import uvicorn
from starlette.applications import Starlette

from mcp_eventscope.app import http_app
from mcp_eventscope.cli.connection import options_of
from mcp_eventscope.settings import variable

SERVER_VARIABLE = "_MCP_EVENTSCOPE_SERVER"
"""Passes the server to worker processes, which import this module."""


def run(  # noqa: PLR0913 - the options of the command
    server: str,
    redis_url: str | None,
    key_prefix: str | None,
    name: str | None,
    *,
    host: str,
    port: int,
    workers: int,
    app_dir: str,
) -> None:
    """Serve until a signal."""
    options = {"redis_url": redis_url, "key_prefix": key_prefix, "name": name}
    if options_of(redis_url, key_prefix, name).redis_url is None and workers > 1:
        msg = (
            f"--workers must be 1 without a Redis, got {workers}: each worker would embed a Valkey of its own; "
            f"set {variable('redis_url')}"
        )
        raise click.UsageError(msg)
    # Workers are processes of their own, which inherit the environment.
    os.environ |= {variable(option): value for option, value in options.items() if value is not None}
    os.environ[SERVER_VARIABLE] = server
    sys.path.insert(0, app_dir)
    load_server(server)  # A mistake is an error here, not in each worker again.
    uvicorn.run(f"{__name__}:app", factory=True, host=host, port=port, workers=workers, app_dir=app_dir, ws="none")


def app() -> Starlette:
    """The application of a worker."""
    return http_app(load_server(os.environ[SERVER_VARIABLE]))


def load_server(server: str) -> Any:
    """Import the server that `module:attribute` names.

    Raises:
        UsageError: There is no such module or attribute.
    """
    module, colon, attribute = server.partition(":")
    if not (module and colon and attribute):
        msg = f"MODULE:SERVER must name a module and a server in it, such as quickstart:mcp, got {server!r}"
        raise click.UsageError(msg)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # The module exists, and imports another one that does not.
        msg = f"MODULE:SERVER must name a module that can be imported, got {module!r}; set --app-dir to its directory"
        raise click.UsageError(msg) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            msg = f"MODULE:SERVER must name a server in {module}, got {attribute!r}, which is not there"
            raise click.UsageError(msg)
        found = getattr(found, part)
    return found
