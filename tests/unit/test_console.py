"""The console: access, the content of each answer, and the load on Redis."""

import asyncio
import base64
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpx2
import pytest
from fakeredis import FakeAsyncRedis
from mcp.server import MCPServer
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from mcp_eventscope import RedisEventStore, http_app
from mcp_eventscope.console import observer as observing
from mcp_eventscope.console.app import Console
from mcp_eventscope.console.observer import Observer
from mcp_eventscope.console.problems import KEPT, Condition, Problems
from mcp_eventscope.errors import StoreRejectedError, StoreUnavailableError
from mcp_eventscope.redis.inspection import ActivityFacts, Crawl, Inspector, ServerFacts, SessionFacts, WorkerFacts
from mcp_eventscope.redis.keys import Keys
from mcp_eventscope.telemetry import catalog, logs
from mcp_eventscope.telemetry.logs import Log
from mcp_eventscope.telemetry.tracing import session_hash
from support.http_client import NO_TLS
from support.logs import Recorder
from support.memory_store import MemoryEventStore
from support.waiting import until

pytestmark = pytest.mark.anyio

TOKEN = "a-token-of-the-console"
SESSION = "the-whole-session-id"
LOCAL = ("127.0.0.1", 50000)
PATHS = ("/", "/console.css", "/console.js", "/icon.svg", "/facts", f"/session/{session_hash(SESSION)}", "/absent")


class StubInspector(Inspector):
    """Reads no Redis: it counts what it is asked, and answers, fails or hangs on demand."""

    def __init__(self) -> None:
        super().__init__(FakeAsyncRedis(), Keys("mcp:"))
        self.reads = 0
        self.failure: Exception | None = None
        self.hanging: asyncio.Event | None = None
        self.info: dict[str, Any] = {"role": "master", "used_memory": 5, "maxmemory": 100}
        self.ids = [SESSION]
        self.number = 0
        self.read_ids: list[str] = []

    async def ping(self) -> None:
        """Count a read."""
        self.reads += 1
        if self.hanging is not None:
            await self.hanging.wait()
        if self.failure is not None:
            raise self.failure

    async def clock(self) -> int:
        """A time."""
        return 10_000_000

    async def servers(self) -> list[ServerFacts]:
        """One server."""
        return [ServerFacts(node="", kind="valkey", version="9", info=self.info)]

    async def crawl_sessions(self, crawl: Crawl, *, max_keys: int) -> None:
        """Find the sessions."""
        assert max_keys <= observing.SCANNED_PER_READ
        crawl._add(self.ids)
        crawl._end_round()

    async def crawl_workers(self, crawl: Crawl, *, max_keys: int) -> None:
        """Find no worker."""

    async def read_sessions(self, session_ids: Sequence[str]) -> list[SessionFacts]:
        """Describe sessions."""
        self.read_ids = [*session_ids]
        return [
            SessionFacts(
                session_id=each,
                state="live",
                server="s",
                audience="",
                authenticated=False,
                age=1.0,
                expires_in=None,
                workers=(),
                running=0,
                running_on={},
                accounted_bytes=95,
                client="c",
                protocol_version="v",
            )
            for each in session_ids
        ]

    async def read_workers(
        self, names: Iterable[str], sessions: Mapping[str, int], requests: Mapping[str, int]
    ) -> list[WorkerFacts]:
        """A dead worker with a request."""
        return [WorkerFacts(name="w", alive=False, lease_seconds=None, inbox=0, sessions=1, requests=2)]

    async def activity(self, session_ids: Sequence[str], *, rows: int, most: int) -> list[ActivityFacts]:
        """The last numbers."""
        return [ActivityFacts(last_time=4.0, numbers={"r": self.number}) for _ in session_ids]


@pytest.fixture
def inspector() -> StubInspector:
    """The reader of the console under test."""
    return StubInspector()


@pytest.fixture
def observer(inspector: StubInspector, monkeypatch: pytest.MonkeyPatch) -> Observer:
    """An observer of the stub, which reads again whenever it is asked."""
    monkeypatch.setattr(observing, "INTERVAL", 0.0)
    monkeypatch.setattr(observing, "PAUSE", 0)
    return Observer(inspector, address="redis:6379", max_session_bytes=100)


