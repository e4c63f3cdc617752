"""The types that users of the public API see. Type checkers read this file; nothing imports or runs it.

mypy checks it with the rest of the project, basedpyright by `make check` and by `nox -s typing`. A line that must not
type-check carries an ignore comment for each checker, and both report an ignore comment without an error.
"""

import logging
from contextlib import AbstractAsyncContextManager
from typing import assert_type

from mcp.client import Client
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateSecurity
from mcp.server.streamable_http import EventId, EventMessage, EventStore, StreamId
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, SubscriptionBus
from mcp.types import JSONRPCMessage
from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis, RedisCluster
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp
from structlog.stdlib import BoundLogger
from structlog.typing import FilteringBoundLogger

import mcp_eventscope
from mcp_eventscope import (
    EndSubscriptionsOnStop,
    InMemoryTaskStore,
    InstrumentedEventStore,
    InstrumentedRequestState,
    InstrumentedSubscriptionBus,
    InstrumentedTaskStore,
    RedisEventStore,
    RedisRequestState,
    RedisSubscriptionBus,
    RedisTaskStore,
    ResumableSessionManager,
    TasksClient,
    TasksExtension,
    TaskStore,
    http_app,
    metrics_app,
)


def app_of_a_server(server: MCPServer[None], low_level: Server[None], store: EventStore) -> None:
    """`http_app` takes either kind of server, and returns a Starlette application."""
    assert_type(http_app(server), Starlette)
    assert_type(http_app(low_level, store), Starlette)
    assert_type(http_app(server, redis_url="redis://localhost", ttl=None), Starlette)
    http_app(
        server,
        registry=CollectorRegistry(),
        tracer_provider=get_tracer_provider(),
        meter_provider=get_meter_provider(),
        metrics_port=9464,
        metrics_host="127.0.0.1",
        metrics_token="token",
    )


def app_takes_the_options_of_the_sdk(server: MCPServer[None]) -> None:
    """The keywords of `streamable_http_app()` are checked by name and type."""
    http_app(server, json_response=False, max_sessions=None, session_idle_timeout=1800.0)
    http_app(server, json_response="no")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    http_app(server, jsonresponse=True)  # type: ignore[call-arg] # pyright: ignore[reportCallIssue]


def app_refuses_other_types(server: MCPServer[None]) -> None:
    """Types that would fail at start fail in the checker."""
    http_app(object())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    http_app(server, ttl="3600")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    http_app(server, Redis())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


async def store_on_redis(client: Redis, cluster: RedisCluster) -> None:
    """A store is made from either kind of asyncio client."""
    store = RedisEventStore(client, key_prefix="shop:", ttl=3600)
    RedisEventStore(cluster)
    assert_type(store, RedisEventStore)
    assert_type(store.ttl, int | None)
    assert_type(store.key_prefix, str)
    assert_type(store.address, str)
    assert_type(await store.flush(2.0), int)
    RedisEventStore(client, 3600)  # type: ignore[call-arg, arg-type] # pyright: ignore[reportCallIssue]


async def store_of_the_sdk(client: Redis) -> None:
    """Both stores are event stores of the SDK, and keep its signatures."""
    stores: list[EventStore] = [RedisEventStore(client), InstrumentedEventStore(RedisEventStore(client))]
    for store in stores:
        assert_type(await store.store_event("7", None), EventId)

    async def send(message: EventMessage) -> None:
        del message

    ours = RedisEventStore(client)
    assert_type(await ours.replay_events_after("1", send), StreamId | None)


class OwnStore(EventStore):
    """A third-party store, which knows nothing of this library."""

    async def store_event(self, stream_id: StreamId, message: JSONRPCMessage | None) -> EventId:
        """Store nothing."""
        del message
        return f"1-{stream_id}"

    async def replay_events_after(self, last_event_id: EventId, send_callback: object) -> StreamId | None:
        """Replay nothing."""
        del send_callback
        return last_event_id


def decorated_store(bound: BoundLogger, filtering: FilteringBoundLogger, plain: logging.Logger) -> None:
    """Any event store can be instrumented, with any logger that takes fields as keywords."""
    assert_type(InstrumentedEventStore(OwnStore()), InstrumentedEventStore)
    InstrumentedEventStore(OwnStore(), name="orders", registry=None, logger=bound)
    InstrumentedEventStore(OwnStore(), logger=filtering)
    InstrumentedEventStore(OwnStore(), logger=plain)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    InstrumentedEventStore(OwnStore)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def session_manager(app: Server[None], store: EventStore) -> None:
    """The session manager is one of the SDK's, and its `run()` is a context manager."""
    manager: StreamableHTTPSessionManager = ResumableSessionManager(app, store)
    running: AbstractAsyncContextManager[None] = manager.run()
    del running


def request_state(client: Redis, mcp: MCPServer[None], policy: RequestStateSecurity) -> None:
    """A request state takes the backend of a store. The decorator takes it, or a policy of the SDK."""
    state = RedisRequestState(RedisEventStore(client).backend, keys=["secret", b"secret"], ttl=60, audience="orders")
    running: AbstractAsyncContextManager[None] = InstrumentedRequestState(state, registry=None).running()
    InstrumentedRequestState(policy).install(mcp)
    RedisRequestState(client)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    InstrumentedRequestState("orders")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    del running


def metrics() -> None:
    """`metrics_app()` is an ASGI application, which `Route` takes as it is."""
    application: ASGIApp = metrics_app(CollectorRegistry(), token="token")
    Route("/metrics", application)
    metrics_app("token")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def errors(error: mcp_eventscope.StoreUnavailableError | mcp_eventscope.StoreRejectedError) -> None:
    """One base class catches every error of the store, another one every error of the library."""
    of_the_store: mcp_eventscope.StoreError = error
    of_the_library: mcp_eventscope.EventscopeError = of_the_store
    warning: type[Warning] = mcp_eventscope.SessionsNotIsolatedWarning
    del of_the_library, warning


async def bus_of_the_sdk(client: Redis, server: MCPServer[None], app: Starlette) -> None:
    """Both buses are buses of the SDK; any bus can be decorated; the middleware is one of Starlette's."""
    bus = RedisSubscriptionBus(RedisEventStore(client).backend, max_pending=10, kept_batches=100, repair_seconds=0.5)
    buses: list[SubscriptionBus] = [bus, InstrumentedSubscriptionBus(bus, name="shop")]
    InstrumentedSubscriptionBus(InMemorySubscriptionBus())
    MCPServer[None]("shop", subscriptions=buses[0])
    running: AbstractAsyncContextManager[None] = bus.running()
    async with running, InstrumentedSubscriptionBus(bus).running():
        pass
    app.add_middleware(EndSubscriptionsOnStop, server=server)
    assert_type(EndSubscriptionsOnStop(app, server), EndSubscriptionsOnStop)
    RedisSubscriptionBus(client)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def tasks_extension_takes_any_task_store(events: RedisEventStore) -> None:
    """Each store is a `TaskStore`, decorated or not; the extensions are those of the SDK's server and client."""
    stores: list[TaskStore] = [InMemoryTaskStore(), RedisTaskStore(events.backend)]
    stores.append(InstrumentedTaskStore(stores[0], registry=None))
    tasks = TasksExtension(stores[0], tools={"build"})
    MCPServer("s", extensions=[tasks])
    Client("http://localhost/mcp", extensions=[TasksClient()])
    running: AbstractAsyncContextManager[None] = tasks.running()
    del running
    TasksExtension(events, tools=())  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
