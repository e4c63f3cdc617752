"""The server of the official suite's workers: the SDK's `everything-server`, which its source distribution brings."""

import json
import os
from typing import Any

from mcp_everything_server.server import event_store, mcp
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from mcp_eventscope import http_app
from support.worker_app import OPTIONS_VARIABLE

RETRY_MILLISECONDS = 100


def ours() -> Starlette:
    """The application of this package, for `uvicorn --factory`."""
    options: dict[str, Any] = json.loads(os.environ[OPTIONS_VARIABLE])
    return http_app(mcp, **options)


def sdk() -> Starlette:
    """The SDK's application, with a health check for the rig."""
    app: Starlette = mcp.streamable_http_app(event_store=event_store, retry_interval=RETRY_MILLISECONDS)
    app.router.routes.insert(0, Route("/healthz", lambda _: PlainTextResponse("ok")))
    return app
