"""One trace for a call whose stream is cut and resumed on two workers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry

from mcp_eventscope import http_app
from mcp_eventscope.store.messages import GET_STREAM_KEY
from support.controlled_server import ControlledServer
from support.http_client import Connect, HTTPClient, events
from support.processes import LEASE
from support.serving import serving_each
from support.waiting import until

pytestmark = pytest.mark.anyio


@dataclass
class Worker:
    """One worker, and its ended spans."""

    controlled: ControlledServer
    url: str
    exporter: InMemorySpanExporter

    def named(self, name: str, stream: str = "1") -> list[ReadableSpan]:
        """The spans of a stream with a name, in the order of their start."""
        found = [span for span in self.exporter.get_finished_spans() if span.name == name]
        found = [span for span in found if (span.attributes or {})["eventscope.stream_id"] == stream]
        return sorted(found, key=lambda span: span.start_time or 0)

    def requests(self, method: str) -> dict[int, ReadableSpan]:
        """The spans of HTTP requests, by their ids."""
        found = [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        return {span.context.span_id: span for span in found if (span.attributes or {}).get("http.method") == method}


@pytest.fixture
async def workers(valkey_url: str) -> AsyncIterator[list[Worker]]:
    """Two workers behind the ASGI instrumentation, each with a tracer provider of its own."""
    servers, exporters, apps = (ControlledServer(), ControlledServer()), [], []
    for server in servers:
        provider = TracerProvider()
        exporters.append(InMemorySpanExporter())
        provider.add_span_processor(SimpleSpanProcessor(exporters[-1]))
        app = http_app(
            server.mcp,
            redis_url=valkey_url,
            registry=CollectorRegistry(),
            worker_lease=LEASE,
            tracer_provider=provider,
        )
        apps.append(OpenTelemetryMiddleware(app, tracer_provider=provider, exclude_spans=["receive", "send"]))
    async with serving_each(*apps) as urls:
        yield list(map(Worker, servers, urls, exporters))


async def _cut(client: HTTPClient, cursor: str, worker: Worker, step: str) -> str:
    """Resume a running call, have its tool report, and cut the stream; returns the new cursor."""
    async with client.get(cursor) as response:
        worker.controlled.step("w", step)
        return (await anext(events(response))).id


async def test_call_that_is_cut_and_resumed_is_one_trace(workers: list[Worker], connect: Connect) -> None:
    """Replays and follows belong to the call's trace, those that were cut included, and link to their HTTP request."""
    a, b = workers
    on_a = connect(a.url)
    await on_a.initialize()
    on_b = replace(on_a, url=f"{b.url}/mcp")
    async with on_a.call(1, "steps", name="w") as response:
        first = (await anext(events(response))).id
    cursor = await _cut(on_b, first, a, "1")
    cursor = await _cut(on_a, cursor, a, "2")
    a.controlled.step("w", "3")
    a.controlled.finish("w")
    rest = await on_b.resume(cursor)
    assert rest[-1].message["result"]["structuredContent"] == {"result": "3 steps"}
    assert len(await on_b.resume(first)) == 4
    await until(lambda: len(b.named("event_store.replay")) == 3 and len(b.requests("GET")) == 3)
    await until(lambda: a.named("event_store.follow") and len(a.requests("GET")) == 1)

    stores = a.named("event_store.store")
    (call,) = {span.context.trace_id for span in stores}
    assert call in {span.context.trace_id for span in a.requests("POST").values()}
    for worker in workers:
        reads = [*worker.named("event_store.replay"), *worker.named("event_store.follow")]
        assert {span.context.trace_id for span in reads} == {call}
        requests = worker.requests("GET")
        for span in reads:
            request = requests[span.links[0].context.span_id]
            assert request.context.trace_id == span.links[0].context.trace_id != call
            assert (request.start_time or 0) <= (span.start_time or 0), "a span begins when its operation did"
    last = b.named("event_store.replay")[-1]
    assert [link.context.span_id for link in last.links[1:]] == [span.context.span_id for span in stores[1:]]
    cut = b.named("event_store.follow")[0].attributes or {}
    assert cut["eventscope.outcome"] in {"cancelled", "client_disconnected"}


async def test_standalone_stream_is_in_the_trace_of_its_request(workers: list[Worker], connect: Connect) -> None:
    """It carries messages of many calls, so that their spans are linked only."""
    a, b = workers
    on_a = connect(a.url)
    await on_a.initialize()
    on_b = replace(on_a, url=f"{b.url}/mcp")
    async with on_b.get() as response:
        async with on_a.call(1, "announce") as call:
            assert [event async for event in events(call)]
        received = events(response)
        while not (await anext(received)).data:
            pass
    await until(lambda: b.named("event_store.follow", GET_STREAM_KEY) and b.requests("GET"))
    (follow,) = b.named("event_store.follow", GET_STREAM_KEY)
    assert follow.parent is not None
    assert follow.parent.span_id in b.requests("GET")
