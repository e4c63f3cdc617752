"""`serve`: an MCP server with `http_app()` and uvicorn."""

import errno
import importlib
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import click
import uvicorn
from mcp.server.lowlevel.server import Server
from starlette.applications import Starlette

from mcp_eventscope.app import http_app
from mcp_eventscope.cli.connection import options_of
from mcp_eventscope.errors import EventscopeError
from mcp_eventscope.frameworks import fastmcp
from mcp_eventscope.frameworks.sdk import MCPServer
from mcp_eventscope.options import given
from mcp_eventscope.settings import variable

SERVER_VARIABLE = "_MCP_EVENTSCOPE_SERVER"
"""Passes the server to worker processes, which import this module."""
_PACKAGE = Path(__file__).parents[1]
"""Errors name no line of this package: the mistake is in the module of the user."""


class ServeError(EventscopeError):
    """The server could not be started; the message has the reason."""


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
    _check_server(load_server(server), server)  # A mistake is an error here, not in each worker again.
    _check_address(host, port)
    try:
        application: Any = app()  # Also before workers start, which would be replaced forever.
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from error
    if workers > 1:
        application = f"{__name__}:app"
    try:
        uvicorn.run(
            application,
            factory=workers > 1,
            host=host,
            port=port,
            workers=workers,
            app_dir=app_dir,
            ws="none",
        )
    except SystemExit as error:
        if error.code:  # uvicorn has printed the reason.
            msg = "the server did not start; the lines above have the reason"
            raise ServeError(msg) from error


def app() -> Starlette:
    """The application of a worker."""
    return http_app(load_server(os.environ[SERVER_VARIABLE]))


def load_server(server: str) -> Any:
    """Import the server that `module:attribute` names.

    Raises:
        UsageError: There is no such module or attribute.
        ServeError: The module fails when it is imported.
    """
    module, colon, attribute = server.partition(":")
    if not (module and colon and attribute):
        msg = f"MODULE:SERVER must name a module and a server in it, such as quickstart:mcp, got {server!r}"
        raise click.UsageError(msg)
    if "/" in module or module.endswith(".py") or module.startswith("."):
        path = Path(module.removesuffix(".py"))
        folder = "" if path.parent == Path() else f"--app-dir {path.parent} "
        msg = (
            f"MODULE:SERVER must name a module, not a file, got {module!r}; "
            f"write {folder}{path.name.lstrip('.')}:{attribute}"
        )
        raise click.UsageError(msg)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _failure_of(module, error) from error  # The module exists, and imports another one that does not.
        msg = f"MODULE:SERVER must name a module that can be imported, got {module!r}; set --app-dir to its directory"
        raise click.UsageError(msg) from None
    except Exception as error:
        raise _failure_of(module, error) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            servers = [name for name, value in vars(found).items() if _is_server(value)] if found is not None else []
            fix = f"write {module}:{servers[0]}" if servers else "correct the name"
            msg = f"MODULE:SERVER must name a server in {module}, got {attribute!r}, which is not there; {fix}"
            raise click.UsageError(msg)
        found = getattr(found, part)
    return found


def _failure_of(module: str, error: Exception) -> ServeError:
    """The error for a module that cannot be imported, with the last line outside of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f"{frame.filename}, line {frame.lineno}: "
        for frame in frames
        if not frame.filename.startswith("<frozen ") and frame.filename != importlib.__file__ and not _is_ours(frame)
    ]
    reason = "".join(traceback.format_exception_only(error)).strip()
    fix = (
        "; install it in this environment, or correct its name"
        if isinstance(error, ImportError)
        else ""  # The reason has one.
        if places and _is_ours(frames[-1])
        else "; correct the module"
    )
    return ServeError(f"{module!r} could not be imported: {places[-1] if places else ''}{reason}{fix}")


def _is_ours(frame: traceback.FrameSummary) -> bool:
    return Path(frame.filename).is_relative_to(_PACKAGE)


def _is_server(value: object) -> bool:
    return isinstance(value, MCPServer | Server) or fastmcp.is_server(value)


def _check_server(found: object, server: str) -> None:
    """Refuse what is no server, before workers start.

    Raises:
        UsageError: It is something else.
    """
    if _is_server(found):
        return
    fix = (
        f"run uvicorn {server}, since it is an application already"
        if isinstance(found, Starlette)
        else (
            "name the variable with the server" if not callable(found) else "call it in the module, and name its result"
        )
    )
    msg = f"MODULE:SERVER must name an MCPServer, a low-level Server or a FastMCP, got {given(found)}; {fix}"
    raise click.UsageError(msg)


def _check_address(host: str, port: int) -> None:
    """Check that the address can be listened on.

    Raises:
        UsageError: It is in use, or not one of this host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        msg = f"--host must be an address of this host, got {host} ({error.strerror}); write 0.0.0.0 for all of them"
        raise click.UsageError(msg) from None
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                msg = f"--host must be an address of this host, got {host}; write 0.0.0.0 for all of them"
            else:
                msg = f"--port must be one that is free, got {port} ({error.strerror}); choose another one"
            raise click.UsageError(msg) from None
