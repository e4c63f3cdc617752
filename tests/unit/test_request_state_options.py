"""The options of request states: secrets, names of services, and installation."""

import os
import socket
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from fastmcp import FastMCP
from mcp.server import MCPServer
from mcp.server.lowlevel.server import Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from prometheus_client import CollectorRegistry

from mcp_eventscope import InstrumentedRequestState, RedisEventStore, RedisRequestState
from mcp_eventscope.request_state.facts import KeySource
from mcp_eventscope.request_state.installation import check_audience
from mcp_eventscope.request_state.middleware import RequestStateMiddleware
from mcp_eventscope.request_state.ring import StateKey
from mcp_eventscope.request_state.secret import FILE_VARIABLE, VARIABLE, secrets_of
from support.request_states import SECRET


@pytest.fixture
def state() -> RedisRequestState:
    """A request state that does not run."""
    return RedisRequestState(RedisEventStore(fakeredis.FakeAsyncRedis()).backend)


def test_secrets_of_the_environment_are_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas and white space separate secrets; duplicates count once."""
    monkeypatch.setenv(VARIABLE, f"{SECRET}, {SECRET[::-1]}\n{SECRET}")
    assert secrets_of(None) == (SECRET.encode(), SECRET[::-1].encode())
    assert secrets_of([SECRET[::-1]]) == (SECRET[::-1].encode(),)


def test_secrets_of_a_file_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Container platforms mount secrets as files, often with a line break at the end."""
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv(FILE_VARIABLE, str(tmp_path / "secret"))
    assert secrets_of(None) == (SECRET.encode(),)
    monkeypatch.setenv(VARIABLE, SECRET)
    with pytest.raises(ValueError, match="must not be set together"):
        secrets_of(None)


def test_secrets_that_are_missing_are_none() -> None:
    """Without secrets the keys are generated."""
    assert secrets_of(None) == ()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({VARIABLE: ""}, f"{VARIABLE} must contain at least one secret, got none"),
        ({VARIABLE: "password-1"}, f"{VARIABLE} must contain secrets of at least 32 bytes, got one of 10"),
        ({FILE_VARIABLE: "/nowhere"}, f"{FILE_VARIABLE} must name a readable text file, got FileNotFoundError"),
    ],
)
def test_secrets_that_are_invalid_are_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    """The error names the variable, and does not repeat the secret."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as raised:
        secrets_of(None)
    assert "password-1" not in str(raised.value)


@pytest.mark.parametrize("keys", [SECRET, [7], [None]])
def test_secrets_of_another_type_are_refused(keys: Any) -> None:
    """A single string is no sequence of secrets."""
    with pytest.raises(TypeError, match="keys must"):
        secrets_of(keys)


def test_key_in_a_log_shows_no_secret() -> None:
    """The representation of a key is not that of its fields."""
    assert SECRET not in repr(StateKey(SECRET.encode(), None, KeySource.SECRET))


@pytest.mark.parametrize(
    "name",
    ["", "mcp-server", "FastMCP-a1b2", "orders-web-7f9c4-x2x9z", "orders-4711"],
)
def test_audience_that_differs_between_processes_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of pods and processes would refuse each state of another worker."""
    monkeypatch.setattr(socket, "gethostname", lambda: "web-7f9c4-x2x9z")
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    with pytest.raises(ValueError, match=r"name the service|must not be empty"):
        check_audience("audience", name)


@pytest.mark.parametrize(("name", "host", "pid"), [("orders", "orders", 4242), ("orders-v1", "h", 1), ("a b", "", 7)])
def test_audience_of_a_service_is_accepted(name: str, host: str, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may be named after its service, and the first process of a container has the id 1."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    check_audience("audience", name)


def test_install_in_an_mcpserver_takes_the_place_of_the_boundary(state: RedisRequestState) -> None:
    """The middleware of the user stays inside, that of OpenTelemetry outside."""

    async def own(ctx: Any, call_next: Any) -> Any:
        return await call_next(ctx)

    mcp: MCPServer[Any] = MCPServer("orders", middleware=[own])
    before = list(mcp.middleware)
    place = next(place for place, each in enumerate(before) if isinstance(each, RequestStateBoundary))
    state.install(mcp)
    assert isinstance(mcp.middleware[place], RequestStateMiddleware)
    assert [*mcp.middleware[:place], *mcp.middleware[place + 1 :]] == [*before[:place], *before[place + 1 :]]


def test_install_in_a_low_level_server_is_inside_of_its_spans(state: RedisRequestState) -> None:
    """A low-level server has no boundary."""
    server: Server[Any] = Server("orders")
    state.install(server)
    assert [type(each).__name__ for each in server.middleware] == ["OpenTelemetryMiddleware", "RequestStateMiddleware"]


def test_install_in_a_fastmcp_takes_the_place_of_the_boundary() -> None:
    """FastMCP seals with the SDK's boundary, too."""
    mcp = FastMCP("orders")
    state = InstrumentedRequestState(RequestStateSecurity.ephemeral(), registry=CollectorRegistry())
    state.install(mcp)
    chain = mcp._mcp_server.middleware
    assert not any(isinstance(each, RequestStateBoundary) for each in chain)
    assert [getattr(each, "protects_request_state", False) for each in chain].count(True) == 1
    with pytest.raises(ValueError, match="name the service"):
        InstrumentedRequestState(RequestStateSecurity.ephemeral(), registry=CollectorRegistry()).install(FastMCP())


def test_install_twice_is_refused(state: RedisRequestState) -> None:
    """Two boundaries would seal twice, and the second one would refuse every state."""
    mcp: MCPServer[Any] = MCPServer("orders")
    InstrumentedRequestState(state, registry=CollectorRegistry()).install(mcp)
    with pytest.raises(ValueError, match="must not have a request state already"):
        state.install(mcp)


def test_install_without_a_name_is_refused(state: RedisRequestState) -> None:
    """An unnamed server has the placeholder of the SDK; `audience=` replaces it."""
    with pytest.raises(ValueError, match=r"the name of the server must be the same .* got 'mcp-server'; name"):
        state.install(MCPServer())
    named = RedisRequestState(RedisEventStore(fakeredis.FakeAsyncRedis()).backend, audience="orders")
    named.install(MCPServer())


def test_install_in_another_object_is_refused(state: RedisRequestState) -> None:
    """An ASGI application has no middleware of the SDK."""
    with pytest.raises(TypeError, match="server must be an MCPServer, a low-level Server or a FastMCP, got str"):
        state.install("orders")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ttl": 0}, ValueError, "ttl must be"),
        ({"rotation": 1}, ValueError, "rotation must be"),
        ({"wait_timeout": -1}, ValueError, "wait_timeout must be"),
        ({"wait_timeout": "2"}, TypeError, "wait_timeout must be"),
        ({"audience": ""}, ValueError, "audience must not be empty"),
        ({"keys": []}, ValueError, "keys must contain at least one secret"),
    ],
)
def test_options_that_are_invalid_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each error names the option."""
    with pytest.raises(error, match=message):
        RedisRequestState(RedisEventStore(fakeredis.FakeAsyncRedis()).backend, **options)


def test_decorator_of_a_decorated_state_is_refused(state: RedisRequestState) -> None:
    """Everything would be counted twice."""
    decorated = InstrumentedRequestState(state, registry=CollectorRegistry())
    with pytest.raises(ValueError, match="must not be instrumented already"):
        InstrumentedRequestState(decorated)
    with pytest.raises(TypeError, match="state must be a RedisRequestState, got str"):
        InstrumentedRequestState("orders")  # type: ignore[arg-type]
