"""Log, span, metric and error output of a worker in good and bad times, searched for secrets."""

import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import quote

import anyio
import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from mcp_eventscope import RedisEventStore, StoreError, http_app
from mcp_eventscope.cli.main import main
from mcp_eventscope.redis.client import connect as connect_redis
from support.http_client import Connect, HTTPClient, events
from support.logs import Recorder
from support.principals import authenticated
from support.servers import HOST
from support.serving import serving
from support.valkeys import OwnValkey, own_valkey
from support.waiting import until

pytestmark = pytest.mark.anyio

PASSWORD = "pass/w0rd@of:redis#4711"
SECRETS = {
    "password of Redis": PASSWORD,
    "password in a URL": quote(PASSWORD, safe=""),
    "token of a client": "alice@secret-audience.example",
    "token of the metrics": "metrics-token-4711",
    "token of the console": "console-token-4711",
    "argument of a tool": "argument-4711",
    "progress": "progress-4711",
    "result": "result-4711",
    "error of a tool": "raised-4711",
    "answer of a user": "answer-4711",
    "handshake": "client-name-4711",
}

OTHERS = {"mcp", "sse_starlette", "httpcore2", "httpx2"}
"""Loggers that are not searched. The SDK logs session ids (SECURITY.md), and the messages of tools' exceptions. The
others log each chunk below `INFO`; the last two belong to the test's client."""


class Name(BaseModel):
    """A form."""

    name: str


def server() -> MCPServer[object]:
    """A server whose tools return, report, ask and raise secrets."""
    mcp: MCPServer[object] = MCPServer("secrets", log_level="ERROR", **authenticated())

    @mcp.tool()
    async def work(text: str, ctx: Context) -> str:  # noqa: ARG001 - a secret of the client
        """Report and return."""
        await ctx.report_progress(1, message=SECRETS["progress"])
        return SECRETS["result"]

    @mcp.tool()
    async def fail(text: str) -> str:  # noqa: ARG001
        """Raise."""
        raise ValueError(SECRETS["error of a tool"])

    @mcp.tool()
    async def ask(ctx: Context) -> str:
        """Ask."""
        answer = await ctx.elicit("Who?", Name)
        return str(answer)

    return mcp


class _Everything(logging.Handler):
    """All records of the package, with their tracebacks, at any level."""

    def __init__(self, output: "Output") -> None:
        super().__init__(logging.DEBUG)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in OTHERS:
            self._output.texts.append(f"{record.name}: {self.format(record)} {record.__dict__}")


@dataclass
class Output:
    """All that is shown to others than the client."""

    log: Recorder = field(default_factory=Recorder)
    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    texts: list[str] = field(default_factory=list)
    session_ids: list[str] = field(default_factory=list)

    def check(self) -> None:
        """No secret is in it, and it is not empty."""
        spans = [span.to_json() for span in self.exporter.get_finished_spans()]
        assert self.log.entries
        assert spans
        shown = [*map(str, self.log.entries), *spans, *self.texts]
        secrets = {**SECRETS, **{f"session {number}": text for number, text in enumerate(self.session_ids)}}
        found = {
            name: text[max(0, text.index(secret) - 300) : text.index(secret) + 100]
            for text in shown
            for name, secret in secrets.items()
            if secret in text
        }
        assert found == {}


@pytest.fixture
def output() -> Iterator[Output]:
    """The output of the test."""
    found = Output()
    handler = _Everything(found)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield found
        found.texts += [str(each.message) for each in caught]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture
def redis() -> Iterator[OwnValkey]:
    """A Redis that keeps its data, and wants a password with odd characters."""
    with own_valkey(durable=True) as found:
        with found.client() as client:
            client.acl_setuser(
                "es", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], categories=["+@all"]
            )
        yield found


def url_of(redis: OwnValkey, password: str = PASSWORD) -> str:
    """The URL with the password."""
    return f"redis://es:{quote(password, safe='')}@{HOST}:{redis.port}/0"


