"""The routing of a client's messages to the worker that they concern."""

import pytest
from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCMessage, JSONRPCNotification, JSONRPCRequest
from redis import asyncio as aioredis

from mcp_eventscope import InstrumentedEventStore, RedisEventStore
from mcp_eventscope.sessions.transport import ResumableTransport
from mcp_eventscope.sessions.view import SessionView
from support.messages import answer, failure

pytestmark = pytest.mark.anyio

ASKED = JSONRPCRequest(jsonrpc="2.0", id=5, method="elicitation/create", params={})
CANCELLED = JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params={"requestId": 9})


@pytest.mark.parametrize(
    ("message", "forwarded", "received"),
    [
        (JSONRPCRequest(jsonrpc="2.0", id=1, method="ping"), False, True),
        (answer(5), False, True),
        (answer(6), True, False),
        (failure(6), True, False),
        (CANCELLED, True, True),
    ],
    ids=["request", "answer", "unknown answer", "unknown error", "unknown cancellation"],
)
async def test_route_passes_no_answer_to_a_server_that_did_not_ask(
    fake_client: aioredis.Redis,
    message: JSONRPCMessage,
    forwarded: bool,  # noqa: FBT001 - a case
    received: bool,  # noqa: FBT001
) -> None:
    """An answer to another worker is only forwarded, since the server of mcp 1.x would report it to the client."""
    root = RedisEventStore(fake_client, ttl=600)
    view = SessionView(InstrumentedEventStore(root.for_session("s"), registry=None), follow_timeout=1)  # type: ignore[arg-type]
    view.begin(1)
    await view.store_event("1", ASKED)
    sent: list[JSONRPCMessage] = []
    transport = ResumableTransport(
        view,
        stopped=lambda _: None,
        forward=sent.append,
        admit_resume=lambda: None,
        reconnection_delay=lambda: 0,
        rested=lambda: None,
        mcp_session_id="s",
    )
    assert transport._route(SessionMessage(message)) is received
    assert sent == ([message] if forwarded else [])
    await root.flush()
