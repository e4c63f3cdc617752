"""The private names of the SDK are declared, and checked before serving."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http import StreamableHTTPServerTransport
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher

import mcp_eventscope
from mcp_eventscope import IncompatibleSDKError, RedisEventStore, ResumableSessionManager
from mcp_eventscope.redis.client import connect
from mcp_eventscope.sessions import _sdk_compat

pytestmark = pytest.mark.anyio

PACKAGE = Path(mcp_eventscope.__file__).parent
DECLARED = {
    *_sdk_compat.MANAGER_ATTRIBUTES,
    *_sdk_compat.TRANSPORT_ATTRIBUTES,
    *_sdk_compat.TRANSPORT_METHODS,
    *_sdk_compat.DISPATCHER_ATTRIBUTES,
    *(called for _, called in _sdk_compat.CALLS),
}
CHECKED_WHERE_USED = {"_inner", "_mcp_server", "_session_manager"}
"""The first has a fallback; the others are checked where the application is built."""


def trees(*folders: str) -> Iterator[ast.AST]:
    """Every node of the modules of some folders."""
    for folder in folders:
        for path in (PACKAGE / folder).rglob("*.py") if (PACKAGE / folder).is_dir() else [PACKAGE / folder]:
            yield from ast.walk(ast.parse(path.read_text("utf-8")))


def own_names() -> set[str]:
    """The names that the package itself defines: functions, classes, and attributes of `self`."""
    names: set[str] = set()
    for node in trees("."):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def test_every_private_name_of_the_sdk_is_declared() -> None:
    """A private attribute that the package does not define is the SDK's, and is checked at start."""
    used = {
        node.attr
        for node in trees("sessions", "frameworks", "app.py")
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
    }
    assert used - own_names() - DECLARED == CHECKED_WHERE_USED


@pytest.mark.parametrize("name", _sdk_compat.TRANSPORT_METHODS)
async def test_missing_method_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK whose transport lacks a method that is overridden or called is refused by name."""
    monkeypatch.delattr(StreamableHTTPServerTransport, name)
    async with connect("redis://127.0.0.1:1") as client:
        with pytest.raises(IncompatibleSDKError, match=name):
            ResumableSessionManager(Server("s"), RedisEventStore(client, ttl=3600))


async def test_dispatcher_that_numbers_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An SDK whose dispatcher has no counter of requests is refused: adopted sessions would mix up answers."""
    monkeypatch.setattr(JSONRPCDispatcher, "__init__", lambda _: None)
    async with connect("redis://127.0.0.1:1") as client:
        with pytest.raises(IncompatibleSDKError, match="_next_id"):
            ResumableSessionManager(Server("s"), RedisEventStore(client, ttl=3600))