def console(inspector: Inspector, **options: Any) -> Starlette:
    """An application with the console."""
    made = Console(inspector, address="redis:6379", max_session_bytes=100, **options)
    return Starlette(routes=[Mount("/console", made.app)])


async def ask(
    app: Any,
    path: str = "/facts",
    headers: Sequence[tuple[str, str]] = (),
    *,
    peer: tuple[str, int] | None = LOCAL,
    host: str = "127.0.0.1:8000",
) -> httpx2.Response:
    """The response to a request of a peer."""
    transport = httpx2.ASGITransport(app, client=peer)  # type: ignore[arg-type] # none: a Unix socket
    async with httpx2.AsyncClient(verify=NO_TLS, transport=transport, base_url=f"http://{host}") as client:
        sent = [(name.encode(), text.encode("latin-1")) for name, text in headers]
        return await client.get(f"/console{path}", headers=sent)


def basic(password: str) -> str:
    """A header of Basic authentication."""
    return f"Basic {base64.b64encode(f'any:{password}'.encode()).decode()}"


# -- access -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("127.8.8.8", "localhost"),
        ("::1", "[::1]:8000"),
        ("::ffff:7f00:1", "A.LOCALHOST."),
    ],
)
async def test_console_without_token_answers_this_host(inspector: StubInspector, peer: str, host: str) -> None:
    """A browser on this host, at one of its names."""
    assert (await ask(console(inspector), peer=(peer, 1), host=host)).status_code == 200


@pytest.mark.parametrize("peer", [("10.0.0.7", 1), ("::ffff:10.0.0.1", 1), ("", 0), None])
async def test_console_without_token_refuses_other_hosts(
    inspector: StubInspector, peer: tuple[str, int] | None
) -> None:
    """Every path, the peer of a Unix socket included, and without a call to Redis."""
    for path in PATHS:
        response = await ask(console(inspector), path, peer=peer)
        assert response.status_code == 403
        assert "without a token" in response.json()["error"]
    assert inspector.reads == 0


FORWARDED = ("X-Forwarded-For", "x-forwarded-host", "Forwarded", "X-Real-IP", "Via", "X-Envoy-Peer", "CF-Ray")


@pytest.mark.parametrize("name", FORWARDED)
async def test_console_without_token_refuses_forwarded_requests(inspector: StubInspector, name: str) -> None:
    """Behind a proxy each peer is a loopback address."""
    assert (await ask(console(inspector), headers=[(name, "127.0.0.1")])).status_code == 403
    with_token = console(inspector, token=TOKEN)
    authorized = [("authorization", f"Bearer {TOKEN}")]
    assert (await ask(with_token, headers=[(name, "8.8.8.8"), *authorized])).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "10.0.0.7"])
async def test_console_without_token_refuses_other_names(inspector: StubInspector, host: str) -> None:
    """A page whose name was rebound to this host sends that name."""
    assert (await ask(console(inspector), host=host)).status_code == 403


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer  {TOKEN}", basic(TOKEN)])
async def test_console_with_token_answers_any_host_with_it(inspector: StubInspector, given: str) -> None:
    """A script sends a bearer token, and a browser asks for a user and a password."""
    app = console(inspector, token=TOKEN)
    response = await ask(app, headers=[("authorization", given)], peer=("10.0.0.7", 1), host="shop.example")
    assert response.status_code == 200


WRONG = (None, "Bearer ", f"Bearer {TOKEN}x", f"Token {TOKEN}", basic(""), basic("x"), "Basic %", "Bearer \xe9", TOKEN)


