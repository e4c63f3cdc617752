"""Prints the log events of a store, each as text and as JSON.

    pip install 'mcp-eventscope[embedded]' opentelemetry-sdk
    python examples/logs.py

An application usually configures structlog once, with one renderer, and passes no logger.
"""

import asyncio
import sys
from typing import TextIO

import structlog
from mcp.types import JSONRPCNotification
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from structlog.typing import EventDict, WrappedLogger

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.embedded import EmbeddedValkey
from mcp_eventscope.redis.client import connect
from mcp_eventscope.store.messages import EventMessage

NOTE = JSONRPCNotification(jsonrpc="2.0", method="notifications/message")


def logger_of_both(to: TextIO) -> structlog.typing.FilteringBoundLogger:
    """Make a structlog logger that renders each event twice."""
    pretty = structlog.dev.ConsoleRenderer(colors=to.isatty(), pad_event_to=32)
    as_json = structlog.processors.JSONRenderer()

    def both(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return f"{pretty(logger, method, dict(event))}\n{as_json(logger, method, dict(event))!s}\n"

    logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(to),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"), both],
        wrapper_class=structlog.make_filtering_bound_logger(0),
    )
    return logger


async def main(to: TextIO = sys.stdout) -> None:
    """Cause the log events."""
    tracer_provider = TracerProvider()
    valkey = EmbeddedValkey()
    client = connect(valkey.url)
    async with valkey.running():
        # Without a TTL: logged once.
        store = InstrumentedEventStore(
            RedisEventStore(client),
            registry=CollectorRegistry(),
            tracer_provider=tracer_provider,
            logger=logger_of_both(to),
        )
        session = store.for_session("a session")
        session.begin("1", 1)
        await session.append("1", NOTE)

        async def send(_: EventMessage) -> None:
            """Send an event to a client, which accepts it."""

        # A client repeatedly resumes from an unknown event: logged once in ten seconds, with its trace.
        with tracer_provider.get_tracer("example").start_as_current_span("GET /mcp"):
            for _ in range(3):
                await session.replay("1", send, stream_id="1")
    # Redis is unreachable: logged once. The process ends and loses its pending events: logged, too.
    await session.append("1", NOTE)
    await store.flush(0.1)
    await client.aclose()


if __name__ == "__main__":
    asyncio.run(main())
