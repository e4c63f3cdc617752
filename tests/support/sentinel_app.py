"""The server of worker processes behind a Sentinel, whose address is in the URL; set up as the documentation shows."""

import json
import os
from urllib.parse import urlsplit

from redis.asyncio.sentinel import Sentinel
from starlette.applications import Starlette

from mcp_eventscope import EventScope
from mcp_eventscope.settings import URL_VARIABLE
from support.sentinels import MASTER
from support.worker_app import NAME, OPTIONS_VARIABLE, application, server


def app() -> Starlette:
    """The application, for `uvicorn --factory`."""
    options = json.loads(os.environ[OPTIONS_VARIABLE])
    address = urlsplit(os.environ.pop(URL_VARIABLE))
    sentinel = Sentinel([(address.hostname, address.port)], socket_timeout=1.0)  # type: ignore[no-untyped-call]
    redis = sentinel.master_for(MASTER, socket_timeout=1.0, socket_connect_timeout=1.0)
    scope = EventScope(NAME, redis=redis, worker_lease=options.pop("worker_lease"))
    return application(server(), scope=scope, **options)