@pytest.mark.parametrize("given", WRONG)
async def test_console_with_token_refuses_requests_without_it(inspector: StubInspector, given: str | None) -> None:
    """Also of this host; the browser then asks for it."""
    headers = [] if given is None else [("authorization", given)]
    for path in PATHS:
        response = await ask(console(inspector, token=TOKEN), path, headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Basic realm=")
        assert TOKEN not in response.text
    assert inspector.reads == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_console_refuses_requests_of_other_origins(inspector: StubInspector, site: str) -> None:
    """A page elsewhere cannot make a browser read Redis; a link there may lead here."""
    app = console(inspector)
    sent = [("sec-fetch-site", site)]
    assert (await ask(app, headers=[*sent, ("sec-fetch-mode", "no-cors")])).status_code == 403
    assert (await ask(app, "/", [*sent, ("sec-fetch-mode", "navigate")])).status_code == 200
    assert inspector.reads == 0


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_every_answer_of_the_console_has_its_headers(inspector: StubInspector, token: str | None) -> None:
    """Refusals and unknown paths, too."""
    for path in PATHS:
        response = await ask(console(inspector, token=token), path, [("origin", "https://evil.example")])
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert not any(name.startswith("access-control-") for name in response.headers)


async def test_console_only_reads(inspector: StubInspector) -> None:
    """No path accepts another method, and no WebSocket opens."""
    app = console(inspector)
    async with httpx2.AsyncClient(
        verify=NO_TLS, transport=httpx2.ASGITransport(app, client=LOCAL), base_url="http://localhost"
    ) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            for path in ("/", "/facts", "/session/0"):
                assert (await client.request(method, f"/console{path}")).status_code == 405


# -- facts ------------------------------------------------------------------------------------------------------------


async def test_facts_name_no_session_id(inspector: StubInspector) -> None:
    """An id may be a credential; the page knows hashes only."""
    response = await ask(console(inspector))
    (session,) = response.json()["sessions"]
    assert session["hash"] == session_hash(SESSION)
    assert session["idle"] == 6
    assert SESSION not in response.text


async def test_observer_of_many_viewers_reads_once(inspector: StubInspector) -> None:
    """Viewers share a read, and the facts of the last second."""
    observer = Observer(inspector, address="a", max_session_bytes=1)
    found = await asyncio.gather(*(observer.overview() for _ in range(20)))
    assert inspector.reads == 1
    assert {each["known"] for each in found} == {1}


async def test_observer_of_a_slow_redis_reads_less_often(
    inspector: StubInspector, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read of thousands of sessions must not take all the time of a worker."""
    monkeypatch.setattr(observing, "PAUSE", 10**9)
    for _ in range(3):
        await observer.overview()
    assert inspector.reads == 1
    assert observer._pause == observing.MAX_INTERVAL


async def test_observer_with_more_sessions_than_a_read_refreshes_reaches_all(
    inspector: StubInspector, observer: Observer
) -> None:
    """A read is bounded; the next ones continue."""
    inspector.ids = [f"s{number}" for number in range(observing.READ_SESSIONS * 2)]
    read: set[str] = set()
    for _ in range(4):
        found = await observer.overview()
        assert len(inspector.read_ids) == observing.READ_SESSIONS
        read.update(inspector.read_ids)
    assert read == set(inspector.ids)
    assert found["known"] == len(inspector.ids)
    assert len(found["sessions"]) == observing.SHOWN
    inspector.ids = ["s1"]
    await observer.overview()  # A round that does not find the others ends; the previous one still has.
    assert (await observer.overview())["known"] == 1
    assert observer._ids.keys() == {session_hash("s1")}


async def test_observer_of_an_unreachable_redis_shows_the_last_facts_with_their_age(
    inspector: StubInspector, observer: Observer
) -> None:
    """The time of the failure stays; a recovery ends the problem, which is kept."""
    assert (await observer.overview())["redis"]["reachable"]
    inspector.failure = StoreUnavailableError("could not reach Redis at redis:6379")
    first, second = await observer.overview(), await observer.overview()
    assert first["redis"]["since"] == second["redis"]["since"] is not None
    assert "redis:6379" in first["redis"]["error"]
    assert [each["hash"] for each in second["sessions"]] == [session_hash(SESSION)]
    assert second["age"] > first["age"]
    assert second["history"][-1][1:] == [None] * 6
    (problem,) = [each for each in second["problems"] if each["name"] == "redis_unreachable"]
    assert problem["lasting"]
    inspector.failure = None
    recovered = await observer.overview()
    assert recovered["redis"]["since"] is None
    (problem,) = [each for each in recovered["problems"] if each["name"] == "redis_unreachable"]
    assert problem["until"] is not None


async def test_observer_that_redis_refuses_reports_it(inspector: StubInspector, observer: Observer) -> None:
    """A missing permission is no outage."""
    inspector.failure = StoreRejectedError("NOPERM")
    found = await observer.overview()
    assert found["redis"]["refused"]
    assert "redis_refuses" in {each["name"] for each in found["problems"]}


async def test_observer_of_a_hanging_redis_answers_with_the_previous_facts(
    inspector: StubInspector, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer does not wait for Redis, and reads do not pile up."""
    monkeypatch.setattr(observing, "READ_TIMEOUT", 0.01)
    async with observer.running():
        await observer.overview()
        inspector.hanging = asyncio.Event()
        found = await asyncio.gather(*(observer.overview() for _ in range(5)))
        assert {each["known"] for each in found} == {1}
        await observer.overview()
        assert inspector.reads == 2
    assert observer._reading is not None
    assert observer._reading.cancelled()


async def test_observer_reports_what_needs_attention(inspector: StubInspector, observer: Observer) -> None:
    """A replica, eviction, full memory, a dead worker with requests, and a session near its bound."""
    inspector.info = {"role": "slave", "used_memory": 95, "maxmemory": 100, "maxmemory_policy": "allkeys-lru"}
    found = await observer.overview()
    assert {each["name"] for each in found["problems"] if each["lasting"]} == {
        "redis_is_replica",
        "redis_may_evict",
        "redis_memory_full",
        "session_near_bound",
        "worker_dead",
    }


async def test_observer_measures_the_rate_of_a_session(inspector: StubInspector, observer: Observer) -> None:
    """Events that were there before do not count; those since then do."""
    inspector.number = 1000
    first = await observer.overview()
    assert first["sessions"][0]["rate"] is None
    inspector.number = 1010
    rate = (await observer.overview())["sessions"][0]["rate"]
    assert rate > 0
    count = observing._Count()
    count.add(0.0, {"a": 5})
    count.add(1.0, {"a": 7, "b": 3})
    count.add(2.0, {"b": 4})
    count.add(3.0, {"a": 8, "b": 4})
    assert count.rate == pytest.approx((5 + 1 + 1) / 3)


# -- contents ---------------------------------------------------------------------------------------------------------

RUN = f"{'0' * 12}1"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("session/nothing", 404),
        (f"session/nothing/events?stream=1&run={RUN}&after=0", 404),
        (f"session/{session_hash(SESSION)}/events?stream=1&run=x&after=0", 400),
        (f"session/{session_hash(SESSION)}/events?stream=1&run={RUN}&after=-1", 400),
        (f"session/{session_hash(SESSION)}/events?stream={'x' * 2000}&run={RUN}&after=0", 400),
        (f"session/{session_hash(SESSION)}/events?stream=1&run={RUN}&after=0&payloads=1", 403),
    ],
)
async def test_console_asked_for_what_it_does_not_show_refuses(
    inspector: StubInspector, path: str, status: int
) -> None:
    """Unknown sessions, other keys, and contents unless they are enabled."""
    app = console(inspector)
    await ask(app)
    response = await ask(app, f"/{path}")
    assert response.status_code == status
    assert response.json()["error"]


