"""The forwarding of a client's messages to other workers: bounds, and the count of dropped messages."""

import pytest
from mcp.types import JSONRPCNotification

from mcp_eventscope.sessions import forwarder
from mcp_eventscope.sessions.forwarder import Forwarder
from mcp_eventscope.store.coordination import MessageKind, WorkerMessage
from mcp_eventscope.store.events import DropReason
from mcp_eventscope.store.messages import JSONRPCResponse

pytestmark = pytest.mark.anyio

KIBIBYTE = 1024


class Sent:
    """The messages that a forwarder has sent and dropped."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, MessageKind, str | None]] = []
        self.dropped: list[DropReason] = []
        self.forwarder = Forwarder(self.send, self.dropped.append)

    def send(self, session_id: str, kind: MessageKind, content: str = "", *, to: str | None = None) -> None:
        """Keep all but the content."""
        del content
        self.messages.append((session_id, kind, to))

    def wanted(self, session_id: str, request_id: str) -> bool:
        """Whether an offered answer is handed over."""
        before = len(self.messages)
        self.forwarder.hand_over(session_id, WorkerMessage(MessageKind.WANTED, content=request_id, sender="w"))
        return self.messages[before:] == [(session_id, MessageKind.DELIVER, "w")]


def large_answer(request_id: int, kibibytes: int) -> JSONRPCResponse:
    """An answer that is offered."""
    return JSONRPCResponse(jsonrpc="2.0", id=request_id, result={"x": "y" * kibibytes * KIBIBYTE})


async def test_forwarder_beyond_its_bound_drops_answers_of_the_largest_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """One session cannot displace the answer of another one."""
    monkeypatch.setattr(forwarder, "_HELD_BYTES", 500 * KIBIBYTE)
    sent = Sent()
    sent.forwarder.forward("victim", large_answer(1, 50))
    for number in range(5):
        sent.forwarder.forward("flood", large_answer(number, 200))
    assert sent.dropped == [DropReason.OVERFLOW] * 3
    assert sent.wanted("victim", "1")
    assert [sent.wanted("flood", str(number)) for number in range(5)] == [False, False, False, True, True]
    assert not sent.wanted("victim", "1"), "it is handed over once"


async def test_forwarder_of_an_answer_sent_twice_counts_its_size_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may repeat an answer."""
    monkeypatch.setattr(forwarder, "_HELD_BYTES", 100 * KIBIBYTE)
    sent = Sent()
    for _ in range(5):
        sent.forwarder.forward("s", large_answer(1, 60))
    assert sent.dropped == []
    assert sent.wanted("s", "1")


async def test_forwarder_of_a_large_notification_counts_it_as_dropped() -> None:
    """It is neither sent nor offered."""
    sent = Sent()
    params = {"requestId": 1, "reason": "x" * 20 * KIBIBYTE}
    sent.forwarder.forward("s", JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=params))
    assert sent.messages == []
    assert sent.dropped == [DropReason.TOO_LARGE]