@asynccontextmanager
async def worker(redis: OwnValkey, output: Output) -> AsyncIterator[str]:
    """A worker with all telemetry."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(output.exporter))
    app = http_app(
        server(),
        redis_url=url_of(redis),
        ttl=60,
        metrics_token=SECRETS["token of the metrics"],
        console=True,
        console_token=SECRETS["token of the console"],
        registry=CollectorRegistry(),
        tracer_provider=provider,
        logger=output.log,
    )
    async with serving(app) as base:
        yield base


async def work(client: HTTPClient, output: Output) -> str:
    """Calls of each kind; the cursor of the first one."""
    await client.initialize(SECRETS["handshake"])
    output.session_ids.append(client.session)
    async with client.call(1, "work", text=SECRETS["argument of a tool"]) as response:
        received = [event async for event in events(response)]
    assert SECRETS["result"] in received[-1].data, "the client itself has not received it"
    async with client.call(2, "fail", text=SECRETS["argument of a tool"]) as response:
        assert [event async for event in events(response)]
    async with client.call(3, "ask") as response:
        async for event in events(response):
            if event.data and "elicitation/create" in event.data:
                result = {"action": "accept", "content": {"name": SECRETS["answer of a user"]}}
                async with client.post({"jsonrpc": "2.0", "id": event.message["id"], "result": result}) as answered:
                    assert answered.status_code == 202
    return received[0].id


async def look(client: HTTPClient, base: str, output: Output) -> None:
    """Everything that operators and strangers may read over HTTP."""
    for path in ("/metrics", "/livez", "/readyz", "/healthz", "/console", "/console/facts", "/nothing"):
        for headers in ({}, {"authorization": f"Bearer {SECRETS['token of the metrics']}"}):
            response = await client.http.get(f"{base}{path}", headers=headers)
            output.texts.append(f"{path}: {response.status_code} {response.headers} {response.text}")


async def damage(redis: OwnValkey) -> None:
    """Replace the stored events of the first call by what no message is, with a secret in it."""
    with redis.client() as client:
        for key in client.scan_iter("mcp:*:stream:1:*"):
            client.lset(key, 1, b"2 1700000000000000\n{" + SECRETS["argument of a tool"].encode())
        for key in client.scan_iter("mcp:*:stream:2:*"):
            client.delete(key)
            client.set(key, SECRETS["argument of a tool"], ex=60)


async def test_no_output_contains_a_secret(
    redis: OwnValkey, output: Output, connect: Connect, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calls, resumes, an outage, a restart, damaged data, refused requests, and the command line."""
    async with worker(redis, output) as base, worker(redis, output) as other:
        client = connect(base, authorization=f"Bearer {SECRETS['token of a client']}")
        cursor = await work(client, output)
        elsewhere = HTTPClient(client.http, f"{other}/mcp", client.session, client.headers)
        assert await elsewhere.resume(cursor)
        await damage(redis)
        for event_id in (cursor, f"{cursor[:-1]}2", "not-an-id"):
            async with elsewhere.get(event_id) as response:
                await response.aread()
        redis.kill()
        await work(connect(base, authorization=f"Bearer {SECRETS['token of a client']}"), output)
        await until(lambda: output.log.named("event_store.degraded"))
        await look(client, base, output)
        redis.start()
        with redis.client() as administrator:
            administrator.acl_setuser(
                "es", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], channels=["*"], categories=["+@all"]
            )
        await until(lambda: output.log.named("event_store.recovered"))
        await look(client, base, output)
        for stranger in (connect(base), connect(base, authorization="Bearer nobody")):
            async with stranger.get() as response:
                output.texts.append((await response.aread()).decode())
    for password in (PASSWORD, "wrong-but-secret-4711"):
        async with connect_redis(url_of(redis, password)) as bad:
            try:
                await RedisEventStore(bad, ttl=60).probe()
            except StoreError as error:
                output.texts.append(f"{error!r} {error.__cause__!r}")
    for password in (PASSWORD, "wrong-but-secret-4711"):
        url = url_of(redis, password)
        for arguments in (["doctor", url], ["doctor", "--json", url], ["workers", "--redis-url", url], ["why", cursor]):
            await anyio.to_thread.run_sync(main, arguments)
    output.texts += capsys.readouterr()
    assert not [text for text in output.texts if "wrong-but-secret" in text]
    output.check()