# -- problems ---------------------------------------------------------------------------------------------------------


def test_problems_beyond_the_bound_are_dropped_but_lasting_ones_are_kept() -> None:
    """The ring is bounded, and what holds is always shown."""
    problems = Problems()
    problems.observe([Condition("error", "holds")])
    for number in range(KEPT * 2):
        problems.on_log(catalog.store.STORE_DEGRADED, {"error": "x" * 9999, "number": number, "trace_id": "t"})
    latest = problems.latest
    assert len(latest) == KEPT + 1
    assert latest[-1].name == "holds"
    assert len(str(latest[0].fields["error"])) < 1000
    assert "trace_id" not in latest[0].fields


def test_log_observer_receives_events_until_its_block_ends() -> None:
    """Also with a logger that fails; the log of the application is not changed."""
    log, seen = Recorder(), Problems()
    with logs.observed(seen.on_log):
        Log(log).write(catalog.store.STORE_DEGRADED, store="s", reason="timeout", error="e")
    Log(log).write(catalog.store.STORE_DEGRADED, store="s", reason="timeout", error="e")
    assert len(log.entries) == 2
    (problem,) = seen.latest
    assert problem.name == catalog.store.STORE_DEGRADED.name
    assert problem.fields["reason"] == "timeout"


# -- the application --------------------------------------------------------------------------------------------------


