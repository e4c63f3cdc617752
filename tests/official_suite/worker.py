"""The server of the official suite's workers: the SDK's `everything-server`, which its source distribution brings."""

import json
import os
from typing import Any
from unittest import mock

from mcp.server import mcpserver
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mcp_eventscope import EventScope, http_app
from support.worker_app import OPTIONS_VARIABLE

RETRY_MILLISECONDS = 100


def ours() -> Starlette:
    """The application of this package, for `uvicorn --factory`."""
    options: dict[str, Any] = json.loads(os.environ[OPTIONS_VARIABLE])
    scope = EventScope("everything", worker_lease=options.pop("worker_lease"))

    class OnRedis(mcpserver.MCPServer[Any]):
        """The SDK's server creates its `MCPServer` without a bus, and has no option for one."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(subscriptions=scope.subscriptions, **settings)

    with mock.patch.object(mcpserver, "MCPServer", OnRedis):
        from mcp_everything_server.server import mcp  # noqa: PLC0415 - it creates the server
    return http_app(mcp, scope=scope, **options)


def sdk() -> Starlette:
    """The SDK's application, with a health check for the rig."""
    from mcp_everything_server.server import event_store, mcp  # noqa: PLC0415 - `ours` replaces its parts

    app: Starlette = mcp.streamable_http_app(event_store=event_store, retry_interval=RETRY_MILLISECONDS)
    app.router.routes.insert(0, Route("/healthz", lambda _: PlainTextResponse("ok")))
    return app