def app_with(**options: Any) -> Starlette:
    """An application on a fake."""
    given: dict[str, Any] = {
        "event_store": RedisEventStore(FakeAsyncRedis(), ttl=60),
        "console_token": TOKEN,
        **options,
    }
    return http_app(MCPServer("s"), registry=CollectorRegistry(), **given)


async def test_http_app_serves_the_console_where_it_is_mounted() -> None:
    """The page's links are relative, also below another application's path."""
    outer = Starlette(routes=[Mount("/shop", app_with(console=True))])
    async with httpx2.AsyncClient(
        verify=NO_TLS, transport=httpx2.ASGITransport(outer), base_url="http://a", auth=("any", TOKEN)
    ) as client:
        response = await client.get("/shop/console", follow_redirects=True)
        assert response.status_code == 200
        assert response.url.path == "/shop/console/"
        assert (await client.get(response.url.join("console.js"))).status_code == 200
        assert "http" not in response.text.replace("http-equiv", "")
        assert (await client.get("/shop/metrics")).status_code == 200


async def test_http_app_without_console_has_none() -> None:
    """It is off by default."""
    transport = httpx2.ASGITransport(app_with(), client=LOCAL)
    async with httpx2.AsyncClient(verify=NO_TLS, transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/console")).status_code == 404
        assert (await client.get("/console/facts")).status_code == 404


def test_http_app_without_console_does_not_import_it() -> None:
    """It costs nothing where it is not wanted."""
    code = (
        "import sys; from mcp.server import MCPServer; from fakeredis import FakeAsyncRedis\n"
        "from mcp_eventscope import RedisEventStore, http_app\n"
        "http_app(MCPServer('s'), RedisEventStore(FakeAsyncRedis(), ttl=60))\n"
        "print(*[name for name in sys.modules if name.startswith('mcp_eventscope.console')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == []


def test_console_of_an_application_without_a_token_is_refused() -> None:
    """A proxy on the same host may forward requests as if they were of this host: no header, and any name."""
    with pytest.raises(ValueError, match=r"console_token must be .*, got none; .*set EVENTSCOPE_CONSOLE_TOKEN"):
        app_with(console=True, console_token=None)


def test_console_of_a_third_party_store_is_refused() -> None:
    """There is no Redis to look at."""
    with pytest.raises(ValueError, match="console needs a RedisEventStore, got a third-party store; omit console"):
        app_with(event_store=MemoryEventStore(), console=True)


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/mcp"])
def test_server_at_the_path_of_the_console_is_refused(path: str) -> None:
    """One of them would answer requests of the other."""
    with pytest.raises(ValueError, match="already serves /console"):
        app_with(console=True, streamable_http_path=path)


def test_console_closes_a_websocket() -> None:
    """Nothing listens there."""
    client = TestClient(app_with(console=True))
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/console/facts"):
        pass


async def test_console_ends_with_its_application(inspector: StubInspector) -> None:
    """A read that hangs does not outlive the application."""
    made = Console(inspector, address="a", max_session_bytes=1)
    inspector.hanging = asyncio.Event()
    app = Starlette(routes=[Mount("/console", made.app)])
    async with made.running():
        asking = asyncio.create_task(ask(app))
        await until(lambda: inspector.reads == 1)
    assert (await asking).status_code == 200
